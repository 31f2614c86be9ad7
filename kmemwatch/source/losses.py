# SPDX-License-Identifier: GPL-2.0-only
"""Calls that kprobes did not count, read from the kernel's own counters, for which it has no interface.

The kernel skips a kprobe that is hit while another one is handled on the same CPU, for example in an interrupt, and a
return for which no instance was free. It counts both in its record of the probe, which the perf event that we hold
leads to. Everything on the way is verified; misses that cannot be verified stay unknown.

A later miss is not in that record: the kernel passes a hit to the program, but does not run the program while another
one, or a system call on a map, runs on that CPU. `KprobeMisses.hits` has the hits, and `MissedCalls` computes the rest.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kmemwatch.attach.handover import Handed
from kmemwatch.errors import raise_if_shortage
from kmemwatch.kernel.bpf_calls import program_info
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps import decode
from kmemwatch.maps.handles import MapReader, possible_cpus
from kmemwatch.maps.peek import Peek

_RETURN = "kretprobe"
_KINDS = ("kprobe", _RETURN)
_ENTRY_BYTES = 16
"""A probe sits behind what the compiler puts first: on x86 ``endbr64``, 4 bytes."""
_TOO_MANY = 1 << 48
"""No counter gets this large, and the pointers around it are larger on most machines."""


@dataclass(frozen=True, slots=True)
class _KprobeRecord:
    """Addresses of the kernel's counters for one of our kprobes."""

    missed_at: int
    without_instance_at: int | None
    """For returns only."""
    hits_at: int | None
    """Per-CPU pointer to the counters of hits."""


class _NotTheProbeError(Exception):
    """What lies at the address is not the expected probe."""


