# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of an invented host, and a feed of them: every view is testable without a kernel."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import Any, TypeVar, get_args

from msgspec import Struct
from msgspec.structs import replace

from kmemwatch.cacheids import CacheIds
from kmemwatch.codec import to_json
from kmemwatch.errors import KmemwatchError
from kmemwatch.model import (
    ABSENT,
    ATTACHED,
    DYING,
    FALLBACK,
    FROM_NONE,
    MISSING,
    ONLINE,
    RELEASED,
    Cache,
    Cgroup,
    ChildSlabs,
    Event,
    Host,
    Ids,
    Kernel,
    KmemcgId,
    Lost,
    MapFill,
    Pair,
    Probe,
    RechargePair,
    Recharges,
    RechargeTotal,
    Snapshot,
    Totals,
)
from kmemwatch.shape import shape_of
from kmemwatch.units import printable

MB = 1 << 20
IDS = CacheIds(b"secret of the invented host")
"""Its ids of caches."""
START_NS = 1_795_377_600 * 10**9
"""2026-11-22T20:00:00Z, when the invented probes were attached."""
MONO_START_NS = 5_000 * 10**9
ATTACHED_S = 600
"""How long they were attached when the first snapshot was taken."""

ODD_NAMES = (
    "/with space/two  spaces",
    "/new\nline\tand\x1b[31mescape",
    "/bytes\udcff\udc80",
    "/back\\slash",
    "/" + "x" * 255,
    "/字幕/容器" + "漢" * 40,
    "/e\u0301" + "a\u0308" * 20,
    "/emoji👩‍👩‍👧‍👦🇩🇪",
    "/rtl\u202eabc",
    '/quote"comma,semi;',
)

CACHES = (
    # name, object bytes, allocations/s, frees/s
    ("dentry", 192, 4021, 3877),
    ("ext4_inode_cache", 1176, 612, 580),
    ("filp", 256, 9170, 9168),
    ("inode_cache", 648, 88, 90),
    ("kmalloc-64", 64, 3012, 3012),
    ("kmalloc-cg-192", 192, 710, 644),
    ("kmalloc-cg-1k", 1024, 35, 21),
    ("maple_node", 256, 1290, 1284),
    ("proc_inode_cache", 720, 14, 0),
    ("radix_tree_node", 584, 401, 212),
    ("shmem_inode_cache", 752, 0, 0),
    ("vm_area_struct", 192, 2210, 2190),
)

CGROUPS = (
    # id, path, state, kernel MB, slab MB, memory MB, charged MB/s
    (1, "/", ONLINE, 1832, 1290, 14210, 9.4),
    (812, "/init.scope", ONLINE, 9, 6, 41, 0.0),
    (1021, "/system.slice", ONLINE, 402, 291, 2870, 0.2),
    (1101, "/system.slice/docker.service", ONLINE, 118, 87, 610, 0.1),
    (1188, "/system.slice/systemd-journald.service", ONLINE, 6, 4, 122, 0.01),
    (1202, "/system.slice/postgresql@15-main.service", ONLINE, 241, 190, 1904, 0.3),
    (2040, "/kubepods.slice", ONLINE, 1301, 930, 9011, 8.8),
    (2101, "/kubepods.slice/kubepods-burstable.slice/pod3f9c/cri-ctr-0b71", ONLINE, 702, 640, 2210, 6.1),
    (2102, "/kubepods.slice/kubepods-burstable.slice/pod8e21/cri-ctr-77aa", ONLINE, 303, 190, 1876, 2.7),
    (3000, "/user.slice/user-1000.slice/session-4.scope", ONLINE, 21, 14, 377, 0.02),
    (4001, "/kubepods.slice/kubepods-besteffort.slice/pod-a1/cri-ctr-dead01", DYING, 1, 1, 12, 0.0),
    (4002, "/kubepods.slice/kubepods-besteffort.slice/pod-a2/cri-ctr-dead02", DYING, 0, 0, 310, 0.0),
    (4003, "/system.slice/run-u981.service", DYING, 2, 2, 2, 0.0),
    (4004, "/system.slice/apt-daily.service", DYING, 0, 0, 0, 0.0),
    (4005, "/system.slice/logrotate.service", RELEASED, None, None, None, 0.0),
)  # fmt: skip

PINS = {
    4001: {"shmem": 10 * MB, "file": 2 * MB, "slab": 81920},
    4002: {"file": 310 * MB},
    4003: {"slab": 1572864, "percpu": 458752, "kernel": 36864},
    4004: {},
}
DIED_BEFORE = 4003
"""This one was dying already when kmemwatch was attached."""

