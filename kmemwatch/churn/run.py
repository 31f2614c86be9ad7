# SPDX-License-Identifier: GPL-2.0-only
"""A run from its first to its last cgroup: lives to workers, answers to the tally, everything taken away in the end."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from kmemwatch.churn import limits
from kmemwatch.churn.crew import Crew, Worker
from kmemwatch.churn.grounds import Grounds, memory_hierarchy, sweep
from kmemwatch.churn.kinds import BY_NAME
from kmemwatch.churn.plan import Options, lives
from kmemwatch.churn.report import DONE, DURATION, FAILURES, MEMORY, SIGNAL, Course, Report, Tally
from kmemwatch.churn.stop import Stop
from kmemwatch.errors import KmemwatchError, UnsupportedError
from kmemwatch.kernel.cgroupfs import Hierarchy

LOOK_S = 0.2
"""How often progress is shown and free memory looked at."""
FAILED_IN_A_ROW = 10
END_S = 60.0
"""How long workers get to let go of everything at the end."""
SIGNALLED_S = 3.0
"""The same after a signal, and before that to finish the cgroup that they are at."""
SETTLE_S = 2.0
"""How long the kernel gets to release cgroups after the last that pins them is gone."""


class Watcher(Protocol):
    """Whoever wants to see it as it goes."""

    def works(self, lived: int, elapsed_s: float) -> None:
        """So many cgroups have lived and died."""

    def holds(self, parent: str, removed: int, hold_s: float) -> None:
        """The work is over; what was left stays for so long."""

    def cleans(self) -> None:
        """What was left is let go now."""


def churn(options: Options, watcher: Watcher, *, lists: bool = False) -> Report:
    """Do it all. Raises UnsupportedError when nothing could be begun; what fails later is in the report."""
    hierarchy, root = memory_hierarchy()
    _check_directory(options.directory)
    sweep(root, options.directory)
    needs = limits.estimate(options, _possible_cpus())
    limits.refuse_what_does_not_fit(needs, limits.available(Path(options.directory), _directories(root)))
    with Stop() as stop:
        run = _Run(options, hierarchy, root, stop, watcher, lists)
        try:
            run.work()
            run.hold()
        finally:
            run.clean()
    return Report(options, needs, run.grounds.version, run.grounds.path, run.grounds.parent_id, run.tally, run.course)


class _Run:
    def __init__(
        self, options: Options, hierarchy: Hierarchy, root: Path, stop: Stop, watcher: Watcher, lists: bool
    ) -> None:
        self._options, self._stop, self._watcher = options, stop, watcher
        self.course = Course(time.time_ns())
        self.tally = Tally(options.mix, lists)
        self.grounds = Grounds(hierarchy, root, options.directory)
        letters = "".join(BY_NAME[name].letter for name, _ in options.mix)
        places = [str(path) for path in (root, self.grounds.parent, self.grounds.scratch)]
        self._crew = Crew(options.parallel, [*places, letters, str(hierarchy.version)])
        self._graves: deque[tuple[Worker, str]] = deque()
        self._began_s = 0.0

    def work(self) -> None:
        """Until all have lived, the time is over, a signal came, memory is short, or nothing works."""
        self._check_disk()
        self.course.dying["before"] = self.grounds.count_dying()
        self._crew.start(self._stop.fd)
        self._began_s = time.monotonic()
        try:
            self.course.ended_by = self._give_all()
            self._finish_lives()
        except UnsupportedError:
            raise
        except KmemwatchError as exc:
            self.tally.fail("worker", str(exc))
            self.course.ended_by = FAILURES
        self.course.work_s = time.monotonic() - self._began_s
        self.course.signum = self._stop.signum
        self.course.dying["after_work"] = self.grounds.count_dying()

    def _finish_lives(self) -> None:
        """Wait for those who are at work, but after a signal only so long: one of them may be stopped."""
        began_s = time.monotonic()
        while any(worker.busy for worker in self._crew.workers):
            if self._signalled_before(began_s):
                return
            self._take(LOOK_S)

    def _signalled_before(self, began_s: float) -> bool:
        """Whether a signal came, and what it leaves to something that began then is over."""
        at_s = self._stop.at_s
        return at_s is not None and time.monotonic() > max(at_s, began_s) + SIGNALLED_S

    def _check_disk(self) -> None:
        kinds = [name for name, _ in self._options.mix if BY_NAME[name].disk]
        if kinds and self.grounds.has_disk() is False:
            raise UnsupportedError(
                f"{self._options.directory}: there is no disk below it, as there must be for {' and '.join(kinds)}",
                "choose a directory on a disk with --directory",
            )

    def _give_all(self) -> str:
        waiting = lives(self._options)
        following = next(waiting, None)
        looked_s = 0.0
        while following is not None:
            now_s = time.monotonic()
            elapsed_s = now_s - self._began_s
            if (why := self._why_end(elapsed_s)) is not None:
                return why
            if now_s - looked_s >= LOOK_S:
                if limits.memory_is_short():
                    self.tally.fail("memory", "the host has less to spare than it needs itself")
                    return MEMORY
                looked_s = now_s
            idle = next((worker for worker in self._crew.workers if not worker.busy), None)
            due_s = self.tally.given / self._options.rate if self._options.rate else 0.0
            if idle is not None and due_s <= elapsed_s:
                self.tally.give(following)
                idle.tell(f"life {following.name} {following.steps}")
                following = next(waiting, None)
                self._take(0)
            else:
                self._take(self._pause_s(elapsed_s, due_s if idle is not None else None))
        return DONE

    def _why_end(self, elapsed_s: float) -> str | None:
        if self._crew.woken or self._stop.signum is not None:
            return SIGNAL
        if self._options.duration_s is not None and elapsed_s >= self._options.duration_s:
            return DURATION
        return FAILURES if self.tally.failed_in_a_row >= FAILED_IN_A_ROW else None

    def _pause_s(self, elapsed_s: float, due_s: float | None) -> float:
        ends = [LOOK_S]
        if due_s is not None:
            ends.append(due_s - elapsed_s)
        if self._options.duration_s is not None:
            ends.append(self._options.duration_s - elapsed_s)
        return max(0.0, min(ends))

    def _take(self, timeout_s: float | None) -> None:
        for answer in self._crew.answers(timeout_s):
            if "released" in answer:
                self.tally.released += 1
            elif "removed_at_ns" in answer:
                self.tally.take(answer)
                self._graves.append((answer["worker"], answer["name"]))
        while self._options.dead is not None and len(self._graves) > self._options.dead:
            worker, name = self._graves.popleft()
            worker.tell(f"release {name}")
        self._watcher.works(self.tally.lived, time.monotonic() - self._began_s)

    def hold(self) -> None:
        """Leave everything as it is for a while, unless the work was ended early."""
        began_s = time.monotonic()
        if self._options.hold_s and self.course.ended_by in (DONE, DURATION):
            self._watcher.holds(self.grounds.path, self.tally.removed, self._options.hold_s)
            select.select([self._stop.fd], [], [], self._options.hold_s)
            self.course.signum = self._stop.signum
            self.course.held_s = time.monotonic() - began_s
        self.course.dying["after_hold"] = self.grounds.count_dying()

    def clean(self) -> None:
        """Take everything away; signals are only noted, so it cannot be broken off."""
        self._watcher.cleans()
        began_s = time.monotonic()
        clean = self._crew.end(lambda: self._signalled_before(began_s) or time.monotonic() > began_s + END_S)
        self.grounds.remove_scratch()
        until = time.monotonic() + SETTLE_S
        before = self.course.dying["before"]
        while (now := self.grounds.count_dying()) is not None and before is not None:
            if now <= before or time.monotonic() > until:
                break
            time.sleep(0.05)
        self.course.dying["after_cleaning"] = now
        self.course.remains = self.grounds.remove()
        if not clean:
            self.tally.fail("worker", "did not end by itself and was killed")
        self.course.ended_at_ns = time.time_ns()


def _check_directory(directory: str) -> None:
    if not Path(directory).is_dir():
        raise UnsupportedError(f"{directory}: no such directory", "choose another one with --directory")


def _possible_cpus() -> int:
    """Per-CPU memory is made for each CPU that could be there."""
    try:
        last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1].split("-")[-1]
        return int(last) + 1
    except (OSError, ValueError):
        return 1


def _directories(root: Path) -> int:
    """Cgroups that are in use: /proc/cgroups counts the dying ones too, and they have no id any more."""
    return sum(1 for _ in os.walk(root))