class KprobeMisses:
    """The kernel's own counters of our kprobes. Only valid while their perf events are open."""

    def __init__(self, peek: Peek, facts: Facts, links: Mapping[str, int]) -> None:
        """`links`: ``signal/kind:function`` -> descriptor that keeps it attached; those of other kinds are ignored.

        Raises ShortageError only; `why` has the reason if misses are unknown on this kernel.
        """
        self.why: str | None = None
        """Why misses are unknown; None when they are known."""
        self._peek = peek
        self._offsets = facts.offsets
        self._symbols = facts.symbols or {}
        self._probes: dict[str, _KprobeRecord] = {}
        try:
            for name, fd in links.items():
                kind, _, function = name.partition("/")[2].partition(":")
                if kind in _KINDS:
                    self._probes[name] = self._find(fd, function, kind == _RETURN)
        except KeyError as error:
            self.why = f"BTF has no {error.args[0].replace('__', '.')}"
        except (OSError, _NotTheProbeError) as error:
            raise_if_shortage(error)
            self.why = f"{name}: {error}"

    def read(self) -> Mapping[str, int] | None:
        """Calls that each kprobe has missed since it was made; None when that is unknown. Raises OSError.

        The kernel does not lock these counters: of two misses at the very same time on two CPUs, one may be counted.
        """
        if self.why is not None:
            return None
        missed = self._counters({name: probe.missed_at for name, probe in self._probes.items()}, 8)
        returns = {name: at for name, probe in self._probes.items() if (at := probe.without_instance_at) is not None}
        for name, without_instance in self._counters(returns, 4).items():
            missed[name] += without_instance
        return missed

    def hits(self) -> Mapping[str, int] | None:
        """Calls (returns, for a kretprobe) that each kprobe has seen since it was made, exactly; its program ran as
        often, or less. None when that is unknown: the kernel hides its data symbols. Raises OSError."""
        table = self._symbols.get("__per_cpu_offset", 0)
        pointers = {name: at for name, probe in self._probes.items() if (at := probe.hits_at) is not None}
        if self.why is not None or not table or len(pointers) < len(self._probes):
            return None
        number = possible_cpus()
        cpus = struct.unpack(f"={number}Q", self._peek.read(table, 8 * number))
        bases = self._counters(pointers, 8).values()
        per_cpu = self._numbers([(base + offset) % (1 << 64) for base in bases for offset in cpus], 8)
        return {name: sum(per_cpu[at * number :][:number]) for at, name in enumerate(pointers)}

    def _counters(self, addresses: Mapping[str, int], size: int) -> dict[str, int]:
        return dict(zip(addresses, self._numbers(list(addresses.values()), size), strict=True))

    def _numbers(self, addresses: Sequence[int], size: int) -> list[int]:
        """Memory at these addresses; one run of a program reads many. Raises OSError."""
        numbers = []
        for raw in self._peek.read_many(addresses, size):
            if raw is None:
                raise OSError("kernel memory cannot be read")
            numbers.append(int.from_bytes(raw, sys.byteorder))
        return numbers

    def _find(self, fd: int, function: str, at_return: bool) -> _KprobeRecord:
        """Raises KeyError for a member that this kernel lacks, OSError, _NotTheProbeError."""
        event = self._pointer(self._file(fd), "file__private_data")
        call = self._pointer(event, "perf_event__tp_event")
        head = call - self._offsets["trace_probe_event__call"] + self._offsets["trace_probe_event__probes"]
        node = self._peek.u64(head)
        # Several events can share a probe, but one that comes with a perf event is alone.
        if self._peek.u64(node) != head or self._peek.u64(node + 8) != head:
            raise _NotTheProbeError("the list of probes is not a list of one")
        address = node - self._offsets["trace_probe__list"] - self._offsets["trace_kprobe__tp"]
        self._verify(address, function, at_return)
        hits = self._offsets.get("trace_kprobe__nhit")
        return _KprobeRecord(
            missed_at=address + self._offsets["trace_kprobe__rp__kp__nmissed"],
            without_instance_at=address + self._offsets["trace_kprobe__rp__nmissed"] if at_return else None,
            hits_at=None if hits is None else address + hits,
        )

    def _file(self, fd: int) -> int:
        """Address of the ``struct file`` of one of our descriptors."""
        table = self._pointer(self._pointer(self._peek.u64(0), "task_struct__files"), "files_struct__fdt")
        return self._peek.u64(self._pointer(table, "fdtable__fd") + 8 * fd)

    def _pointer(self, address: int, member: str) -> int:
        return self._peek.u64(address + self._offsets[member])

    def _verify(self, address: int, function: str, at_return: bool) -> None:
        """Raises _NotTheProbeError unless a ``struct trace_kprobe`` of `function` lies there."""
        for member in ("trace_kprobe__symbol", "trace_kprobe__rp__kp__symbol_name"):
            name = self._peek.string(self._pointer(address, member), len(function) + 1)
            if name != function:
                raise _NotTheProbeError("it has the name of another function")
        at, known = self._pointer(address, "trace_kprobe__rp__kp__addr"), self._symbols.get(function, 0)
        if known and not known <= at < known + _ENTRY_BYTES:
            raise _NotTheProbeError("it is not at the address of the function")
        if bool(self._pointer(address, "trace_kprobe__rp__handler")) != at_return:
            raise _NotTheProbeError("it is at the entry where a return was expected, or the reverse")
        missed = self._pointer(address, "trace_kprobe__rp__kp__nmissed")
        if missed >= _TOO_MANY:
            raise _NotTheProbeError("its number of misses is too large")


_START_TRIES = 5