HOST = Host("db1", "6.18.44", "x86_64", "0f2c6ad0-9fd2-4b41-9d5e-4c52b1d09a3e")
PROBES = (
    Probe("alloc", "raw_tp:kmem_cache_alloc+raw_tp:kmalloc", ATTACHED, None),
    Probe("free", "raw_tp:kmem_cache_free+raw_tp:kfree", ATTACHED, None),
    Probe("charge", "raw_tp:mod_memcg_state", ATTACHED, None),
    Probe("lifecycle", "raw_tp:cgroup_mkdir+raw_tp:cgroup_rmdir+raw_tp:cgroup_release", FALLBACK, "fentry: EPERM"),
    Probe("pins", "raw_tp:test_run", ATTACHED, None),
    Probe("recharge", None, ABSENT, "no __memcg_kmem_recharge_slab: this kernel does not have the patch set"),
)


def sample(seconds: int = 0) -> Snapshot:
    """A busy host on an objcg kernel, `seconds` after the first look at it; counters grow evenly."""
    duration = ATTACHED_S + seconds
    return Snapshot(
        taken_at_ns=START_NS + duration * 10**9,
        monotonic_ns=MONO_START_NS + duration * 10**9,
        duration_s=float(duration),
        host=HOST,
        kernel=Kernel("objcg", False, 2, "none"),
        probes=PROBES,
        caches=tuple(_cache(number, duration) for number in range(len(CACHES))),
        cgroups=tuple(_cgroup(row, duration) for row in CGROUPS),
        pairs=tuple(_pairs(duration)),
        recharges=Recharges(),
        ids=Ids(
            peak_online_memcgs=239, meaning="the number of the memcg itself (mem_cgroup.id); no cache belongs to it"
        ),
        lost=Lost(0, 0, 0, MappingProxyType({"ringbuf_full": 0, "recursion": 0, "pair_map_full": 0})),
        totals=Totals(217, 240, 4, 310, 93, 89, 218),
        maps=(MapFill("pairs", 61, 65536), MapFill("cgroups", 15, 16384)),
        release_delays_s=(0.2, 0.4, 61.5),
    )


R = TypeVar("R", bound=Struct)


def row(model: type[R], **known: Any) -> R:
    """An instance of a class of the model; what is not given is unknown."""
    optional = (name for name, field in shape_of(model).items() if NoneType in get_args(field.type))
    return model(**{**dict.fromkeys(optional), **known})


def pair(
    cache: str, cache_id: str | None, cgroup_id: int, allocations: int | None, allocated_bytes: int | None,
    frees: int | None, live_bytes: int | None,
) -> Pair:  # fmt: skip
    """As in a table."""
    return row(
        Pair, cache=cache, cache_id=cache_id, cgroup_id=cgroup_id, allocations_total=allocations,
        allocated_bytes_total=allocated_bytes, frees_total=frees, live_bytes=live_bytes,
    )  # fmt: skip


def _cache(number: int, duration: int) -> Cache:
    name, size, allocs, frees = CACHES[number]
    address = 0xFFFF_8880_0100_0000 + number * 0x200
    slab_bytes = ((number + 1) * 3 * MB + max(0, (allocs - frees) * size * duration)) // 4096 * 4096
    return row(
        Cache,
        name=name,
        id=IDS[address],
        object_bytes=size,
        allocations_total=allocs * duration,
        allocated_bytes_total=allocs * size * duration,
        frees_total=frees * duration,
        slab_bytes=slab_bytes,
    )


def _cgroup(listed: tuple[int, str, str, int | None, int | None, int | None, float], duration: int) -> Cgroup:
    id_, path, state, kernel, slab, memory, charged = listed
    removed = START_NS + (id_ - 4000) * 100 * 10**9 if state != ONLINE and id_ != DIED_BEFORE else None
    charged_bytes = int(charged * MB) * duration
    return row(
        Cgroup,
        id=id_,
        path=path,
        state=state,
        kmemcg_id=id_ % 97,
        online_at_ns=None if id_ < 3000 else START_NS + 7 * 10**9,
        offline_at_ns=removed,
        released_at_ns=removed + 10**9 if state == RELEASED and removed else None,
        memory_bytes=_mb(memory),
        kernel_bytes=_mb(kernel),
        slab_bytes=_mb(slab),
        charged_bytes_total=charged_bytes,
        uncharged_bytes_total=charged_bytes * 9 // 10,
        pins=MappingProxyType(PINS[id_]) if id_ in PINS else None,
        references=17 + id_ % 5 if state == DYING else None,
        parent_id=_parent(path),
        dying_children=None if state == RELEASED else sum(_parent(p) == id_ for _, p, s, *_ in CGROUPS if s == DYING),
        own_kernel_bytes=_own(id_, 3, kernel) if state == ONLINE else None,
        own_slab_bytes=_own(id_, 4, slab) if state == ONLINE else None,
        subtree_charged_bytes_total=_subtree(path, duration),
        subtree_uncharged_bytes_total=_subtree(path, duration) * 9 // 10,
        subtree_allocations_total=duration * 1000 * sum(_is_below(p, path) for _, p, *_ in CGROUPS),
    )


