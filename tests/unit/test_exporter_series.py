# SPDX-License-Identifier: GPL-2.0-only
"""Metrics: their names, that they say what the snapshot says, and that they stay few and monotonic."""

from __future__ import annotations

import gzip
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import exposition as text_exposition
from prometheus_client import parser as text_parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.registry import Collector

from kmemwatch.exporter.exposition import Exposition
from kmemwatch.exporter.folding import OTHER
from kmemwatch.exporter.formats import to_metric, write_text
from kmemwatch.exporter.metrics import label
from kmemwatch.exporter.published import PublishedSnapshot
from kmemwatch.exporter.selection import ALL, SeriesSelection
from kmemwatch.exporter.series import DelayHistogram, Family, SeriesBuilder
from kmemwatch.model import DYING, ONLINE, RELEASED, Cache, Cgroup, Pair, Snapshot
from tests.unit import fakes, strategies

parse_text: Callable[[str], Iterable[Any]] = text_parser.text_string_to_metric_families
parse_openmetrics: Callable[[str], Iterable[Any]] = openmetrics_parser.text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

PROMISED = {
    "build_info": {"version"},
    "kernel_info": {"release", "era", "patchset"},
    "probe_attached": {"signal", "attachment"},
    "events_lost_total": {"reason"},
    "map_entries": {"map"},
    "map_capacity": {"map"},
    "cache_allocations_total": {"cache"},
    "cache_frees_total": {"cache"},
    "cache_slab_bytes": {"cache"},
    "cache_allocated_bytes_total": {"cache"},
    "cgroup_kernel_bytes": {"cgroup"},
    "cgroup_slab_bytes": {"cgroup"},
    "cgroup_charged_bytes_total": {"cgroup"},
    "cgroup_uncharged_bytes_total": {"cgroup"},
    "cgroup_cache_allocations_total": {"cgroup", "cache"},
    "dying_cgroups": set(),
    "dying_cgroup_bytes": {"kind"},
    "dying_cgroups_by_age": {"at_least"},
    "oldest_dying_cgroup_seconds": set(),
    "cgroups_offlined_total": set(),
    "cgroups_released_total": set(),
    "cgroup_release_delay_seconds_bucket": {"le"},
    "cgroup_release_delay_seconds_count": set(),
    "cgroup_release_delay_seconds_sum": set(),
    "recharge_checks_total": set(),
    "recharges_total": {"cache", "from_state"},
    "recharged_bytes_total": {"cache", "from_state"},
    "recharge_failures_total": set(),
    "recharge_lost_races_total": set(),
    "kmemcg_ids_given_total": set(),
    "kmemcg_ids_freed_total": set(),
    "kmemcg_ids_in_use": set(),
    "memcg_ids_in_use": set(),
    "kmemcg_id_reuses_total": set(),
    "online_cgroups": set(),
    "online_cgroups_peak": set(),
    "caches_per_root": {"root"},
    "caches_per_root_max": set(),
    "dying_cgroup_child_slab_bytes": {"cache"},
    # about the exporter itself
    "scrapes_total": set(),
    "scrape_duration_seconds_total": set(),
    "snapshot_age_seconds": set(),
    "folded_cgroups": set(),
    "folded_series": set(),
    "process_cpu_seconds_total": {"process"},
    "process_resident_memory_bytes": {"process"},
}
SERVING_SERIES = [name for name in PROMISED if name.startswith(("scrape", "snapshot_age", "folded", "process_"))]


