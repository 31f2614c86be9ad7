# SPDX-License-Identifier: GPL-2.0-only
"""Calls that a kprobe did not see: where the kernel counts them, which it tells nobody about.

A kprobe that is hit while another one is being handled on the same CPU, in an interrupt for example, is left out, and
so is a return for which no instance was free. Both are counted in the kernel's own record of the probe, which the perf
event that we hold leads to. Everything on the way is verified: misses that cannot be told stay unknown.

Not counted there is what comes later: `KprobeMisses.hits` has the calls that were handed to the program, which does not
run while another one, or a system call on a map, is at work on that CPU. That is `skips.Skips`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmemwatch.errors import raise_if_shortage
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.handles import possible_cpus
from kmemwatch.maps.peek import Peek

_RETURN = "kretprobe"
_KINDS = ("kprobe", _RETURN)
_ENTRY_BYTES = 16
"""A probe sits behind what the compiler puts first: on x86 ``endbr64``, 4 bytes."""
_TOO_MANY = 1 << 48
"""No counter comes this far, and the pointers around it are higher on most machines."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """Where the kernel counts for one of our kprobes."""

    missed_at: int
    without_instance_at: int | None
    """Returns only."""
    hits_at: int | None
    """Pointer to a counter of each CPU."""


class _NotTheProbeError(Exception):
    """What was found is not the probe that was looked for."""


class KprobeMisses:
    """The kernel's own counters of our kprobes. Only valid while their perf events are open."""

    def __init__(self, peek: Peek, facts: Facts, links: Mapping[str, int]) -> None:
        """`links`: ``signal/kind:function`` -> descriptor that keeps it attached; those of other kinds are ignored.

        Raises ShortageError only: `why` has the reason when this kernel does not tell.
        """
        self.why: str | None = None
        """Why misses are unknown; None when they are known."""
        self._peek = peek
        self._offsets = facts.offsets
        self._symbols = facts.symbols or {}
        self._probes: dict[str, _Probe] = {}
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
        """What lies at these addresses, with one run of a program for many. Raises OSError."""
        numbers = []
        for raw in self._peek.read_many(addresses, size):
            if raw is None:
                raise OSError("kernel memory cannot be read")
            numbers.append(int.from_bytes(raw, sys.byteorder))
        return numbers

    def _find(self, fd: int, function: str, at_return: bool) -> _Probe:
        """Raises KeyError for a member that this kernel lacks, OSError, _NotTheProbeError."""
        event = self._pointer(self._file(fd), "file__private_data")
        call = self._pointer(event, "perf_event__tp_event")
        head = call - self._offsets["trace_probe_event__call"] + self._offsets["trace_probe_event__probes"]
        node = self._peek.u64(head)
        # Probes of several events can be joined, but those that come with a perf event are alone.
        if self._peek.u64(node) != head or self._peek.u64(node + 8) != head:
            raise _NotTheProbeError("the list of probes is not a list of one")
        address = node - self._offsets["trace_probe__list"] - self._offsets["trace_kprobe__tp"]
        self._verify(address, function, at_return)
        hits = self._offsets.get("trace_kprobe__nhit")
        return _Probe(
            missed_at=address + self._offsets["trace_kprobe__rp__kp__nmissed"],
            without_instance_at=address + self._offsets["trace_kprobe__rp__nmissed"] if at_return else None,
            hits_at=None if hits is None else address + hits,
        )

    def _file(self, fd: int) -> int:
        """Address of the ``struct file`` that a descriptor of ours stands for."""
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
            raise _NotTheProbeError("it sits somewhere else than the function")
        if bool(self._pointer(address, "trace_kprobe__rp__handler")) != at_return:
            raise _NotTheProbeError("entry and return are not told apart")
        missed = self._pointer(address, "trace_kprobe__rp__kp__nmissed")
        if missed >= _TOO_MANY:
            raise _NotTheProbeError("its number of misses is none")