def _is_below(path: str, top: str) -> bool:
    return path == top or top == "/" or path.startswith(f"{top}/")


def _parent(path: str) -> int | None:
    """id of the nearest cgroup above that is listed."""
    above = [(p, id_) for id_, p, *_ in CGROUPS if p != path and _is_below(path, p)]
    return max(above, key=lambda one: len(one[0]))[1] if above else None


def _own(id_: int, column: int, whole: int | None) -> int | None:
    below = sum(row[column] or 0 for row in CGROUPS if row[2] == ONLINE and _parent(row[1]) == id_)  # type: ignore[misc]
    return None if whole is None or whole < below else (whole - below) * MB


def _subtree(path: str, duration: int) -> int:
    return sum(int(charged * MB) for _, p, *_, charged in CGROUPS if _is_below(p, path)) * duration


def _mb(value: int | None) -> int | None:
    return None if value is None else value * MB


def _pairs(duration: int) -> list[Pair]:
    """Every third cache in every cgroup that charges; the share of a cgroup falls with its place in the list."""
    found = []
    for place, (id_, _, state, *_, charged) in enumerate(CGROUPS):
        if state == ONLINE and charged:
            for number in range(place % 3, len(CACHES), 3):
                name, size, allocs, frees = CACHES[number]
                allocs, frees = allocs // (place + 2), frees // (place + 2)
                # Those that are older than kmemwatch may have objects that were never counted.
                live = (allocs - frees) * size * duration if id_ >= 3000 else None
                address = 0xFFFF_8880_0100_0000 + number * 0x200
                found.append(
                    pair(name, IDS[address], id_, allocs * duration, allocs * size * duration, frees * duration, live)
                )
    return sorted(found, key=lambda p: (p.cgroup_id, p.cache))


def unknown(seconds: int = 0) -> Snapshot:
    """The same host seen by a kernel that can tell almost nothing."""
    known = sample(seconds)
    return replace(
        known,
        kernel=Kernel(None, None, None, None),
        probes=tuple(
            replace(p, attachment=None, status=MISSING, why="needs kprobes, which lockdown forbids") for p in PROBES
        ),
        caches=(
            row(
                Cache,
                name="dentry",
            ),
        ),
        cgroups=(
            row(
                Cgroup,
                id=7,
                state=ONLINE,
            ),
            row(
                Cgroup,
                id=9,
                path="/gone",
                state=DYING,
            ),
        ),
        pairs=(),
        lost=Lost(None, None, None, {}),
        totals=Totals(),
        release_delays_s=(),
    )


def empty(seconds: int = 0) -> Snapshot:
    """A host where nothing was found yet."""
    return replace(
        sample(seconds), caches=(), cgroups=(), pairs=(), totals=Totals(0, 0, 0, 0, 0, 0, 0), release_delays_s=()
    )


def lossy(seconds: int = 0) -> Snapshot:
    """A host of which kmemwatch lost events, which the screen must show."""
    reasons = MappingProxyType({"ringbuf_full": 1201, "recursion": 4, "pair_map_full": 0})
    return replace(sample(seconds), lost=Lost(1205, 0, 0, reasons))


CHILDREN = (
    # name, kmemcg_id, root, pages
    ("dentry(0)", 0, "dentry", 2000),
    ("dentry(3)", 3, "dentry", 700),
    ("dentry(4)", 4, "dentry", 384),
    ("ext4_inode_cache(0)", 0, "ext4_inode_cache", 900),
    ("filp(3)", 3, "filp", 60),
    ("inode_cache(3)", 3, "inode_cache", 80),
)
CHILD_ADDRESS = 0xFFFF_8880_0200_0000
CHILD_PROBES = (
    Probe("caches", "kretprobe:memcg_create_kmem_cache", ATTACHED, None),
    Probe("ids", "kretprobe:memcg_alloc_cache_id+kprobe:memcg_free_cache_id", ATTACHED, None),
    Probe("slabs", "raw_tp:test_run", ATTACHED, None),
)


