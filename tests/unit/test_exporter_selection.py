# SPDX-License-Identifier: GPL-2.0-only
"""What --cgroup.include and its like leave out, and that the rest is not changed by it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmemwatch.errors import UsageError
from kmemwatch.exporter.folding import OTHER
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.model import Snapshot
from tests.unit import fakes, strategies
from tests.unit.test_exporter_series import Scraper, Series, cgroup, numbered, pair, pick, snapshot_of


def scrape(snapshot: Snapshot, max_series: Any = 20_000, **options: Any) -> Series:
    return Scraper(max_series, SelectionOptions(**options).selection()).scrape(snapshot)


SNAPSHOT = snapshot_of(
    0,
    [cgroup(1, "/", 100, 1), cgroup(2, "/a", 50, 2), cgroup(3, "/a/b", 20, 4), cgroup(4, "/b", 30, 8)],
    [pair(1, 1), pair(2, 2), pair(3, 3, "filp"), pair(4, 4), pair(4, 5, "filp")],
)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, {"/", "/a", "/a/b", "/b"}),
        ({"cgroup_include": ["/a"]}, {"/a"}),
        ({"cgroup_include": ["/a.*"]}, {"/a", "/a/b"}),
        ({"cgroup_include": ["/a", "/b"]}, {"/a", "/b"}),
        ({"cgroup_include": ["/a|/b"]}, {"/a", "/b"}),
        ({"cgroup_exclude": ["/a.*"]}, {"/", "/b"}),
        ({"cgroup_include": ["/.*"], "cgroup_exclude": [".*b"]}, {"/", "/a"}),
        ({"cgroup_include": ["x"]}, set()),
    ],
)
def test_cgroups(options: dict[str, list[str]], paths: set[str]) -> None:
    series = scrape(SNAPSHOT, **options)
    assert {path for (path,) in pick(series, "cgroup_kernel_bytes")} == paths
    assert {path for _, path in pick(series, "cgroup_cache_allocations_total")} == paths
    assert pick(series, "excluded_cgroups") == ({(): 4.0 - len(paths)} if options else {})
    assert pick(series, "excluded_caches") == {}


def test_caches() -> None:
    series = scrape(SNAPSHOT, cache_exclude=["fi.p"])
    assert set(pick(series, "cgroup_cache_allocations_total")) == {("dentry", p) for p in ("/", "/a", "/b")}
    assert {path for (path,) in pick(series, "cgroup_kernel_bytes")} == {"/", "/a", "/a/b", "/b"}
    series = scrape(fakes.patched(), cache_include=["dentry"])
    labelled = {dict(labels)["cache"] for _, labels in series if "cache" in dict(labels)}
    assert labelled == {"dentry"}
    assert {root for (root,) in pick(series, "caches_per_root")} <= {"dentry"}
    everything = {label for (label,) in pick(scrape(fakes.patched()), "cache_allocations_total")}
    assert pick(series, "excluded_caches") == {(): len(everything) - 1.0}


def test_what_is_excluded_is_in_no_other_series() -> None:
    cgroups = [cgroup(i, f"/big{i}", 10**6 - i, 1) for i in range(1000)]
    cgroups += [cgroup(5000 + i, f"/skip{i}", 10**9, 1) for i in range(10)]
    snapshot = snapshot_of(0, cgroups, [])
    series = scrape(snapshot, 1000, cgroup_exclude=["/skip.*"])
    kernel = pick(series, "cgroup_kernel_bytes")
    assert sum(kernel.values()) == sum(c.kernel_bytes or 0 for c in cgroups[:1000])
    assert kernel[(OTHER,)] > 0
    assert pick(series, "excluded_cgroups") == {(): 10.0}
    assert len([key for key in series if not key[0].startswith("process")]) <= 1000 + 20


def test_totals_are_of_all_cgroups() -> None:
    every, some = scrape(fakes.sample()), scrape(fakes.sample(), cgroup_include=["/none"])
    for name in ("online_cgroups", "dying_cgroups", "dying_cgroup_bytes", "cache_allocations_total"):
        assert pick(some, name) == pick(every, name)


@given(strategies.snapshots.map(numbered), st.lists(st.sampled_from(["/", "/.*", ".*a.*", "[^/]+", "/x"]), max_size=2))
@settings(max_examples=60)
def test_what_is_left_is_what_it_was(snapshot: Snapshot, include: list[str]) -> None:
    every, some = scrape(snapshot), scrape(snapshot, cgroup_include=include)
    wanted = re.compile("|".join(f"(?:{part})" for part in include or [".*"]), re.DOTALL)
    # Strategies make cgroups whose path is "other", too, which no real path looks like.
    changing = ("process_", "scrape", "snapshot_age", "excluded", "folded")
    for key, value in every.items():
        path = dict(key[1]).get("cgroup")
        if not key[0].startswith(changing):
            assert some.get(key) == (value if path is None or wanted.fullmatch(path) else None), key
    assert set(some) - set(every) == ({("excluded_cgroups", frozenset())} if include else set())


@pytest.mark.parametrize("expression", ["(", "*", "[a", "(?P<x", "a{99999999999}"])
def test_what_is_no_expression(expression: str) -> None:
    with pytest.raises(UsageError, match=r"--cache\.exclude: .* is not a regular expression") as caught:
        SelectionOptions(cache_exclude=["fine", expression]).selection()
    assert caught.value.exit_code == 2
