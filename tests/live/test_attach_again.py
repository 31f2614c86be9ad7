# SPDX-License-Identifier: GPL-2.0-only
"""Attach and detach a hundred times: memory of the process and of the kernel does not grow, and nothing stays
attached."""

from __future__ import annotations

import copy
import gc
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.attach import warm_start
from kmemwatch.attach.handover import Handed, Manifest
from kmemwatch.feeds.live import LiveFeed, LiveOptions, open_live
from kmemwatch.source.bpf_source import BpfSource
from tests.bpf_objects import KINDS, kprobe_events, kprobe_list, loaded
from tests.needs import NEEDS
from tests.waiting import settled

ROUNDS = 100
THROUGH_CHILD = 2
"""Rounds with the child. In the others this process does the child's work, because a start takes 5 s in a guest."""
WHOLE_EVERY = 40
"""The other rounds go without what is attached to nothing, and with small maps: to check those programs and to fill
those maps takes the kernel ten times as long as all the rest."""
SLOW = frozenset({"kmem_cache_free_bulk", "__rcu_free_sheaf_prepare"})
"""Their loop takes the kernel as long to check as all other programs together."""
SMALL_ENTRIES = 1024
SMALL_RING_BYTES = 1 << 16
WARM_UP = 10
"""Rounds after which memory may not grow: allocators and the kernel's pools are filled by then."""
MEASUREMENTS = 3
"""Others on the machine take kernel memory too, now and then; what is lost here is lost in each measurement."""
OWN_BYTES = 2 << 20
KERNEL_BYTES = 6 << 20
"""At most, over ROUNDS - WARM_UP rounds; if each of 20 programs lost one page a round, it would be 7 MB."""
_KERNEL_MEMORY = ("SUnreclaim", "Percpu", "VmallocUsed", "KernelStack")
BPF_RINGBUF = 27
_PAGE = os.sysconf("SC_PAGE_SIZE")

# 5.10 refuses a program of type fentry, and a start that had to fall back is not kept; without fentry it need not.
WITHOUT = () if NEEDS["first choices"]() else ("fentry",)


def own_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def kernel_bytes() -> Counter[str]:
    """Kernel memory that nobody can reclaim, of the whole machine, by kind."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) << 10 for words in lines}
    return Counter({name: sizes.get(name, 0) for name in _KERNEL_MEMORY})


def objects() -> set[tuple[str, object]]:
    """Everything that attaching makes and that stays if somebody does not close it."""
    found: set[tuple[str, object]] = {(kind, number) for kind in KINDS for number in loaded(kind)}
    found |= {("kprobe event", line) for line in kprobe_events().splitlines()}
    found |= {("kprobe", line) for line in kprobe_list()}
    found |= {("thread", thread) for thread in os.listdir("/proc/self/task")}  # noqa: PTH208 - Path needs descriptors
    return found | {("descriptor", number) for number in os.listdir("/proc/self/fd")}  # noqa: PTH208


def attach_here(kept: dict[str, Any]) -> LiveFeed:
    """What the child does of a warm start, and what its parent does with it, in one process."""
    raw, descriptors = warm_start.start_from(kept)
    manifest, numbers = Manifest.from_raw(raw), iter(descriptors)
    programs = {name: next(numbers) for name in manifest.programs}
    maps = {handle.name: replace(handle, fd=next(numbers)) for handle in manifest.maps}
    return LiveFeed(BpfSource(Handed(manifest, programs, maps, tuple(numbers))))


def smaller(kept: dict[str, Any]) -> dict[str, Any]:
    """The same programs, attached in the same way, with small maps; without those that are attached to nothing, and
    without SLOW."""
    small = copy.deepcopy(kept)
    attached = [program["kind"] != "test_run" and program["target"] not in SLOW for program in small["programs"]]
    small["programs"] = list(compress(small["programs"], attached))
    small["manifest"]["programs"] = list(compress(small["manifest"]["programs"], attached))
    for definition, told in zip(small["maps"], small["manifest"]["maps"], strict=True):
        kind, entries = definition[0], definition[4]
        definition[4] = min(entries, SMALL_RING_BYTES if kind == BPF_RINGBUF else SMALL_ENTRIES)
        told["max_entries"] = min(told["max_entries"], SMALL_ENTRIES)
    return small


def use(feed: LiveFeed, whole: bool = True) -> None:
    try:
        taken = feed.next_snapshot(0)
        assert taken is not None
        assert taken.cgroups or not whole
    finally:
        feed.close()


def test_a_hundred_times(patience: Callable[[float], float]) -> None:
    before = objects()
    for _ in range(THROUGH_CHILD):
        use(open_live(LiveOptions(WITHOUT)))
    kept = warm_start.load(warm_start.DIRECTORY, warm_start.key(WITHOUT))
    assert kept is not None, "the start was not kept"
    small = smaller(kept)

    def rounds(numbers: range) -> None:
        for number in numbers:
            whole = number % WHOLE_EVERY == 0
            use(attach_here(kept if whole else small), whole)

    rounds(range(THROUGH_CHILD, WARM_UP))
    at_first = _at_rest(before, patience)
    for _ in range(MEASUREMENTS):
        rounds(range(WARM_UP, ROUNDS))
        now = _at_rest(before, patience)
        ours, kernels = now[0] - at_first[0], now[1].copy()
        kernels.subtract(at_first[1])
        print(f"grown by {ours} bytes, the kernel by {dict(kernels)}")  # noqa: T201 - shown with -rP
        if ours <= OWN_BYTES and kernels.total() <= KERNEL_BYTES:
            return
        at_first = now
    pytest.fail(f"it grew in each of {MEASUREMENTS} measurements, at last by {ours} and {kernels.total()} bytes")


def _at_rest(before: set[tuple[str, object]], patience: Callable[[float], float]) -> tuple[int, Counter[str]]:
    """(our, the kernel's) bytes once all that was attached is gone; it frees maps and programs a little later."""
    nothing: set[tuple[str, object]] = set()
    assert settled(lambda: objects() - before, nothing, patience(30)) == nothing
    return own_bytes(), kernel_bytes()


@pytest.mark.needs("kprobes")
def test_kprobes_are_there_while_attached() -> None:
    """Otherwise the test above would prove nothing about them."""
    before = kprobe_list()
    feed = open_live(LiveOptions(("raw_tp", "fentry")))
    try:
        assert len(kprobe_list()) > len(before)
        assert loaded("prog")
        assert loaded("map")
    finally:
        feed.close()
