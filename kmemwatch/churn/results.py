# SPDX-License-Identifier: GPL-2.0-only
"""What a run did, counted from the answers of the workers, and as JSON."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kmemwatch import __version__
from kmemwatch.churn.limits import Needs
from kmemwatch.churn.lives import BY_NAME, ChurnOptions, Life, LivesDigest
from kmemwatch.units import printable, rfc3339

SCHEMA = 1
DONE, DURATION, SIGNAL, MEMORY, FAILURES = "done", "duration", "signal", "memory", "failures"
"""What ended the work."""


class Tally:
    """Counts objects and cgroups: planned, made, left, failed."""

    def __init__(self, mix: tuple[tuple[str, int], ...], lists: bool) -> None:
        self._kinds = [name for name, _ in mix]
        self._lists = lists
        self._digest = LivesDigest()
        self.given = self.done = self.made = self.removed = self.released = 0
        """Cgroups."""
        self.failed_in_a_row = 0
        self._planned: Counter[str] = Counter()
        self._made: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._failed: Counter[tuple[str, int | str]] = Counter()
        self._list: list[dict[str, Any]] = []

    def give(self, life: Life) -> None:
        """Count a life that a worker gets."""
        self.given += 1
        self._digest.add(life)
        self._planned.update(life.made())

    def add(self, answer: dict[str, Any]) -> None:
        """Count a worker's answer."""
        self.done += 1
        self.made += answer["id"] is not None
        self.removed += answer["removed_at_ns"] is not None
        self.failed_in_a_row = self.failed_in_a_row + 1 if answer["errors"] else 0
        self._made.update(answer["made"])
        self._left.update(answer["left"])
        self._failed.update(answer["failed"])
        self._failed.update(answer["errors"])
        held = sum(number * BY_NAME[kind].descriptors for kind, number in answer["left"].items())
        if answer["held_fds"] != held:
            self._failed["held open", "lost on the way to the one that holds them"] += abs(held - answer["held_fds"])
        if self._lists:
            self._list.append(answer)

    def fail(self, what: str, why: str) -> None:
        """Count another failure."""
        self._failed[what, why] += 1

    def objects(self) -> dict[str, dict[str, int]]:
        """Kind -> counts."""
        failed: Counter[str] = Counter()
        for (what, _), number in self._failed.items():
            failed[what] += number
        return {
            kind: {
                "planned": self._planned[kind],
                "made": self._made[kind],
                "left": self._left[kind],
                "failed": failed[kind],
            }
            for kind in self._kinds
        }

    def failures(self) -> list[dict[str, Any]]:
        """What failed, why and how often."""
        return [
            {"what": what, "why": why if isinstance(why, str) else os.strerror(why), "count": number}
            for (what, why), number in sorted(self._failed.items(), key=str)
        ]

    def cgroups(self) -> dict[str, Any]:
        """How many, and with `--list` which."""
        counts: dict[str, Any] = {
            "planned": self.given, "made": self.made, "removed": self.removed, "let_go_early": self.released,
            "plan_sha256": self._digest.text(),
        }  # fmt: skip
        if self._lists:
            counts["list"] = [
                {
                    "name": answer["name"],
                    "id": answer["id"],
                    "made_at": rfc3339(answer["made_at_ns"], 9),
                    "removed_at": rfc3339(answer["removed_at_ns"], 9),
                    "made": answer["made"],
                    "left": answer["left"],
                }
                for answer in self._list
            ]
        return counts


@dataclass
class Course:
    """Times and numbers of a run that are known as it goes on."""

    started_at_ns: int
    """CLOCK_REALTIME."""
    work_s: float = 0.0
    held_s: float = 0.0
    ended_at_ns: int = 0
    ended_by: str = DONE
    signum: int | None = None
    """The signal that ended the work or the holding."""
    dying: dict[str, int | None] = field(
        default_factory=lambda: dict.fromkeys(("before", "after_work", "after_hold", "after_cleaning"))
    )
    remains: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ChurnReport:
    """What `kmemwatch churn` prints."""

    options: ChurnOptions
    needs: Needs
    cgroup_version: int
    parent: str
    parent_id: int
    tally: Tally
    course: Course

    @property
    def failed(self) -> int:
        """Number of things that failed."""
        return sum(failure["count"] for failure in self.tally.failures())

    def to_dict(self) -> dict[str, Any]:
        """As kmemwatch/churn/report.schema.json has it."""
        course = self.course
        return {
            "schema": SCHEMA,
            "kmemwatch": __version__,
            "host": _host(self.cgroup_version),
            "options": _options(self.options),
            "estimate": asdict(self.needs),
            "parent": {"path": self.parent, "id": self.parent_id},
            "started_at": rfc3339(course.started_at_ns, 9),
            "ended_at": rfc3339(course.ended_at_ns, 9),
            "work_s": round(course.work_s, 6),
            "held_s": round(course.held_s, 6),
            "rate": round(self.tally.done / course.work_s, 3) if course.work_s else None,
            "ended_by": course.ended_by,
            "signal": None if course.signum is None else signal.Signals(course.signum).name,
            "cgroups": self.tally.cgroups(),
            "objects": self.tally.objects(),
            "dying": {"of": "parent" if self.cgroup_version == 2 else "host", **course.dying},
            "failures": self.tally.failures(),
            "cleaned": not course.remains,
            "remains": course.remains,
        }


def _options(options: ChurnOptions) -> dict[str, Any]:
    return {**asdict(options), "mix": dict(options.mix), "directory": printable(options.directory)}


def _host(cgroup_version: int) -> dict[str, Any]:
    uname = os.uname()
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = None
    return {
        "hostname": printable(socket.gethostname()), "kernel": uname.release, "arch": uname.machine, "boot_id": boot_id,
        "cgroup_version": cgroup_version,
    }  # fmt: skip
