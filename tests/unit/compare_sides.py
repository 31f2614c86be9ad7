# SPDX-License-Identifier: GPL-2.0-only
"""Sides for the tests of compare: invented hosts whose truth is known, as snapshots, as recordings, or ready made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kmemwatch.compare import figures
from kmemwatch.compare.side import RECORDING, Delays, Run, Sample, Side, Track
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import DYING, Cgroup, Event, Host, Ids, Kernel, Recharges, RechargeTotal, Snapshot, Totals
from tests.unit import fakes

BOOT = {"A": "aaaaaaaa-0000-4000-8000-000000000001", "B": "bbbbbbbb-0000-4000-8000-000000000002"}
S = 10**9
RECHARGE_NAMES = {
    state: figures.name(figures.RECHARGES, [("from_state", state)]) for state in ("dying", "none", "online")
}


def side(series: Mapping[str, Callable[[int], float]], seconds: int = 200, label: str = "A", **more: Any) -> Side:
    """One host, a sample a second; `series`: figure -> its value at a second."""
    samples = tuple(
        Sample(1_800_000_000.0 + t, float(t), {name: value(t) for name, value in series.items()})
        for t in range(seconds)
    )
    kernel = {
        name: more.pop(name, default)
        for name, default in (("kernel", "6.1"), ("era", "recharge"), ("patchset", True), ("cgroup_version", 2))
    }
    track = Track(f"host{label}", (Run(samples, False),), boot_ids=(BOOT[label],), **kernel)
    return Side(label, RECORDING, f"{label}.kmw", (track,), **more)


def lives(per_s: float, stay: float, **more: Any) -> dict[str, Callable[[int], float]]:
    """Figures of a host where `per_s` memcgs die, and that share of them stays; two others are just dying."""

    def kept(t: int) -> int:
        return int(stay * per_s * t)

    def dying(t: int) -> int:
        return min(int(per_s * t), kept(t) + min(2, t))

    found: dict[str, Callable[[int], float]] = {
        figures.ONLINE: lambda t: 11,
        figures.ONLINE_PEAK: lambda t: 21,
        figures.OFFLINED: lambda t: int(per_s * t),
        figures.RELEASED: lambda t: int(per_s * t) - dying(t),
        figures.DYING: dying,
        figures.SLAB_BYTES: lambda t: 10_000_000 + 4096 * kept(t),
        figures.IDS_GIVEN: lambda t: int(per_s * t),
        figures.IDS_REUSED: lambda t: max(0, int(per_s * t) - kept(t) - 5),
        figures.IDS_FREED: lambda t: int(per_s * t) - kept(t),
        figures.IDS: lambda t: 10 + kept(t),
        figures.CACHES_MAX: lambda t: 15 + kept(t),
        figures.CHECKS: lambda t: 100 * t,
        figures.FAILURES: lambda t: 0,
        figures.ALLOCATIONS: lambda t: 200 * t,
        RECHARGE_NAMES["dying"]: lambda t: 3 * t,
        RECHARGE_NAMES["none"]: lambda t: t,
        RECHARGE_NAMES["online"]: lambda t: 0,
    }
    return {**found, **more}


def patched(label: str = "B", seconds: int = 200, **more: Any) -> Side:
    """The patch set does what it promises."""
    return side(lives(2, 0), seconds, label, **more)


def unpatched(label: str = "A", seconds: int = 200, **more: Any) -> Side:
    """All that die stay, with their ids and caches."""
    recharging = {figures.CHECKS, figures.FAILURES, *RECHARGE_NAMES.values()}
    series = {name: value for name, value in lives(2, 1).items() if name not in recharging}
    return side(series, seconds, label, era="per-memcg", patchset=False, **more)


def objcg(label: str = "A", **more: Any) -> Side:
    """Shared caches, as on a stock kernel: no ids, no child caches, no recharging."""
    names = (figures.ONLINE, figures.OFFLINED, figures.RELEASED, figures.DYING, figures.SLAB_BYTES, figures.ALLOCATIONS)
    series = {name: value for name, value in lives(2, 0).items() if name in names}
    return side(series, 200, label, era="objcg", patchset=False, **more)


def delays(released: Iterable[float] = (), still: Iterable[float] = ()) -> Delays:
    """Exact ones."""
    return Delays(tuple(released), tuple(still))


def snapshot(second: float, label: str = "A", *, dead_s: Mapping[int, float] | None = None, **changes: Any) -> Snapshot:
    """A host with child caches; `dead_s`: cgroup id -> second of its removal, of those that are dying."""
    removed = int(2 * second)
    dying = tuple(
        Cgroup(one, f"/job-{one}", DYING, None, None, fakes.START_NS + int(at * S), 0, 0, 0, 0, 0)
        for one, at in sorted((dead_s or {}).items())
    )
    found = replace(
        fakes.sample(),
        taken_at_ns=fakes.START_NS + int(second * S),
        monotonic_ns=fakes.MONO_START_NS + int(second * S),
        duration_s=float(second),
        host=Host(f"host{label}", "6.1", "x86_64", BOOT[label]),
        kernel=Kernel("recharge", True, 2, "none"),
        cgroups=dying,
        pairs=(),
        ids=Ids(10, 20, max(0, removed - 5), (), removed, removed),
        recharges=Recharges(
            int(100 * second), int(3 * second), int(3 * second) * 4096, 0, 0, (),
            (RechargeTotal("dentry", "dying", int(3 * second), int(3 * second) * 4096),),
        ),
        totals=Totals(11, 21, len(dying), removed + 11, removed, removed - len(dying)),
    )  # fmt: skip
    return replace(found, **changes)


def recording(path: Path, snapshots: Iterable[Snapshot], events: Mapping[int, Iterable[Event]] | None = None) -> Path:
    """A file with these snapshots; `events`: number of a snapshot -> events before it. A new run where time is back."""
    before: Snapshot | None = None
    with RecordingWriter(str(path)) as writer:
        for number, one in enumerate(snapshots):
            if before is None or one.duration_s < before.duration_s:
                writer.begin(one)
            for event in (events or {}).get(number, ()):
                writer.write_event(event)
            writer.write_snapshot(one)
            before = one
    return path


def life(cgroup_id: int, removed_s: float, released_s: float | None) -> list[Event]:
    """Events of the end of a memcg."""
    found = [Event(fakes.START_NS + int(removed_s * S), "offline", cgroup_id)]
    if released_s is not None:
        found.append(Event(fakes.START_NS + int(released_s * S), "released", cgroup_id))
    return found
