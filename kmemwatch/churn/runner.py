# SPDX-License-Identifier: GPL-2.0-only
"""A run: gives lives to workers, counts what they answer, and removes everything at the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol

from kmemwatch.churn import limits
from kmemwatch.churn.lives import BY_NAME, ChurnOptions, lives
from kmemwatch.churn.results import DONE, DURATION, FAILURES, MEMORY, SIGNAL, ChurnReport, Course, Tally
from kmemwatch.churn.workers import WorkerPool, WorkerProcess
from kmemwatch.churn.workspace import Workspace, memory_hierarchy, sweep
from kmemwatch.errors import KmemwatchError, UnsupportedError
from kmemwatch.kernel.cgroupfs import Hierarchy

LOOK_S = 0.2
"""How often the run shows progress and checks free memory."""
FAILED_IN_A_ROW = 10
END_S = 60.0
"""How long workers have at the end to free everything."""
SIGNALLED_S = 3.0
"""The same after a signal, and also for finishing their current cgroup."""
RELEASE_S = 2.0
"""How long the kernel has to release cgroups once nothing pins them."""
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Within it, signals that would end the process set a flag instead. In threads other than the main one: no effect.

    An exception could come between making something and recording that it was made; then nothing would remove it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first one that came."""
        self.at_s: float | None = None
        """When it came, `time.monotonic`."""
        self.fd, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Readable as soon as one came."""
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in END_SIGNALS:
                if signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._before[signum] = signal.signal(signum, self._remember)
        return self

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self.at_s = signum, time.monotonic()
        with contextlib.suppress(BlockingIOError):  # full, so it is readable
            os.write(self._waker, b"!")

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        os.close(self.fd)
        os.close(self._waker)


class Progress(Protocol):
    """Shows a run as it goes on."""

    def works(self, done: int, elapsed_s: float) -> None:
        """So many cgroups were made and removed."""

    def holds(self, parent: str, removed: int, hold_s: float) -> None:
        """All cgroups are removed; what they left stays for `hold_s`."""

    def cleans(self) -> None:
        """What they left is freed now."""


def churn(options: ChurnOptions, progress: Progress, *, lists: bool = False) -> ChurnReport:
    """Do the whole run. Raises UnsupportedError when it cannot begin; what fails later is in the report."""
    hierarchy, root = memory_hierarchy()
    _check_directory(options.directory)
    sweep(root, options.directory)
    needs = limits.estimate(options, _possible_cpus())
    limits.refuse_what_does_not_fit(needs, limits.available(Path(options.directory), _directories(root)))
    with StopSignals() as stop:
        run = _Run(options, hierarchy, root, stop, progress, lists)
        try:
            run.work()
            run.hold()
        finally:
            run.clean()
    return ChurnReport(
        options, needs, run.workspace.version, run.workspace.path, run.workspace.parent_id, run.tally, run.course
    )


class _Run:
    def __init__(
        self,
        options: ChurnOptions,
        hierarchy: Hierarchy,
        root: Path,
        stop: StopSignals,
        progress: Progress,
        lists: bool,
    ) -> None:
        self._options, self._stop, self._progress = options, stop, progress
        self.course = Course(time.time_ns())
        self.tally = Tally(options.mix, lists)
        self.workspace = Workspace(hierarchy, root, options.directory)
        letters = "".join(BY_NAME[name].letter for name, _ in options.mix)
        places = [str(path) for path in (root, self.workspace.parent, self.workspace.scratch)]
        self._pool = WorkerPool(options.parallel, [*places, letters, str(hierarchy.version)])
        self._removed: deque[tuple[WorkerProcess, str]] = deque()
        self._began_s = 0.0

    def work(self) -> None:
        """Give out lives until all are done, time is up, a signal came, memory is short, or nothing works."""
        self._check_disk()
        self.course.dying["before"] = self.workspace.count_dying()
        self._pool.start(self._stop.fd)
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
        self.course.dying["after_work"] = self.workspace.count_dying()

    def _finish_lives(self) -> None:
        """Wait for busy workers, but after a signal only `SIGNALLED_S`: one of them may be stopped (SIGSTOP)."""
        began_s = time.monotonic()
        while any(worker.busy for worker in self._pool.workers):
            if self._signalled_before(began_s):
                return
            self._take(LOOK_S)

    def _signalled_before(self, began_s: float) -> bool:
        """Whether a signal came, and `SIGNALLED_S` have passed since it and since `began_s`."""
        at_s = self._stop.at_s
        return at_s is not None and time.monotonic() > max(at_s, began_s) + SIGNALLED_S

    def _check_disk(self) -> None:
        kinds = [name for name, _ in self._options.mix if BY_NAME[name].disk]
        if kinds and self.workspace.has_disk() is False:
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
            idle = next((worker for worker in self._pool.workers if not worker.busy), None)
            due_s = self.tally.given / self._options.rate if self._options.rate else 0.0
            if idle is not None and due_s <= elapsed_s:
                self.tally.give(following)
                idle.send(f"life {following.name} {following.steps}")
                following = next(waiting, None)
                self._take(0)
            else:
                self._take(self._pause_s(elapsed_s, due_s if idle is not None else None))
        return DONE

    def _why_end(self, elapsed_s: float) -> str | None:
        if self._pool.woken or self._stop.signum is not None:
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
        for answer in self._pool.answers(timeout_s):
            if "released" in answer:
                self.tally.released += 1
            elif "removed_at_ns" in answer:
                self.tally.add(answer)
                self._removed.append((answer["worker"], answer["name"]))
        while self._options.dead is not None and len(self._removed) > self._options.dead:
            worker, name = self._removed.popleft()
            worker.send(f"release {name}")
        self._progress.works(self.tally.done, time.monotonic() - self._began_s)

    def hold(self) -> None:
        """Leave everything as it is for `hold_s`, unless the work ended early."""
        began_s = time.monotonic()
        if self._options.hold_s and self.course.ended_by in (DONE, DURATION):
            self._progress.holds(self.workspace.path, self.tally.removed, self._options.hold_s)
            select.select([self._stop.fd], [], [], self._options.hold_s)
            self.course.signum = self._stop.signum
            self.course.held_s = time.monotonic() - began_s
        self.course.dying["after_hold"] = self.workspace.count_dying()

    def clean(self) -> None:
        """Remove everything. No signal interrupts it, as `StopSignals` only sets a flag."""
        self._progress.cleans()
        began_s = time.monotonic()
        clean = self._pool.end(lambda: self._signalled_before(began_s) or time.monotonic() > began_s + END_S)
        self.workspace.remove_scratch()
        until = time.monotonic() + RELEASE_S
        before = self.course.dying["before"]
        while (now := self.workspace.count_dying()) is not None and before is not None:
            if now <= before or time.monotonic() > until:
                break
            time.sleep(0.05)
        self.course.dying["after_cleaning"] = now
        self.course.remains = self.workspace.remove()
        if not clean:
            self.tally.fail("worker", "did not end by itself and was killed")
        self.course.ended_at_ns = time.time_ns()


def _check_directory(directory: str) -> None:
    if not Path(directory).is_dir():
        raise UnsupportedError(f"{directory}: no such directory", "choose another one with --directory")


def _possible_cpus() -> int:
    """The kernel allocates per-CPU memory for each possible CPU."""
    try:
        last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1].split("-")[-1]
        return int(last) + 1
    except (OSError, ValueError):
        return 1


def _directories(root: Path) -> int:
    """Cgroups that exist: /proc/cgroups counts the dying ones, too, which have no id any more."""
    return sum(1 for _ in os.walk(root))