class MissedCalls:
    """Counts from its creation on, because nothing is exact while hooks are attached one after the other."""

    def __init__(self, handed: Handed, peek: Peek | None, readers: Mapping[str, MapReader]) -> None:
        self.why: str | None = None
        """Why the number of calls that kprobes missed is unknown; None if it is counted, or if there are no kprobes."""
        self._programs = {
            name: fd for name, fd in handed.programs.items() if "/" in name and _signal(name) != "latency"
        }
        """Timing is a sample, so a missed call is missing from no figure."""
        self._readers = readers
        kprobes = {name: fd for name, fd in handed.link_of.items() if _is_kprobe(name)}
        self._numbers = run_numbers(kprobes)
        self._misses: KprobeMisses | None = None
        if kprobes and peek is None:
            self.why = "kernel memory cannot be read"
        elif kprobes and peek is not None:
            self._misses = KprobeMisses(peek, handed.manifest.facts, kprobes)
            self.why = self._misses.why or self._why_not_run()
        self._skipped_before = self._skipped_at_start()
        self._reported = dict.fromkeys(self._skipped_before, 0)
        self._not_run_before = self._not_run_at_start()
        self._reported_not_run = dict.fromkeys(self._not_run_before, 0)

    def read(self) -> dict[str, int | None]:
        """Signal -> calls that were not counted; None: unknown. Raises OSError.

        The sum of three: runs that the kernel skipped because an interrupt hit while the program ran, less those that
        the hook's second program counted; calls that kprobes missed; and kprobe hits whose program did not run.
        """
        for signal, count in self._skipped_until_now().items():
            self._reported[signal] = max(self._reported.get(signal, 0), count - self._skipped_before.get(signal, 0))
        skipped: dict[str, int | None] = dict(self._reported)
        for name, count in (self.not_run() or {}).items():
            skipped[_signal(name)] = (skipped.get(_signal(name)) or 0) + count
        if self.why is not None:
            skipped.update(dict.fromkeys(map(_signal, self._numbers), None))
        return skipped

    def not_run(self) -> dict[str, int] | None:
        """Kprobe (``signal/kind:target``) -> hits for which its program did not run. None: unknown. Raises OSError."""
        if self.why is not None or self._misses is None:
            return None
        # Read hits first. What comes in between then adds runs and no hits, so under load each reading is too low, and
        # the highest one so far is closest.
        for name, count in self._hits_less_runs(hits_first=True).items():
            self._reported_not_run[name] = max(self._reported_not_run[name], count - self._not_run_before[name])
        return dict(self._reported_not_run)

    def _skipped_at_start(self) -> dict[str, int]:
        """Skipped runs before the start. As in `_skipped_until_now`, the highest of several readings is closest."""
        looks = [self._skipped_until_now() for _ in range(_START_TRIES)]
        return {signal: max(look.get(signal, 0) for look in looks) for signal in looks[0]}

    def _skipped_until_now(self) -> dict[str, int]:
        """All losses except those of `not_run`.

        It reads the counts of second programs last. They include what came in between, so a reading may be too low,
        and a later one lower than an earlier one. A counter must not fall, because its readers take that for a restart.
        """
        skipped: dict[str, int] = {}
        for name, fd in self._programs.items():
            # For kprobes the kernel has this only since v6.7, and `not_run` counts the same.
            is_counted = not _is_kprobe(name) and "/missed:" not in name
            misses = program_info(fd).recursion_misses if is_counted else None
            if misses is not None:
                skipped[_signal(name)] = skipped.get(_signal(name), 0) + misses
        for name, missed in ((self._misses.read() if self._misses is not None else None) or {}).items():
            skipped[_signal(name)] = skipped.get(_signal(name), 0) + missed
        if "missed_runs" in self._readers:
            _, sums = self._readers["missed_runs"].sums()
            for signal, (made_up_for,) in zip(decode.MISSED_SIGNALS, sums, strict=True):
                if signal in skipped:
                    skipped[signal] -= made_up_for
        return skipped

    def _why_not_run(self) -> str | None:
        if "runs" not in self._readers:
            return "its programs do not count their runs"
        if self._misses is None or self._misses.hits() is None:
            return "the kernel's counters of hits were not found"
        return None

    def _hits_less_runs(self, hits_first: bool) -> dict[str, int]:
        """Kprobe -> hits less the runs of its program."""
        assert self._misses is not None
        hits = self._misses.hits() if hits_first else None
        _, sums = self._readers["runs"].sums()
        hits = hits if hits_first else self._misses.hits()
        return {name: count - sums[self._numbers[name]][0] for name, count in (hits or {}).items()}

    def _not_run_at_start(self) -> dict[str, int]:
        """Missed runs before the start. Calls that come meanwhile make each reading too high, so the lowest of several
        is closest, and no loss is reported that did not happen."""
        if self.why is not None or self._misses is None:
            return {}
        tries = [self._hits_less_runs(hits_first=False) for _ in range(_START_TRIES)]
        return {name: min(one[name] for one in tries) for name in tries[0]}


def run_numbers(names: Iterable[str]) -> dict[str, int]:
    """Program of a kprobe (``signal/kind:target``) -> its number in ``enum runs``."""
    names = [name for name in names if _is_kprobe(name)]
    order: Sequence[str] = list(dict.fromkeys(name.partition("/")[2] for name in names))
    return {name: order.index(name.partition("/")[2]) for name in names}


def _is_kprobe(name: str) -> bool:
    return name.partition("/")[2].partition(":")[0] in _KINDS


def _signal(name: str) -> str:
    return name.partition("/")[0].removesuffix("-bulk")