def _child_caches() -> tuple[Cache, ...]:
    sizes = {name: size for name, size, *_ in CACHES}
    return tuple(
        row(
            Cache,
            name=name,
            id=IDS[CHILD_ADDRESS + place * 0x200],
            object_bytes=sizes[root],
            root=root,
            kmemcg_id=id_,
            slab_bytes=pages * 4096,
        )
        for place, (name, id_, root, pages) in enumerate(CHILDREN)
    )


def _held(place: int, pages: int) -> ChildSlabs:
    name, id_, *_ = CHILDREN[place]
    return ChildSlabs(name, IDS[CHILD_ADDRESS + place * 0x200], id_, pages * 4096)


def _with_children(known: Snapshot, held: Mapping[int, tuple[ChildSlabs, ...]]) -> Snapshot:
    """A host whose memcgs have caches of their own; what these hold of the dying is `held`."""
    cgroups = tuple(replace(c, child_slabs=held.get(c.id, ()) if c.state == DYING else None) for c in known.cgroups)
    return replace(known, cgroups=cgroups, caches=tuple(sorted(known.caches + _child_caches(), key=lambda c: c.name)))


def _id(kmemcg_id: int, owner: int | None, since_ns: int | None, previous: tuple[int, ...]) -> KmemcgId:
    pages = [pages for _, id_, _, pages in CHILDREN if id_ == kmemcg_id]
    return KmemcgId(kmemcg_id, owner, since_ns, previous, len(pages), sum(pages) * 4096)


def patched(seconds: int = 0) -> Snapshot:
    """A kernel with the patch set: dead memcgs have given their ids back, and their slabs move to who has them now."""
    known = _with_children(sample(seconds), {4001: (_held(1, 12), _held(5, 8)), DIED_BEFORE: (_held(2, 384),)})
    dying, none = 31 + 2 * seconds, 10
    return replace(
        known,
        kernel=Kernel("recharge", True, 1, "none"),
        probes=(*PROBES[:-1], Probe("recharge", "kprobe+kretprobe", ATTACHED, None), *CHILD_PROBES),
        recharges=Recharges(90_017 + 500 * seconds, 403 + dying + none, (403 + dying + none) * 4096, 2, pairs=(
            RechargePair("dentry(0)", 3000, ONLINE, 1101, 3, 3 * 4096, 0),
            RechargePair("filp(3)", None, FROM_NONE, 2101, none, none * 4096, 3),
            RechargePair("dentry(3)", 4001, DYING, 2101, dying, dying * 4096, 3),
        ), lost_races_total=1, totals=(
            RechargeTotal("dentry", DYING, 400 + dying, (400 + dying) * 4096),
            RechargeTotal("dentry", ONLINE, 3, 3 * 4096),
            RechargeTotal("filp", FROM_NONE, none, none * 4096),
        )),
        ids=Ids(2, 239, 5, (
            _id(0, 1101, None, ()),
            _id(3, 2101, START_NS + 10**9, (811, 4005, 4001)),
            _id(4, None, START_NS + 400 * 10**9, (2900, DIED_BEFORE)),
        ), 17, 15, "index of a memcg's child caches; given back when the memcg goes offline, and its caches with it"),
    )  # fmt: skip


def private(seconds: int = 0) -> Snapshot:
    """A kernel with child caches and without the patch set: the dead keep their ids and their caches."""
    known = _with_children(sample(seconds), {4001: (_held(1, 15), _held(4, 5)), DIED_BEFORE: (_held(2, 384),)})
    return replace(
        known,
        kernel=Kernel("per-memcg", False, 2, "none"),
        probes=(*PROBES, *CHILD_PROBES),
        ids=Ids(3, 239, 0, (
            _id(0, 1101, None, ()),
            _id(3, 4001, START_NS + 10**9, ()),
            _id(4, DIED_BEFORE, None, ()),
        ), 3, 1, "index of a memcg's child caches; a dying memcg keeps it, and them, until it is released"),
    )  # fmt: skip


def odd(seconds: int = 0) -> Snapshot:
    """Cgroups and caches with the names that break tables, JSON and Prometheus' text."""
    known = sample(seconds)
    first = known.cgroups[1]
    cgroups = tuple(replace(first, id=9000 + n, path=printable(name)) for n, name in enumerate(ODD_NAMES))
    caches = tuple(replace(known.caches[0], name=printable(name.strip("/"))) for name in ODD_NAMES)
    pairs = tuple(replace(known.pairs[0], cgroup_id=9000 + n, cache=c.name) for n, c in enumerate(caches))
    return replace(known, cgroups=cgroups, caches=caches, pairs=pairs)


