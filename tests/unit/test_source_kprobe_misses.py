# SPDX-License-Identifier: GPL-2.0-only
"""Misses of kprobes, on memory that the test has made with the layout of each recorded kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from kmemwatch.kernel.facts import Facts
from kmemwatch.source import losses as module
from kmemwatch.source.losses import KprobeMisses
from tests.unit.fake_source import recorded_facts
from tests.unit.test_attach_discover import FakeMemory

KERNELS = ("debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2")
TASK, FILES, TABLE, DESCRIPTORS = (0xFFFF888000000000 + 0x10000 * number for number in range(4))
PER_CPU_TABLE, FREE, KFREE = 0xFFFFFFFF82000000, 0xFFFFFFFF81300000, 0xFFFFFFFF81310000
PROBES, PER_CPU, STEP = 0xFFFF888010000000, 0x607F40000000, 0x100000
CPUS = (0xFFFF888100000000, 0xFFFF888200000000, 2**64 - PER_CPU // 2)
"""What the kernel adds to a per-CPU address; of a chunk that lies low, the sum wraps."""


@dataclass
class Made:
    """A kprobe in the memory: addresses that the test may change."""

    probe: int
    head: int
    hits_at: int


class Kernel:
    """A process with open perf events of kprobes."""

    def __init__(self, facts: Facts) -> None:
        symbols = {"__per_cpu_offset": PER_CPU_TABLE, "kmem_cache_free": FREE, "kfree": KFREE}
        self.facts = replace(facts, symbols=symbols)
        self.memory = FakeMemory()
        self.links: dict[str, int] = {}
        self.made: dict[str, Made] = {}
        self.memory.put(0, 0, struct.pack("=Q", TASK), 8)  # all that there is: address 0 stands for it
        self._point(TASK, self._at("task_struct__files"), FILES)
        self._point(FILES, self._at("files_struct__fdt"), TABLE)
        self._point(TABLE, self._at("fdtable__fd"), DESCRIPTORS)
        self.memory.put(PER_CPU_TABLE, 0, struct.pack("=3Q", *CPUS))

    def _at(self, member: str) -> int:
        return self.facts.offsets[member]

    def _point(self, address: int, offset: int, to: int) -> None:
        self.memory.put_u64(address, offset, to)

    def set(self, name: str, member: str, value: int) -> None:
        """A member of 8 bytes of ``struct trace_kprobe``."""
        self._point(self.made[name].probe, self._at(f"trace_kprobe__{member}"), value)

    def add(self, name: str, address: int, at_return: bool = False) -> None:
        """As the kernel keeps it: link, file, perf event, event of the probe, list of its probes, the probe."""
        fd = 40 + len(self.links)
        base = PROBES + STEP * len(self.links)
        file, event, probe_event, probe, text = (base + 0x10000 * number for number in range(5))
        self._point(DESCRIPTORS, 8 * fd, file)
        self._point(file, self._at("file__private_data"), event)
        self._point(event, self._at("perf_event__tp_event"), probe_event + self._at("trace_probe_event__call"))
        head = probe_event + self._at("trace_probe_event__probes")
        node = self._at("trace_kprobe__tp") + self._at("trace_probe__list")
        for link in (0, 8):
            self._point(probe_event, self._at("trace_probe_event__probes") + link, probe + node)
            self._point(probe, node + link, head)
        self.memory.put(text, 0, name.rpartition(":")[2].encode() + b"\0")
        self.links[name] = fd
        hits_at = PER_CPU + 64 * len(self.links)
        self.made[name] = Made(probe, head, hits_at)
        self.set(name, "symbol", text)
        self.set(name, "rp__kp__symbol_name", text)
        self.set(name, "rp__kp__addr", address)
        self.set(name, "rp__handler", 0xFFFFFFFF81200000 if at_return else 0)
        self.set(name, "nhit", hits_at)

    def count_hits(self, name: str, per_cpu: tuple[int, ...]) -> None:
        for cpu, hits in zip(CPUS, per_cpu, strict=True):
            self.memory.put((self.made[name].hits_at + cpu) % 2**64, 0, struct.pack("=Q", hits), 8)

    def misses(self) -> KprobeMisses:
        return KprobeMisses(self.memory, self.facts, self.links)


ENTRY, RETURN = "free/kprobe:kfree", "free/kretprobe:kmem_cache_free"


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(module, "possible_cpus", lambda: len(CPUS))
    made = Kernel(recorded_facts(request.param))
    made.add(ENTRY, KFREE)
    made.add(RETURN, FREE + 4, at_return=True)
    return made


def test_misses_of_entries_and_returns(kernel: Kernel) -> None:
    counters = kernel.misses()
    assert counters.why is None
    assert counters.read() == {ENTRY: 0, RETURN: 0}
    kernel.set(ENTRY, "rp__kp__nmissed", 7)
    kernel.set(RETURN, "rp__kp__nmissed", 2**33)
    returns = struct.pack("=I", 5)
    for name in (ENTRY, RETURN):
        kernel.memory.put(kernel.made[name].probe, kernel.facts.offsets["trace_kprobe__rp__nmissed"], returns)
    assert counters.read() == {ENTRY: 7, RETURN: 2**33 + 5}, "what an entry keeps there is not its own"


def test_hits_are_the_sum_over_all_cpus(kernel: Kernel) -> None:
    kernel.count_hits(ENTRY, (1, 20, 300))
    kernel.count_hits(RETURN, (0, 0, 2**40))
    assert kernel.misses().hits() == {ENTRY: 321, RETURN: 2**40}


def test_hits_are_unknown_where_the_kernel_hides_its_data(kernel: Kernel) -> None:
    for symbols in (None, {}, {"__per_cpu_offset": 0}):
        kernel.facts = replace(kernel.facts, symbols=symbols)
        counters = kernel.misses()
        assert counters.read() == {ENTRY: 0, RETURN: 0}, "by their names alone"
        assert counters.hits() is None
    kernel.facts = replace(kernel.facts, offsets=without(kernel.facts, "trace_kprobe__nhit"))
    assert kernel.misses().hits() is None


def without(facts: Facts, member: str) -> dict[str, int]:
    return {name: at for name, at in facts.offsets.items() if name != member}


def test_other_links_are_no_matter_and_no_kprobe_misses_nothing(kernel: Kernel) -> None:
    others = {"free/raw_tp:kfree": 1, "alloc/fexit:kmem_cache_alloc": 2, "alloc/missed:kmem_cache_alloc": 3}
    kernel.links |= others
    assert kernel.misses().read() == {ENTRY: 0, RETURN: 0}
    kernel.links = others
    assert (kernel.misses().read(), kernel.misses().why) == ({}, None)
    nowhere = KprobeMisses(FakeMemory(), recorded_facts("6.18-lockdown"), others)
    assert nowhere.read() == {}, "no kprobe, and no kprobes in this kernel: nothing is looked up"


def test_a_kernel_whose_types_are_not_known(kernel: Kernel) -> None:
    kernel.facts = recorded_facts("6.18-lockdown")
    assert kernel.misses().read() is None
    assert kernel.misses().hits() is None


NEEDED = (
    "file__private_data",
    "perf_event__tp_event",
    "trace_probe_event__call",
    "trace_probe_event__probes",
    "trace_probe__list",
    "trace_kprobe__tp",
    "trace_kprobe__symbol",
    "trace_kprobe__rp__handler",
    "trace_kprobe__rp__nmissed",
    "trace_kprobe__rp__kp__addr",
    "trace_kprobe__rp__kp__nmissed",
    "trace_kprobe__rp__kp__symbol_name",
)


@pytest.mark.parametrize("member", NEEDED)
def test_a_member_that_btf_lacks(kernel: Kernel, member: str) -> None:
    kernel.facts = replace(kernel.facts, offsets=without(kernel.facts, member))
    counters = kernel.misses()
    assert (counters.read(), counters.hits()) == (None, None)
    assert counters.why == f"BTF has no {member.replace('__', '.')}"


def _other_name(kernel: Kernel) -> None:
    kernel.set(ENTRY, "symbol", kernel.made[RETURN].probe + 0x10000)


def _longer_name(kernel: Kernel) -> None:
    kernel.memory.put(kernel.made[ENTRY].probe + 0x10000, 0, b"kfree_sensitive\0")


def _no_name(kernel: Kernel) -> None:
    kernel.set(ENTRY, "rp__kp__symbol_name", 0)


def _other_place(kernel: Kernel) -> None:
    kernel.set(ENTRY, "rp__kp__addr", KFREE + 16)


def _before_it(kernel: Kernel) -> None:
    kernel.set(ENTRY, "rp__kp__addr", KFREE - 1)


def _entry_is_return(kernel: Kernel) -> None:
    kernel.set(ENTRY, "rp__handler", 0xFFFFFFFF81200000)


def _return_is_entry(kernel: Kernel) -> None:
    kernel.set(RETURN, "rp__handler", 0)


def _pointer_for_a_count(kernel: Kernel) -> None:
    kernel.set(RETURN, "rp__kp__nmissed", FREE)


def _longer_list(kernel: Kernel) -> None:
    offsets = kernel.facts.offsets
    node = offsets["trace_kprobe__tp"] + offsets["trace_probe__list"]
    kernel.memory.put_u64(kernel.made[ENTRY].probe, node, kernel.made[RETURN].probe + node)


def _broken_list(kernel: Kernel) -> None:
    offsets = kernel.facts.offsets
    node = offsets["trace_kprobe__tp"] + offsets["trace_probe__list"]
    kernel.memory.put_u64(kernel.made[ENTRY].probe, node + 8, 0)


def _closed(kernel: Kernel) -> None:
    kernel.links[ENTRY] = 39


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_other_name, "has the name of another function"),
        (_longer_name, "has the name of another function"),
        (_no_name, "has the name of another function"),
        (_other_place, "not at the address of the function"),
        (_before_it, "not at the address of the function"),
        (_entry_is_return, "or the reverse"),
        (_return_is_entry, "or the reverse"),
        (_pointer_for_a_count, "number of misses is too large"),
        (_longer_list, "not a list of one"),
        (_broken_list, "not a list of one"),
        (_closed, "cannot be read"),
    ],
)
def test_what_is_not_the_probe_is_unknown_and_says_why(
    kernel: Kernel, damage: Callable[[Kernel], None], why: str
) -> None:
    kernel.count_hits(ENTRY, (1, 1, 1))
    damage(kernel)
    counters = kernel.misses()
    assert (counters.read(), counters.hits()) == (None, None)
    assert counters.why is not None
    assert counters.why.startswith(f"{RETURN if damage in (_return_is_entry, _pointer_for_a_count) else ENTRY}: ")
    assert why in counters.why
    assert "\n" not in counters.why


def test_memory_that_goes_away_later_is_an_error(kernel: Kernel) -> None:
    counters = kernel.misses()
    kernel.memory.parts.clear()
    with pytest.raises(OSError, match="cannot be read"):
        counters.read()
