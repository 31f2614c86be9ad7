# SPDX-License-Identifier: GPL-2.0-only
"""What kprobes missed, compared with the kernel's own profile of other probes at the same place, and with our count
of calls that are certain to be missed."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from kmemwatch.attach.handover import Child, Handed
from kmemwatch.kernel import bpf_calls
from kmemwatch.kernel.bpf_calls import program_info
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps import handles as maps
from kmemwatch.maps.handles import MapHandle, MapReader, possible_cpus
from kmemwatch.maps.peek import Peek
from kmemwatch.source.losses import KprobeMisses, MissedCalls
from tests.live.helpers import workload
from tests.live.kprobe_truth import attach_inside, calling, doing_nothing, profile, tracefs_probes
from tests.symbols import has_member

T = TypeVar("T")
U = TypeVar("U")

pytestmark = pytest.mark.needs("kprobes")

OUTER, INNER = "bpf_get_current_uid_gid", "bpf_get_current_comm"
SLEEP = "hrtimer_nanosleep"
MAP_UPDATE = "htab_map_update_elem"
CALLS, MORE_CALLS = 211, 307
BPF_HASH = 1
BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@pytest.fixture(scope="module")
def handed(require_root_bcc: None) -> Iterator[Handed]:
    """kmemwatch's own programs, attached by kprobes."""
    given = Child(("raw_tp", "fentry")).wait()
    yield given
    given.close()


@pytest.fixture(scope="module")
def facts(handed: Handed) -> Facts:
    return handed.manifest.facts


@pytest.fixture(scope="module")
def peek(handed: Handed) -> Iterator[Peek]:
    reader = Peek(handed.programs, handed.maps, handed.manifest.stats_count)
    yield reader
    reader.close()