def big(seconds: int = 0, cgroups: int = 5000, caches_each: int = 12) -> Snapshot:
    """A big host; a fifth of its cgroups is busy."""
    base = sample(seconds)
    duration = ATTACHED_S + seconds
    template = base.cgroups[3]
    rows, pairs = [], []
    for number in range(cgroups):
        id_ = 10_000 + number
        busy = duration if number % 5 == 0 else ATTACHED_S
        path = f"/kubepods.slice/kubepods-burstable.slice/pod-{number // 3:05d}/cri-containerd-{number:016x}.scope"
        rows.append(replace(template, id=id_, path=path, kernel_bytes=number * 4096, charged_bytes_total=number * busy))
        for place in range(caches_each):
            name, size, allocs, frees = CACHES[place % len(CACHES)]
            cache = name if place < len(CACHES) else f"{name}-{place}"
            pairs.append(pair(cache, None, id_, allocs * busy, allocs * size * busy, frees * busy, size * number))
    return replace(base, cgroups=tuple(rows), pairs=tuple(sorted(pairs, key=lambda p: (p.cgroup_id, p.cache))))


_DEAD = "/kubepods.slice/pod-a1/cri-ctr-dead01"
EVENTS = (
    Event(START_NS, "online", 4001, _DEAD, 811, "runc:[2:INIT]"),
    Event(START_NS + 10**9, "id_given", 4001, _DEAD, 811, "runc:[2:INIT]", kmemcg_id=3),
    Event(START_NS + 2 * 10**9, "cache_created", 4001, _DEAD, 77, "kworker/1:2", "dentry(3)", 3),
    Event(START_NS + 3 * 10**9, "id_freed", 4001, _DEAD, 1, "systemd", kmemcg_id=3),
    Event(START_NS + 4 * 10**9, "offline", 4001, _DEAD, 1, "systemd"),
    Event(START_NS + 5 * 10**9, "id_reused", 2101, "/a b\\nc", 900, "sh", kmemcg_id=3, other_cgroup_id=4001),
    Event(START_NS + 6 * 10**9, "recharge", 2101, "/a b\\nc", 901, "find", "dentry(3)", 3, 4001, 4096),
    Event(START_NS + 7 * 10**9, "recharge", 2101, "/a b\\nc", 901, "find", "dentry(3)", 3, None, 8192),
    Event(START_NS + 8 * 10**9, "recharge_failed", 2101, "/a b\\nc", 901, "find", "dentry(3)", 3, 2900),
    Event(START_NS + 9 * 10**9, "released", 4001, _DEAD),
    Event(START_NS + 10 * 10**9, "cache_destroyed", None, None, cache="dentry(3)", kmemcg_id=3),
    Event(START_NS + 11 * 10**9, "id_reused", None, None, 900, "sh", kmemcg_id=7),
)


def as_dict(part: Struct) -> dict[str, Any]:
    """A part of the model as parsed JSON."""
    found: dict[str, Any] = json.loads(to_json(part))
    return found


class FakeFeed:
    """Hands out the given snapshots one after the other, then stays at the last or ends."""

    def __init__(
        self,
        snapshots: Sequence[Snapshot | KmemwatchError],
        events: Sequence[Event] = (),
        *,
        title: str = "live",
        notice: str | None = None,
        ends: bool = False,
        waits: bool = False,
    ) -> None:
        self._left = list(snapshots)
        self._events = list(events)
        self._title, self._notice = title, notice
        self._ends, self._waits = ends, waits
        self._closed = threading.Event()
        self._last: Snapshot | None = None
        self.closed = 0
        self.delays: list[float] = []

    @property
    def title(self) -> str:
        return self._title

    @property
    def notice(self) -> str | None:
        return self._notice

    def next_snapshot(self, delay_s: float) -> Snapshot | None:
        self.delays.append(delay_s)
        if self._closed.is_set() or (not self._left and self._ends):
            return None
        if self._waits or not self._left:
            self._closed.wait(delay_s)  # nothing new: as a live feed would, but without using the processor
        if self._left:
            item = self._left.pop(0)
            if isinstance(item, KmemwatchError):
                raise item
            self._last = item
        return self._last

    def take_events(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events

    def wait_events(self, timeout_s: float) -> Sequence[Event] | None:
        if self._events:
            return [self._events.pop(0)]
        if self._ends or self._closed.is_set():
            return None
        time.sleep(min(timeout_s, 0.01))
        return ()

    def close(self) -> None:
        self.closed += 1
        self._closed.set()
