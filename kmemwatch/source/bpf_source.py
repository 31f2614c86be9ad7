# SPDX-License-Identifier: GPL-2.0-only
"""The attached programs as a Source: reads their maps, polls their ring buffer, walks the tree of memcgs."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import add

from msgspec import structs

from kmemwatch.attach.discover import CacheList, CacheRecord
from kmemwatch.attach.handover import Handed, ProbeResult
from kmemwatch.errors import KmemwatchError, raise_if_shortage
from kmemwatch.kernel.bpf_calls import program_info
from kmemwatch.kernel.facts import RECHARGE_FUNCTION
from kmemwatch.maps import decode
from kmemwatch.maps.decode import MAX_CHILD_SLABS, LifecycleEvent, MemcgRecord, SlabEvent
from kmemwatch.maps.handles import MapReader, Ring
from kmemwatch.maps.peek import Peek
from kmemwatch.maps.slots import Slots, slot_windows
from kmemwatch.model import Latency, MapFill, Probe
from kmemwatch.source.latency import latency
from kmemwatch.source.losses import MissedCalls
from kmemwatch.source.lru import LruLists
from kmemwatch.source.reading import FinalCounts, MapCounts, PairKey, Reading, RechargeCounts, RechargeKey, SourceInfo
from kmemwatch.source.scan import SlabScan
from kmemwatch.units import printable


class BpfSource:
    """A Source of the kernel that runs here. Owns every descriptor; `close` detaches all."""

    def __init__(self, handed: Handed) -> None:
        self._handed = handed
        manifest = handed.manifest
        self.info = SourceInfo(
            facts=manifest.facts,
            probes=tuple(_probe(result, manifest.learn_error) for result in manifest.probes),
            stats_index=manifest.stats_index,
            slab_account=manifest.slab_account,
            attached_at_monotonic_ns=time.monotonic_ns(),
        )
        self._events: list[LifecycleEvent | SlabEvent] = []
        self._readers = {name: MapReader(handle) for name, handle in handed.maps.items() if handle.key_bytes}
        slots = handed.maps.get("slots")
        self._slots = None if slots is None else Slots(slot_windows(slots))
        self._ring = Ring(handed.maps["events"].fd, self._on_event) if "events" in handed.maps else None
        self._peek: Peek | None = None
        self._lru: LruLists | None = None
        self._caches: CacheList | None = None
        if {"peek", "walk"} <= handed.programs.keys():
            self._peek = Peek(handed.programs, handed.maps, manifest.stats_count)
            if LruLists.are_known(manifest.facts):
                self._lru = LruLists(self._peek, manifest.facts)
            if manifest.first_cache:
                self._caches = CacheList(self._peek, manifest.facts, manifest.first_cache)
        self._scan = _slab_scan(handed)
        self._missed_calls = MissedCalls(handed, self._peek, self._readers)
        self.info = replace(self.info, probes=tuple(_with_misses(p, self._missed_calls.why) for p in self.info.probes))
        self._closed = False

    def _on_event(self, raw: bytes) -> None:
        self._events.append(decode.event(raw))

    def poll(self, timeout_s: float) -> list[LifecycleEvent | SlabEvent]:
        """Events since the last call; waits up to `timeout_s` for the first."""
        if self._ring is None:
            time.sleep(timeout_s)
        else:
            self._ring.poll(int(timeout_s * 1000))
        events, self._events = self._events, []
        return events

    def read(self) -> Reading:
        """Present totals. Raises KmemwatchError when the kernel refuses what it allowed before."""
        started = time.monotonic_ns()
        try:
            # Walk first: a memcg that is missing there has its final counts in the maps, which are read afterwards.
            memcgs = self._read_memcgs()
            return Reading(
                at_monotonic_ns=started,
                host_bytes=os.sysconf("SC_PHYS_PAGES") * self.info.facts.page_bytes,
                memcgs=memcgs,
                caches=self._read_caches(),
                pairs=self._read_pairs(),
                charges=self._read_charges(),
                failed_allocations=self._read_failed_allocations(),
                recharges=self._read_recharges(),
                child_slabs=self._read_child_slabs(memcgs or ()),
                latency=self._read_latency(),
                lost=self._read_lost(),
                maps=self._fill,
            )
        except OSError as error:
            raise_if_shortage(error, "reading the BPF maps")
            raise KmemwatchError(f"reading the BPF maps: {error.strerror or error}") from error

    def _read_memcgs(self) -> list[MemcgRecord] | None:
        self._fill: tuple[MapFill, ...] = ()
        if self._peek is None:
            return None
        records = self._peek.memcgs()
        if self._lru is not None:
            dying = [index for index, record in enumerate(records) if not record.online]
            for index, pages in zip(dying, self._lru.read([records[i].css for i in dying]), strict=True):
                records[index] = records[index]._replace(lru=pages)
        return records

    def _read_caches(self) -> list[CacheRecord] | None:
        return None if self._caches is None else self._caches.read()

    def _read_pairs(self) -> dict[PairKey, MapCounts] | None:
        reader = self._readers.get("pairs")
        if reader is None or self._slots is None:
            return None
        counts = self._slots.read()
        keys, sums = reader.sums(decode.PAIR_VALUE)
        self._fill += (MapFill("pairs", len(sums), reader.handle.max_entries),)
        for key, row in zip(decode.PAIR_KEY.iter_unpack(keys), sums, strict=True):
            before = counts.get(key)
            counts[key] = row if before is None else tuple(map(add, before, row))
        return counts

    def _read_charges(self) -> dict[int, MapCounts] | None:
        reader = self._readers.get("charges")
        if reader is None:
            return None
        keys, sums = reader.sums(decode.CHARGE_VALUE)
        self._fill += (MapFill("charges", len(sums), reader.handle.max_entries),)
        ids = (row[0] for row in struct.iter_unpack("=Q", keys))
        return dict(zip(ids, sums, strict=True))

    def _read_failed_allocations(self) -> dict[int, int] | None:
        reader = self._readers.get("failed_allocations")
        if reader is None:
            return None
        keys, sums = reader.sums()
        return dict(zip((row[0] for row in struct.iter_unpack("=Q", keys)), (row[0] for row in sums), strict=True))

    def _read_recharges(self) -> RechargeCounts | None:
        reader = self._readers.get("recharges")
        if reader is None or not self.info.gives("recharge"):
            return None
        _, counts = self._readers["recharge_counts"].sums()
        keys, sums = reader.sums(decode.RECHARGE_VALUE)
        self._fill += (MapFill("recharges", len(sums), reader.handle.max_entries),)
        moves = {}
        for (cache, from_id, to_id, state), row in zip(decode.RECHARGE_KEY.iter_unpack(keys), sums, strict=True):
            moves[RechargeKey(cache, from_id, to_id, decode.RECHARGE_FROM[state])] = row
        calls = dict(zip(decode.RECHARGE_COUNTS, (row[0] for row in counts), strict=True))
        return RechargeCounts(**calls, moves=moves)

    def _read_child_slabs(self, memcgs: Sequence[MemcgRecord]) -> Mapping[int, Mapping[int, int]] | None:
        if self._scan is None:
            return None
        found = self._scan.read([record.cgroup_id for record in memcgs if not record.online])
        self._fill += (MapFill("child_slabs", self._scan.entries, MAX_CHILD_SLABS),)
        return found

    def _read_latency(self) -> Latency | None:
        reader = self._readers.get("latency")
        timed = self._readers["timed"].lookup(bytes(4)) if "timed" in self._readers else None
        if reader is None or timed is None or not self.info.gives("latency"):
            return None
        _, sums = reader.sums(decode.LATENCY_VALUE)
        return latency(timed, sums, f"latency/entry:{RECHARGE_FUNCTION}" in self._handed.programs)

    def _read_lost(self) -> dict[str, int | None]:
        _, sums = self._readers["lost"].sums()
        lost: dict[str, int | None] = {reason: row[0] for reason, row in zip(decode.LOST_REASONS, sums, strict=True)}
        lost.update({f"skipped_{signal}": count for signal, count in self._missed_calls.read().items()})
        lost["undecodable"] = self._ring.decode_errors if self._ring else 0
        return lost

    def program_runs(self) -> dict[str, tuple[int, int]]:
        """Program -> (runs, nanoseconds), for programs whose runs the kernel has counted. It counts only while
        kernel.bpf_stats_enabled is set, or while a process asks for it."""
        found = {}
        for name, fd in self._handed.programs.items():
            stats = program_info(fd)
            if stats.run_cnt:
                found[name] = (stats.run_cnt, stats.run_time_ns)
        return found

    def drop(self, final: FinalCounts) -> None:
        """Drop these counters from the maps."""
        if self._slots is not None:
            self._slots.drop(final.pairs)
        self._delete("pairs", (decode.PAIR_KEY.pack(*key) for key in final.pairs))
        self._delete("charges", (struct.pack("=Q", cgroup_id) for cgroup_id in final.cgroup_ids))
        states = {state: number for number, state in enumerate(decode.RECHARGE_FROM)}
        self._delete(
            "recharges",
            (
                decode.RECHARGE_KEY.pack(key.cache, key.from_id, key.to_id, states[key.from_state])
                for key in final.recharges
            ),
        )

    def _delete(self, name: str, keys: Iterable[bytes]) -> None:
        reader = self._readers.get(name)
        if reader is not None:
            for key in keys:
                reader.delete(key)

    def close(self) -> None:
        """Detach; harmless when called twice."""
        if self._closed:
            return
        self._closed = True
        if self._ring is not None:
            self._ring.close()
        for reader in (self._peek, self._scan):
            if reader is not None:
                reader.close()
        self._handed.close()


def _slab_scan(handed: Handed) -> SlabScan | None:
    """None if there are no child caches, or if slabs cannot be found."""
    manifest = handed.manifest
    if "scan" not in handed.programs or not manifest.page_base or not manifest.first_cache:
        return None
    sizes = manifest.facts.page_bytes, manifest.facts.sizes["page"]
    return SlabScan(handed.programs["scan"], handed.maps, manifest.page_base, sizes, manifest.first_cache)


def _probe(result: ProbeResult, learn_error: str | None) -> Probe:
    why = result.why
    if learn_error and result.signal in ("alloc", "free", "slabs"):
        why = "; ".join(filter(None, [why, f"caches are not known by name: {learn_error}"]))
    return Probe(result.signal, result.attachment, result.status, why and printable(why))


def _with_misses(probe: Probe, unknown: str | None) -> Probe:
    """`unknown`: why the number of calls that kprobes miss is unknown; None if it is counted."""
    if unknown is None or "kprobe:" not in (probe.attachment or ""):
        return probe
    return structs.replace(
        probe, why="; ".join(filter(None, [probe.why, f"what kprobes miss is not counted: {printable(unknown)}"]))
    )