@pytest.fixture
def closing() -> Iterator[Callable[[int], int]]:
    """`closing(fd)` returns fd and closes it at the end, the last one first."""
    with ExitStack() as stack:

        def close_later(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        yield close_later


@pytest.fixture
def both(closing: Callable[[int], int]) -> Callable[[str], dict[str, int]]:
    """`both(function)`: programs of ours at its entry and at its return, name -> perf event."""

    def attach(function: str) -> dict[str, int]:
        program = closing(calling(OUTER, bpf_calls.PROG_KPROBE))
        kinds = {"kprobe": False, "kretprobe": True}
        return {
            f"test/{kind}:{function}": closing(bpf_calls.attach_kprobe(program, function, at_return))
            for kind, at_return in kinds.items()
        }

    return attach


@contextmanager
def run_counts() -> Iterator[None]:
    """The kernel counts the runs of programs."""
    before = BPF_STATS.read_text()
    BPF_STATS.write_text("1")
    try:
        yield
    finally:
        BPF_STATS.write_text(before)


def skips_are_counted() -> bool:
    """Came in one series of patches with a new member of what BPF links tell (in v6.7)."""
    return has_member("bpf_link_info", "perf_event.kprobe.missed")


def by_kind(figures: object) -> tuple[int, int]:
    """(entry, return) of what `KprobeMisses` says of `both`."""
    assert isinstance(figures, dict)
    entry, at_return = (figures[name] for name in sorted(figures))
    return entry, at_return


def test_every_call_is_a_hit_or_a_miss(
    peek: Peek, facts: Facts, both: Callable[[str], dict[str, int]], closing: Callable[[int], int]
) -> None:
    """INNER is called CALLS times by a test run, and MORE_CALLS times by the handler of another kprobe."""
    direct, nested = (closing(calling(function, bpf_calls.PROG_RAW_TRACEPOINT)) for function in (INNER, OUTER))
    links = both(INNER)
    closing(attach_inside(closing(calling(INNER, bpf_calls.PROG_KPROBE)), OUTER))
    with tracefs_probes([f"p:entry {INNER}", f"r:return {INNER}"], enabled=True):
        misses = KprobeMisses(peek, facts, links)
        assert misses.why is None
        assert by_kind(misses.read()) == (0, 0)
        for _ in range(CALLS):
            maps.test_run(direct)
        assert by_kind(misses.read()) == (0, 0)
        assert by_kind(misses.hits()) == (CALLS, CALLS)
        for _ in range(MORE_CALLS):
            maps.test_run(nested)
        assert by_kind(misses.read()) == (MORE_CALLS, MORE_CALLS)
        assert by_kind(misses.hits()) == (CALLS, CALLS)
        assert profile() == {"entry": (CALLS, MORE_CALLS), "return": (CALLS, MORE_CALLS)}


def test_a_return_for_which_there_was_no_instance_is_a_miss(
    peek: Peek, facts: Facts, both: Callable[[str], dict[str, int]], patience: Callable[[float], float]
) -> None:
    """The kernel prepares for twice as many calls at once as it has CPUs, or for 10."""
    sleepers = 2 * possible_cpus() + 31
    nap_us = int(patience(0.3) * 1e6)
    links = both(SLEEP)
    with tracefs_probes([f"p:entry {SLEEP}", f"r:return {SLEEP}"], enabled=True):
        misses = KprobeMisses(peek, facts, links)
        libc = ctypes.CDLL(None)
        threads = [threading.Thread(target=libc.usleep, args=(nap_us,)) for _ in range(sleepers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (entries_missed, returns_missed), (entries, returns) = by_kind(misses.read()), by_kind(misses.hits())
        truth = profile()
    assert truth == {"entry": (entries, entries_missed), "return": (returns, returns_missed)}
    assert entries >= sleepers
    assert returns_missed >= 21
    assert returns + returns_missed == entries + entries_missed


def test_hits_have_what_the_program_was_not_run_for(
    peek: Peek, facts: Facts, closing: Callable[[int], int], both: Callable[[str], dict[str, int]]
) -> None:
    """A system call on a map keeps programs of kprobes from running on its CPU; until v6.7 the kernel does not count
    that."""
    program = closing(calling(OUTER, bpf_calls.PROG_KPROBE))
    direct = closing(calling(INNER, bpf_calls.PROG_RAW_TRACEPOINT))
    table = closing(bpf_calls.create_map(BPF_HASH, "kmw_test", 8, 8, CALLS, 0))
    links = {f"test/kprobe:{name}": closing(bpf_calls.attach_kprobe(program, name)) for name in (INNER, MAP_UPDATE)}
    misses = KprobeMisses(peek, facts, links)
    writer = MapReader(MapHandle("kmw_test", table, 8, 8, CALLS, False))
    with run_counts():
        for number in range(CALLS):
            writer.update(number.to_bytes(8, "little"), bytes(8))
        for _ in range(MORE_CALLS):
            maps.test_run(direct)
        hits, missed, stats = misses.hits(), misses.read(), program_info(program)
    assert hits == {f"test/kprobe:{INNER}": MORE_CALLS, f"test/kprobe:{MAP_UPDATE}": CALLS}
    assert missed == dict.fromkeys(hits, 0)
    assert stats.run_cnt == MORE_CALLS
    if skips_are_counted():
        assert stats.recursion_misses == CALLS


def of_kmemwatch(handed: Handed) -> dict[str, int]:
    """Name -> what keeps it attached; programs that are only run by us have nothing."""
    names = [name for name in handed.manifest.programs if "/" in name]
    return dict(zip(names, handed.links, strict=True))


def undisturbed(count: Callable[[], T], look: Callable[[], U], tries: int = 500) -> tuple[T, U]:
    """What `count` and `look` say at a moment when nothing changed what `count` says."""
    for _ in range(tries):
        before, seen = count(), look()
        if before == count():
            return before, seen
        time.sleep(0.02)
    pytest.fail("there is always something counted")


def at_rest(misses: KprobeMisses) -> tuple[dict[str, int], dict[str, int]]:
    """What we and the kernel's profile say of the same probes at a moment when nothing was missed."""
    before, truth = undisturbed(misses.read, profile, tries=100)
    assert before is not None
    return dict(before), {name: missed for name, (_, missed) in truth.items()}


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """What this test starts stays on one CPU: two that miss a call at the very same time may be counted as one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def calls_at_rest(program: int, misses: KprobeMisses) -> tuple[int, int, int]:
    """(calls by a raw tracepoint in the function, hits, misses) at a moment when there was no call."""

    def calls() -> int:
        stats = program_info(program)
        return stats.run_cnt + (stats.recursion_misses or 0)

    before, (hits, missed) = undisturbed(calls, lambda: (misses.hits(), misses.read()))
    assert hits is not None
    assert missed is not None
    return before, sum(hits.values()), sum(missed.values())


def test_every_free_is_a_hit_or_a_miss(
    handed: Handed,
    peek: Peek,
    facts: Facts,
    closing: Callable[[int], int],
    one_cpu: None,
    tmpfs: Path,
    scale: Callable[[int], int],
) -> None:
    """The tracepoint in the same function is no kprobe, and says how often it was called."""
    links = {name: fd for name, fd in of_kmemwatch(handed).items() if name.endswith("kprobe:kmem_cache_free")}
    assert len(links) == 1
    number = scale(200_003)
    truth = closing(doing_nothing())
    misses = KprobeMisses(peek, facts, links)
    with run_counts(), workload(None) as work:
        closing(bpf_calls.attach(truth, "raw_tp", "kmem_cache_free"))
        before = calls_at_rest(truth, misses)
        for _ in range(10):
            work.do(f"files {number} {tmpfs}")
            work.do(f"unlink {number} {tmpfs}")
            calls, hits, missed = (now - was for now, was in zip(calls_at_rest(truth, misses), before, strict=True))
            assert calls > number
            assert calls == hits + missed, (calls, hits, missed)
            if missed:
                return
    pytest.fail(f"nothing was missed in {calls} calls, so nothing was shown")


FREE = "free/kprobe:kmem_cache_free"


def frees_at_rest(program: int, misses: KprobeMisses, skips: MissedCalls) -> tuple[int, int, int]:
    """(hits, runs by the kernel's count, hits without a run as kmemwatch tells) of FREE when nothing was freed."""
    before, (runs, not_run) = undisturbed(misses.hits, lambda: (program_info(program).run_cnt, skips.not_run()))
    assert before is not None
    assert not_run is not None
    return before[FREE], runs, not_run[FREE]


def test_what_is_not_run_while_maps_are_read_is_lost(
    handed: Handed, peek: Peek, facts: Facts, one_cpu: None, tmpfs: Path, scale: Callable[[int], int]
) -> None:
    """Before v6.7 no kernel counts this. The workload frees in interrupts, which hit while we read maps."""
    misses = KprobeMisses(peek, facts, {FREE: of_kmemwatch(handed)[FREE]})
    readers = {name: MapReader(handle) for name, handle in handed.maps.items() if handle.key_bytes}
    # What comes while it begins to count may pass for what was lost before.
    _, skips = undisturbed(misses.hits, lambda: MissedCalls(handed, peek, readers), tries=100)
    assert skips.why is None
    done = threading.Event()

    def read_maps() -> None:
        while not done.is_set():
            readers["pairs"].items()

    number = scale(50_021)
    with run_counts(), workload(None) as work:
        before = frees_at_rest(handed.programs[FREE], misses, skips)
        for _ in range(20):
            done.clear()
            reading = threading.Thread(target=read_maps)
            reading.start()
            work.do(f"files {number} {tmpfs}")
            work.do(f"unlink {number} {tmpfs}")
            done.set()
            reading.join()
            now = frees_at_rest(handed.programs[FREE], misses, skips)
            hits, runs, not_run = (count - was for count, was in zip(now, before, strict=True))
            assert not_run == hits - runs
            if not_run:
                lost = skips.read()["free"]
                assert lost is not None
                assert lost >= not_run
                return
    pytest.fail(f"every call was run, so nothing was shown: {now}")


def test_misses_of_kmemwatch_under_load_are_the_profiles(
    handed: Handed,
    peek: Peek,
    facts: Facts,
    one_cpu: None,
    tmpfs: Path,
    scale: Callable[[int], int],
) -> None:
    """Frees in interrupts hit while the probes of allocations are handled."""
    links = of_kmemwatch(handed)
    names = {f"probe{number}": name for number, name in enumerate(links)}
    probes = [f"{'r' if '/kretprobe:' in name else 'p'}:{own} {name.split(':')[1]}" for own, name in names.items()]
    assert probes
    number = scale(200_003)
    with tracefs_probes(probes, enabled=False), workload(None) as work:
        misses = KprobeMisses(peek, facts, links)
        before, truth_before = at_rest(misses)
        missed: dict[str, int] = {}
        for _ in range(10):
            work.do(f"files {number} {tmpfs}")
            work.do(f"unlink {number} {tmpfs}")
            after, truth_after = at_rest(misses)
            missed = {name: after[name] - before[name] for name in links}
            assert missed == {name: truth_after[own] - truth_before[own] for own, name in names.items()}
            if any(missed.values()):
                return
    pytest.fail(f"nothing was missed, so nothing was shown: {missed}")


@pytest.mark.parametrize(
    "member",
    [
        "task_struct__files",
        "file__private_data",
        "perf_event__tp_event",
        "trace_probe_event__call",
        "trace_probe_event__probes",
        "trace_kprobe__tp",
        "trace_kprobe__symbol",
        "trace_kprobe__rp__kp__addr",
        "trace_kprobe__rp__kp__nmissed",
        "trace_kprobe__rp__kp__symbol_name",
    ],
)
@pytest.mark.parametrize("shift", [-8, 8])
def test_a_wrong_layout_is_unknown_and_not_a_figure(
    handed: Handed, peek: Peek, facts: Facts, member: str, shift: int
) -> None:
    wrong = replace(facts, offsets={**facts.offsets, member: facts.offsets[member] + shift})
    misses = KprobeMisses(peek, wrong, of_kmemwatch(handed))
    assert misses.why
    assert (misses.read(), misses.hits()) == (None, None)


def test_a_descriptor_that_is_no_kprobe(handed: Handed, peek: Peek, facts: Facts) -> None:
    links = {f"free/kprobe:{OUTER}": next(iter(handed.programs.values()))}
    misses = KprobeMisses(peek, facts, links)
    assert misses.why
    assert misses.read() is None