class PrometheusClientFamilies(Collector):
    """Families for prometheus_client's own writers."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return map(to_metric, self._families)


class Scraper:
    """An exposition whose snapshot a test sets."""

    def __init__(self, max_series: int = 20_000, selection: SeriesSelection = ALL) -> None:
        self.frame: PublishedSnapshot | None = None
        self.exposition = Exposition(lambda: self.frame, max_series, selection)

    def text(self, snapshot: Snapshot | None, accept: str = "") -> str:
        self.frame = None if snapshot is None else PublishedSnapshot(snapshot, time.monotonic())
        return b"".join(self.exposition.render(accept, compressed=False)[1]).decode("utf-8")

    def scrape(self, snapshot: Snapshot | None, accept: str = "") -> Series:
        """All series of kmemwatch; fails on duplicates."""
        text = self.text(snapshot, accept)
        return series_of(parse_openmetrics(text) if accept else parse_text(text))


def series_of(families: Iterable[Any]) -> Series:
    found: Series = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("kmemwatch_"):
                key = sample.name.removeprefix("kmemwatch_"), frozenset(sample.labels.items())
                assert key not in found, f"duplicate series {key}"
                found[key] = float(sample.value)
    return found


def plain(families: Iterable[Any]) -> list[Any]:
    """Everything a parser finds, numbers as Prometheus stores them."""
    return [
        (f.name, f.type, f.documentation, [(s.name, s.labels, float(s.value)) for s in f.samples]) for f in families
    ]


def pick(series: Series, name: str) -> dict[Any, float]:
    """Series of one metric: label values in order of label names -> value."""
    return {tuple(v for _, v in sorted(labels)): value for (n, labels), value in series.items() if n == name}


def numbered(snapshot: Snapshot) -> Snapshot:
    """The same with identities that no two of its rows share, as in every real snapshot."""
    cgroups = tuple(replace(c, id=i) for i, c in enumerate(snapshot.cgroups))
    caches = tuple(replace(c, id=f"cache {i}") for i, c in enumerate(snapshot.caches))
    pairs = tuple(replace(p, cgroup_id=i % 4, cache_id=f"pair {i}") for i, p in enumerate(snapshot.pairs))
    return replace(snapshot, cgroups=cgroups, caches=caches, pairs=pairs)


def test_every_promised_metric_is_there_and_no_other() -> None:
    found: dict[str, set[str]] = {}
    scraper = Scraper()
    for snapshot in (fakes.sample(), fakes.patched(), fakes.lossy()):
        for name, labels in scraper.scrape(snapshot):
            found[name] = {key for key, _ in labels}
    assert found == PROMISED


def test_names_follow_the_conventions() -> None:
    for snapshot in (fakes.sample(), fakes.patched()):
        for family in parse_openmetrics(Scraper().text(snapshot, OPENMETRICS)):
            if not family.name.startswith("kmemwatch_"):
                continue
            assert re.fullmatch(r"kmemwatch_[a-z]+(_[a-z]+)*", family.name)
            assert family.documentation.strip().endswith((".", "1")), family.name
            for sample in family.samples:
                # What promtool check metrics looks for.
                assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
                assert not re.search(r"_(ms|us|ns|milliseconds|kb|mb|kilobytes|megabytes|pages|percent)\b", sample.name)
                assert not {"le", "quantile"} & set(sample.labels) or family.type == "histogram"
                assert all(re.fullmatch(r"[a-z_]+", key) for key in sample.labels)


def test_unknown_is_absent_and_never_zero() -> None:
    series = Scraper().scrape(fakes.unknown())
    present = {name for name, _ in series}
    for cgroup_metric in ("cgroup_kernel_bytes", "cgroup_slab_bytes", "cgroup_charged_bytes_total"):
        assert cgroup_metric not in present
    assert not {n for n in present if n.startswith(("recharge", "kmemcg_id", "caches_per_root", "cache_a"))}
    assert not {n for n in present if n.startswith("cgroup_release_delay")}
    assert "build_info" in present


def test_a_sum_of_which_a_part_is_unknown_is_absent() -> None:
    """Two cgroups of one path, and those under `other`; whose figures are known stay."""
    shown = fakes.sample()
    name = "/system.slice/docker.service"
    cgroups = tuple(replace(c, slab_bytes=None) if c.path == name else c for c in shown.cgroups)
    again = replace(shown.cgroups[3], id=5000)
    assert (again.path, again.slab_bytes) == (name, shown.cgroups[3].slab_bytes)
    series = Scraper().scrape(replace(shown, cgroups=(*cgroups, again)))
    assert (name,) not in pick(series, "cgroup_slab_bytes")
    assert pick(series, "cgroup_kernel_bytes")[(name,)] == 2 * 118 * fakes.MB
    assert ("/init.scope",) in pick(series, "cgroup_slab_bytes")
    folded = Scraper(max_series=100).scrape(replace(shown, cgroups=tuple(
        replace(c, slab_bytes=None) if c.path == "/" else c for c in shown.cgroups
    )))  # fmt: skip
    assert ("other",) in pick(folded, "cgroup_kernel_bytes")
    assert ("other",) not in pick(folded, "cgroup_slab_bytes")


def test_without_a_snapshot_only_the_exporter_speaks() -> None:
    assert {name for name, _ in Scraper().scrape(None)} == {
        "scrapes_total",
        "scrape_duration_seconds_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
    }
    assert "process_resident_memory_bytes" in Scraper().text(None)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_odd_names_come_back_escaped_and_unbroken(accept: str) -> None:
    series = Scraper().scrape(fakes.odd(), accept)
    shown = {labels for (labels,) in pick(series, "cgroup_kernel_bytes")}
    assert shown == {label(c.path) for c in fakes.odd().cgroups if c.kernel_bytes is not None}
    assert any("\\xff" in path for path in shown)


@given(strategies.snapshots.map(numbered), st.sampled_from(("", OPENMETRICS)))
@settings(max_examples=150)
def test_the_text_says_what_the_snapshot_says(snapshot: Snapshot, accept: str) -> None:
    series = Scraper().scrape(snapshot, accept)
    for field in ("kernel_bytes", "slab_bytes", "charged_bytes_total", "uncharged_bytes_total"):
        expected: Counter[tuple[str, ...]] = Counter()
        unknown = set()
        for c in snapshot.cgroups:
            if c.state != RELEASED and (value := getattr(c, field)) is not None:
                expected[(label(c.path),)] += value
            elif c.state != RELEASED and not field.endswith("_total"):
                unknown.add((label(c.path),))
        for labels in unknown:
            expected.pop(labels, None)
        assert pick(series, f"cgroup_{field}") == {k: float(v) for k, v in expected.items()}
    for field in ("allocations_total", "frees_total", "allocated_bytes_total"):
        expected = Counter()
        for cache in snapshot.caches:
            if (value := getattr(cache, field)) is not None:
                expected[(label(cache.root or cache.name),)] += value
        assert pick(series, f"cache_{field}") == {k: float(v) for k, v in expected.items()}
    paths = {c.id: label(c.path) for c in snapshot.cgroups if c.state != RELEASED}
    expected = Counter()
    for pair in snapshot.pairs:
        if pair.allocations_total is not None and pair.cgroup_id in paths:
            expected[label(pair.cache), paths[pair.cgroup_id]] += pair.allocations_total
    assert pick(series, "cgroup_cache_allocations_total") == {k: float(v) for k, v in expected.items()}


@given(strategies.snapshots.map(numbered))
@settings(max_examples=30)
def test_formats_agree_and_gzip_is_the_same(snapshot: Snapshot) -> None:
    scraper = Scraper()
    plain = scraper.scrape(snapshot)
    open_ = series_of(parse_openmetrics(b"".join(scraper.exposition.render(OPENMETRICS, compressed=False)[1]).decode()))
    packed = gzip.decompress(b"".join(scraper.exposition.render("", compressed=True)[1])).decode()
    changing = {"scrapes_total", "scrape_duration_seconds_total", "snapshot_age_seconds"}
    changing |= {"process_cpu_seconds_total", "process_resident_memory_bytes"}

    def same(series: Series) -> Series:
        return {key: value for key, value in series.items() if key[0] not in changing}

    assert same(plain) == same(open_) == same(series_of(parse_text(packed)))


@pytest.mark.parametrize("openmetrics", [False, True])
@given(snapshot=strategies.snapshots.map(numbered))
@settings(max_examples=60)
def test_our_text_is_what_prometheus_client_writes(snapshot: Snapshot, openmetrics: bool) -> None:
    families = SeriesBuilder(20_000).build(snapshot).families
    ours = b"".join(write_text(families, openmetrics)).decode("utf-8") + ("# EOF\n" if openmetrics else "")
    encode = openmetrics_exposition.generate_latest if openmetrics else text_exposition.generate_latest
    theirs = encode(PrometheusClientFamilies(families)).decode("utf-8")
    parse = parse_openmetrics if openmetrics else parse_text
    assert plain(parse(ours)) == plain(parse(theirs))
    comments = [line for line in ours.splitlines() if line.startswith("#")]
    assert comments == [line for line in theirs.splitlines() if line.startswith("#")]


def test_one_snapshot_is_written_once() -> None:
    scraper = Scraper()
    scraper.text(fakes.sample())
    scraper.scrape(fakes.sample(5))
    again = b"".join(scraper.exposition.render("", compressed=False)[1]).decode()
    assert pick(series_of(parse_text(again)), "scrapes_total") == {(): 2.0}


# Folding and counters that stay counters.

T0 = fakes.empty()


def snapshot_of(seconds: int, cgroups: list[Cgroup], pairs: list[Pair]) -> Snapshot:
    ns = seconds * 10**9
    return replace(T0, taken_at_ns=T0.taken_at_ns + ns, cgroups=tuple(cgroups), pairs=tuple(pairs))


def cgroup(id_: int, path: str, kernel_bytes: int, charged: int, state: str = ONLINE) -> Cgroup:
    return fakes.row(
        Cgroup,
        id=id_,
        path=path,
        state=state,
        memory_bytes=kernel_bytes,
        kernel_bytes=kernel_bytes,
        slab_bytes=kernel_bytes,
        charged_bytes_total=charged,
        uncharged_bytes_total=0,
    )


def pair(cgroup_id: int, allocations: int, cache: str = "dentry") -> Pair:
    return fakes.pair(cache, None, cgroup_id, allocations, allocations * 192, 0, 0)


def test_a_path_that_is_used_again_is_one_series_and_never_falls() -> None:
    scraper = Scraper()
    first = scraper.scrape(snapshot_of(0, [cgroup(1, "/a", 100, 1000)], [pair(1, 50)]))
    assert pick(first, "cgroup_charged_bytes_total") == {("/a",): 1000}
    both = [cgroup(1, "/a", 60, 1100, DYING), cgroup(2, "/a", 7, 30)]
    second = scraper.scrape(snapshot_of(5, both, [pair(1, 50), pair(2, 3)]))
    assert pick(second, "cgroup_kernel_bytes") == {("/a",): 67}
    assert pick(second, "cgroup_charged_bytes_total") == {("/a",): 1130}
    assert pick(second, "cgroup_cache_allocations_total") == {("dentry", "/a"): 53}
    released = [replace(both[0], state=RELEASED), cgroup(2, "/a", 7, 40)]
    third = scraper.scrape(snapshot_of(10, released, [pair(1, 50), pair(2, 4)]))
    assert pick(third, "cgroup_kernel_bytes") == {("/a",): 7}
    assert pick(third, "cgroup_charged_bytes_total") == {("/a",): 1140}
    assert pick(third, "cgroup_cache_allocations_total") == {("dentry", "/a"): 54}


def test_released_cgroups_have_no_series() -> None:
    scraper = Scraper()
    scraper.scrape(snapshot_of(0, [cgroup(1, "/a", 100, 1000)], [pair(1, 50)]))
    gone = scraper.scrape(snapshot_of(5, [cgroup(1, "/a", 0, 1000, RELEASED)], [pair(1, 50)]))
    assert not [name for name, labels in gone if ("cgroup", "/a") in labels]
    reborn = scraper.scrape(snapshot_of(10, [cgroup(3, "/a", 5, 10)], []))
    assert pick(reborn, "cgroup_charged_bytes_total") == {("/a",): 10}


def test_the_largest_cgroups_keep_their_series() -> None:
    snapshot = fakes.big(cgroups=2000, caches_each=3)
    series = Scraper(2000).scrape(snapshot)
    own = {path for (path,) in pick(series, "cgroup_kernel_bytes")} - {OTHER}
    sizes = {label(c.path): c.kernel_bytes or 0 for c in snapshot.cgroups}
    assert 0 < len(own) < 2000
    assert min(sizes[path] for path in own) >= max(size for path, size in sizes.items() if path not in own)
    (folded,) = pick(series, "folded_cgroups").values()
    assert folded == len(snapshot.cgroups) - len(own)
    (folded_series,) = pick(series, "folded_series").values()
    assert folded_series > folded


def test_other_counts_no_memory_twice() -> None:
    cgroups = [cgroup(i, f"/big{i}", 10**9, 0) for i in range(1000)]
    cgroups += [cgroup(5000, "/s", 70, 1), cgroup(5001, "/s/a", 50, 2), cgroup(5002, "/s/a/b", 50, 4)]
    cgroups += [cgroup(5003, "/t", 9, 8)]
    fixed = len(Scraper().scrape(snapshot_of(0, [], []))) - len(SERVING_SERIES)
    series = Scraper(fixed + 1001 * 4).scrape(snapshot_of(0, cgroups, []))
    assert pick(series, "folded_cgroups") == {(): 4.0}
    assert pick(series, "cgroup_kernel_bytes")[(OTHER,)] == 79, "/s has the bytes of those below it"
    assert pick(series, "cgroup_charged_bytes_total")[(OTHER,)] == 15, "each charges for itself"


def history(seed: int, steps: int) -> list[Snapshot]:
    """Cgroups that come, grow, go, share paths, and whose sizes cross."""
    chance = random.Random(seed)
    snapshots, charged, allocations = [], Counter[int](), Counter[int]()
    alive = set(chance.sample(range(400), 250))
    for step in range(steps):
        for id_ in alive:
            charged[id_] += chance.randrange(1000)
            allocations[id_] += chance.randrange(3)
        rows = [cgroup(i, f"/c{i % 300}", chance.randrange(10**6), charged[i]) for i in sorted(alive)]
        snapshots.append(snapshot_of(step * 5, rows, [pair(i, allocations[i]) for i in sorted(alive)]))
        alive -= set(chance.sample(sorted(alive), 20))
        alive |= set(range(1000 * (step + 1), 1000 * (step + 1) + chance.randrange(40)))
    return snapshots


@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(100, 1500))
@settings(max_examples=40)
def test_series_stay_few_and_counters_grow_by_what_the_cgroups_did(seed: int, steps: int, max_series: int) -> None:
    scraper = Scraper(max_series)
    before: Series = {}
    seen: dict[int, int] = {}
    for snapshot in history(seed, steps):
        series = scraper.scrape(snapshot)
        assert len(series) <= max_series + len(SERVING_SERIES)
        old, new = (pick(s, "cgroup_charged_bytes_total") for s in (before, series))
        assert all(new[path] >= value for path, value in old.items() if path in new)
        grown = sum(value - old.get(path, 0) for path, value in new.items())
        assert grown == sum((c.charged_bytes_total or 0) - seen.get(c.id, 0) for c in snapshot.cgroups)
        seen = {c.id: c.charged_bytes_total or 0 for c in snapshot.cgroups}
        before = series


def test_a_slow_request_does_not_turn_time_back() -> None:
    builder = SeriesBuilder(1000)
    builder.build(fakes.sample())
    scraper = Scraper()
    new, old = fakes.sample(10), fakes.sample(5)
    later = pick(scraper.scrape(new), "cache_allocations_total")
    assert pick(scraper.scrape(old), "cache_allocations_total") == later
    assert pick(scraper.scrape(new), "cache_allocations_total") == later


def test_child_caches_have_no_series_of_their_own() -> None:
    known = fakes.patched()
    series = Scraper().scrape(known)
    roots = {c.name for c in known.caches if c.root is None}
    for name, labels in series:
        cache = dict(labels).get("cache", dict(labels).get("root"))
        assert cache is None or cache in roots, name
    counted = {c.name: c.allocations_total for c in known.caches if c.root is None}
    assert pick(series, "cache_allocations_total") == {(name,): n for name, n in counted.items()}
    held = sum(c.slab_bytes or 0 for c in known.caches if "dentry" in (c.name, c.root))
    assert pick(series, "cache_slab_bytes")[("dentry",)] == held
    assert pick(series, "caches_per_root")[("dentry",)] == 3
    assert pick(series, "caches_per_root_max") == {(): 3}


def test_a_cache_of_a_pair_is_exported_under_its_root() -> None:
    caches = (
        fakes.row(
            Cache,
            name="dentry",
            id="a",
            object_bytes=192,
            allocations_total=10,
            allocated_bytes_total=1920,
            frees_total=1,
        ),
        fakes.row(
            Cache,
            name="dentry(3)",
            id="b",
            object_bytes=192,
            root="dentry",
            kmemcg_id=3,
        ),
    )
    pairs = (fakes.pair("dentry", "a", 7, 1, 192, 0, 0), fakes.pair("dentry(3)", "b", 7, 4, 768, 0, 0))
    snapshot = replace(snapshot_of(0, [cgroup(7, "/a", 1, 1)], []), caches=caches, pairs=pairs)
    series = Scraper().scrape(snapshot)
    assert pick(series, "cache_allocations_total") == {("dentry",): 10}
    assert pick(series, "cgroup_cache_allocations_total") == {("dentry", "/a"): 5}


def test_recharges_are_counted_for_ever_though_their_pairs_go() -> None:
    scraper = Scraper()
    before = scraper.scrape(fakes.patched())
    later = fakes.patched(60)
    series = scraper.scrape(replace(later, recharges=replace(later.recharges, pairs=())))
    assert pick(before, "recharges_total")[("dentry", DYING)] == 431
    assert pick(series, "recharges_total") == {
        ("dentry", DYING): 551,
        ("dentry", ONLINE): 3,
        ("filp", "none"): 10,
    }
    assert pick(series, "recharged_bytes_total")[("dentry", DYING)] == 551 * 4096
    assert [pick(series, f"recharge_{name}_total")[()] for name in ("checks", "failures", "lost_races")] == [
        120_017,
        2,
        1,
    ]


def test_kernels_without_child_caches_have_none_of_their_series() -> None:
    names = {name for name, _ in Scraper().scrape(fakes.sample())}
    assert not {n for n in names if n.startswith(("recharge", "kmemcg", "caches_per", "dying_cgroup_child"))}
    private = {name for name, _ in Scraper().scrape(fakes.private())}
    assert not {n for n in private if n.startswith("recharge")}
    assert {"kmemcg_ids_in_use", "caches_per_root", "dying_cgroup_child_slab_bytes"} <= private


def test_slabs_of_the_dying_drain_to_0() -> None:
    scraper = Scraper()
    known = fakes.patched()
    assert pick(scraper.scrape(known), "dying_cgroup_child_slab_bytes")[("inode_cache",)] == 8 * 4096
    freed = tuple(replace(c, child_slabs=() if c.state == DYING else None) for c in known.cgroups)
    drained = pick(scraper.scrape(replace(known, cgroups=freed)), "dying_cgroup_child_slab_bytes")
    assert set(drained.values()) == {0}


@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(1, 10), st.integers(1, 12))
def test_the_histogram_counts_each_release_once(delays: list[float], step: int, kept: int) -> None:
    unique = list(dict.fromkeys(delays))
    histogram, result = DelayHistogram(), None
    step = min(step, kept)  # the producer keeps at least what is new
    for end in range(0, len(unique) + step, step):
        seen = unique[:end]
        result = histogram.add(tuple(seen[-kept:]))
    assert result is not None
    assert result.counts[-1] == len(unique)
    assert result.counts[-2] == sum(delay <= 86400 for delay in unique)
    assert list(result.counts) == sorted(result.counts)
    assert result.sum == pytest.approx(sum(unique))
