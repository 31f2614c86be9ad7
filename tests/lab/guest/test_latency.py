# SPDX-License-Identifier: GPL-2.0-only
"""`--latency`: every call is counted, every selected call is timed or dropped, and the times are plausible."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmemwatch.attach.handover import Child
from kmemwatch.feeds.live import LiveFeed, LiveOptions, open_live
from kmemwatch.kernel.facts import RECHARGE_FUNCTION
from kmemwatch.maps import decode
from kmemwatch.model import Latency
from kmemwatch.source.bpf_source import BpfSource
from kmemwatch.source.latency import TimedCalls, timed_calls
from tests.lab.guest.truth import kernel_counters
from tests.lab.guest.workers import workers
from tests.live.cgroups import OwnCgroup
from tests.live.fixtures import WITHOUT
from tests.needs import slab_mode

pytestmark = pytest.mark.needs("root", "bcc", "fentry", "kprobes")

BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
FILES = 4001
"""A dentry and an inode each; a prime number."""
REST_S = 60


@pytest.fixture
def counted_runs() -> Iterator[None]:
    """The kernel counts the runs of all programs."""
    before = BPF_STATS.read_text()
    BPF_STATS.write_text("1")
    yield
    BPF_STATS.write_text(before)


def timed(feed: LiveFeed) -> tuple[Latency, list[list[TimedCalls]], dict[str, int]]:
    """What a snapshot tells, CPU by CPU the counters behind it, and how often the kernel ran the programs."""
    source = feed._source
    assert isinstance(source, BpfSource)
    snapshot = feed.next_snapshot(0)
    assert snapshot is not None
    assert snapshot.latency is not None, [probe for probe in snapshot.probes if probe.signal == "latency"]
    raw = source._readers["timed"].lookup(bytes(4))
    assert raw is not None
    runs = {name.removeprefix("latency/entry:"): count for name, (count, _) in feed.program_runs().items()}
    return snapshot.latency, timed_calls(raw), runs


def accounts(feed: LiveFeed, allocations: bool) -> dict[str, int]:
    """The same sums, counted in different ways: all are equal once nothing happens between the readings."""
    latency, cpus, runs = timed(feed)
    places = range(decode.TIMED_CHECK) if allocations else (decode.TIMED_CHECK,)
    what = "allocation" if allocations else "recharge_check"
    functions = [cpu[place] for cpu in cpus for place in places]
    names = {name for name in runs if name.startswith("kmem_cache_alloc")} if allocations else {RECHARGE_FUNCTION}
    samples = sum(one.samples_total for one in latency.histograms if one.kind.startswith(what))
    noted = sum(one.in_flight for one in functions)
    return {
        "runs less calls": sum(runs.get(name, 0) for name in names) - latency.calls_total[what],
        "to be timed, less timed, dropped, noted": sum(one.calls // latency.one_in for one in functions)
        - samples - latency.dropped_total[what] - noted,
    }  # fmt: skip


def checks_unseen(feed: LiveFeed) -> int:
    """Recharge checks that the kernel has counted since it was booted, less those that we have."""
    # What comes between the two readings makes it less.
    return max(kernel_counters()["recharge_checks"] - timed(feed)[0].calls_total["recharge_check"] for _ in range(10))


def at_rest(find: Callable[[], dict[str, int]]) -> dict[str, int]:
    until = time.monotonic() + REST_S
    while any((found := find()).values()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


@pytest.mark.parametrize("way", ["best", "kprobe"])
def test_every_call_is_timed_or_accounted_for(
    runner_in_root_cgroup: None, counted_runs: None, own_cgroup: Callable[..., OwnCgroup], tmp_path: Path, way: str
) -> None:
    has_check = slab_mode() == "reuse"
    feed = open_live(LiveOptions(WITHOUT[way], latency=True))
    try:
        before, _, _ = timed(feed)
        assert set(before.calls_total) == {"allocation", *(["recharge_check"] if has_check else [])}
        unseen = checks_unseen(feed) if has_check else 0
        with workers(1) as (worker,):
            worker.do("pin", 0)
            worker.do("enter", own_cgroup().path)
            worker.do("files", FILES, f"{tmp_path}/f")
        for allocations in (True, False) if has_check else (True,):
            assert not any(at_rest(lambda of=allocations: accounts(feed, of)).values())  # type: ignore[misc]
        after, _, _ = timed(feed)
        assert after.calls_total["allocation"] - before.calls_total["allocation"] >= 2 * FILES
        for one in after.histograms:
            least, most = (sum(count << (n + more) for n, count in enumerate(one.buckets)) for more in (0, 1))
            assert sum(one.buckets) == one.samples_total > 0, one
            assert least - one.buckets[0] <= one.sum_ns_total < most, one
        if has_check:
            assert after.calls_total["recharge_check"] - before.calls_total["recharge_check"] >= FILES
            assert checks_unseen(feed) == unseen
    finally:
        feed.close()


def test_a_warm_start_times_as_the_cold_one_did(
    own_cgroup: Callable[..., OwnCgroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMEMWATCH_TEST_KEPT", str(tmp_path / "kept"))
    probes = []
    for start in ("cold", "warm"):
        if start == "warm":  # it may not use what only a cold start needs
            monkeypatch.setenv("KMEMWATCH_TEST_WARM", start)
        feed = LiveFeed(BpfSource(Child(module="tests.live.kept_start", latency=True).wait()))
        try:
            before, _, _ = timed(feed)
            with workers(1) as (worker,):
                worker.do("enter", own_cgroup().path)
                worker.do("files", FILES, f"{tmp_path}/{start}")
            after, _, _ = timed(feed)
            assert after.calls_total["allocation"] - before.calls_total["allocation"] >= 2 * FILES
            samples = [sum(one.samples_total for one in latency.histograms) for latency in (before, after)]
            assert samples[1] > samples[0]
            probes.append(feed._source.info.probes)
        finally:
            feed.close()
    assert probes[0] == probes[1]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["start-latency"]
