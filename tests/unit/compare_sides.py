# SPDX-License-Identifier: GPL-2.0-only
"""Sides for the tests of compare: invented hosts whose truth is known, as snapshots, as recordings, or ready made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from kmemwatch.compare.figures import Figure, Metric, figure
from kmemwatch.compare.side import RECORDING, HostRuns, ReleaseDelays, Run, Sample, Side
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import DYING, Cgroup, Event, Host, Ids, Kernel, Recharges, RechargeTotal, Snapshot, Totals
from tests.unit import fakes

BOOT = {"A": "aaaaaaaa-0000-4000-8000-000000000001", "B": "bbbbbbbb-0000-4000-8000-000000000002"}
S = 10**9
RECHARGES = {state: figure(Metric.RECHARGES, state) for state in ("dying", "none", "online")}
Curves = dict[Figure, Callable[[int], float]]
"""Figure -> its value at a second."""


def side(curves: Curves, seconds: int = 200, label: str = "A", **more: Any) -> Side:
    """One host, a sample a second."""
    samples = tuple(
        Sample(1_800_000_000.0 + t, float(t), {one: value(t) for one, value in curves.items()}) for t in range(seconds)
    )
    kernel = {
        name: more.pop(name, default)
        for name, default in (("kernel", "6.1"), ("era", "recharge"), ("patchset", True), ("cgroup_version", 2))
    }
    host = HostRuns(f"host{label}", (Run(samples, False),), boot_ids=(BOOT[label],), **kernel)
    return Side(label, RECORDING, f"{label}.kmw", (host,), **more)


def lives(per_s: float, stay: float) -> Curves:
    """Figures of a host where `per_s` memcgs die a second, the share `stay` of them is never released, and two others
    are dying at any time."""

    def kept(t: int) -> int:
        return int(stay * per_s * t)

    def dying(t: int) -> int:
        return min(int(per_s * t), kept(t) + min(2, t))

    return {
        figure(Metric.ONLINE): lambda t: 11,
        figure(Metric.ONLINE_PEAK): lambda t: 21,
        figure(Metric.OFFLINED): lambda t: int(per_s * t),
        figure(Metric.RELEASED): lambda t: int(per_s * t) - dying(t),
        figure(Metric.DYING): dying,
        figure(Metric.SLAB_BYTES): lambda t: 10_000_000 + 4096 * kept(t),
        figure(Metric.IDS_GIVEN): lambda t: int(per_s * t),
        figure(Metric.IDS_REUSED): lambda t: max(0, int(per_s * t) - kept(t) - 5),
        figure(Metric.IDS_FREED): lambda t: int(per_s * t) - kept(t),
        figure(Metric.IDS): lambda t: 10 + kept(t),
        figure(Metric.CACHES_MAX): lambda t: 15 + kept(t),
        figure(Metric.CHECKS): lambda t: 100 * t,
        figure(Metric.FAILURES): lambda t: 0,
        figure(Metric.ALLOCATIONS): lambda t: 200 * t,
        RECHARGES["dying"]: lambda t: 3 * t,
        RECHARGES["none"]: lambda t: t,
        RECHARGES["online"]: lambda t: 0,
    }


def patched(label: str = "B", seconds: int = 200, **more: Any) -> Side:
    """The patch set does what it promises."""
    return side(lives(2, 0), seconds, label, **more)


def unpatched(label: str = "A", seconds: int = 200, **more: Any) -> Side:
    """All that die stay, with their ids and caches."""
    recharging = {figure(Metric.CHECKS), figure(Metric.FAILURES), *RECHARGES.values()}
    series = {name: value for name, value in lives(2, 1).items() if name not in recharging}
    return side(series, seconds, label, era="per-memcg", patchset=False, **more)


def objcg(label: str = "A", **more: Any) -> Side:
    """Shared caches, as on a stock kernel: no ids, no child caches, no recharging."""
    names = (Metric.ONLINE, Metric.OFFLINED, Metric.RELEASED, Metric.DYING, Metric.SLAB_BYTES, Metric.ALLOCATIONS)
    series = {name: value for name, value in lives(2, 0).items() if name.metric in names}
    return side(series, 200, label, era="objcg", patchset=False, **more)


def delays(released: Iterable[float] = (), still: Iterable[float] = ()) -> ReleaseDelays:
    """Exact ones."""
    return ReleaseDelays(tuple(released), tuple(still))


def snapshot(second: float, label: str = "A", *, dead_s: Mapping[int, float] | None = None, **changes: Any) -> Snapshot:
    """A host with child caches; `dead_s`: cgroup id -> second of its removal, of those that are dying."""
    removed = int(2 * second)
    dying = tuple(
        fakes.row(
            Cgroup,
            id=one,
            path=f"/job-{one}",
            state=DYING,
            offline_at_ns=fakes.START_NS + int(at * S),
            memory_bytes=0,
            kernel_bytes=0,
            slab_bytes=0,
            charged_bytes_total=0,
            uncharged_bytes_total=0,
        )
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
    """Write these snapshots to a file; `events`: number of a snapshot -> events before it. Where time goes back, a new
    run begins."""
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
