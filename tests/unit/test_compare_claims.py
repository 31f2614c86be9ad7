# SPDX-License-Identifier: GPL-2.0-only
"""Claims: what is said of hosts whose truth is known, and when nothing is said."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from kmemwatch.compare.comparison import CLAIMS, compare
from kmemwatch.compare.figures import Figure, Metric, figure
from kmemwatch.compare.side import Side
from kmemwatch.compare.verdict import FAILS, HOLDS, SHARE, UNDECIDED, Verdict, written
from tests.unit.compare_sides import RECHARGES, delays, lives, objcg, patched, side, unpatched

JUDGES: dict[str, Callable[[Side], Verdict]] = {key: judge for key, _, judge in CLAIMS}


def verdicts(one: Side) -> dict[str, str]:
    return {key: judge(one).verdict for key, judge in JUDGES.items()}


def fact(one: Side, claim: str, key: str) -> float | None:
    return next(f.value for f in JUDGES[claim](one).facts if f.key == key)


def test_the_patch_set_holds_what_it_promises() -> None:
    assert verdicts(patched()) == {
        "caches-bounded": HOLDS, "ids-reused": HOLDS, "let-go": HOLDS, "recharged": HOLDS, "cost": UNDECIDED,
    }  # fmt: skip


def test_a_kernel_without_it_leaks_and_grows() -> None:
    assert verdicts(unpatched()) == {
        "caches-bounded": FAILS, "ids-reused": FAILS, "let-go": FAILS, "recharged": FAILS, "cost": UNDECIDED,
    }  # fmt: skip


def test_shared_caches_are_judged_by_what_they_have() -> None:
    found = verdicts(objcg())
    assert found == {
        "caches-bounded": UNDECIDED,
        "ids-reused": UNDECIDED,
        "let-go": HOLDS,
        "recharged": UNDECIDED,
        "cost": UNDECIDED,
    }
    assert "objcg" in JUDGES["caches-bounded"](objcg()).reason


@pytest.mark.parametrize("seconds", [1, 2, 5, 9])
@pytest.mark.parametrize("host", [patched, unpatched])
def test_small_samples_tell_nothing(host: Callable[..., Side], seconds: int) -> None:
    found = verdicts(host(seconds=seconds))
    found.pop("recharged" if host is unpatched else "cost")  # that there is no recharging is no matter of samples
    if host is unpatched:
        found.pop("caches-bounded")  # nor is it that there were more caches than memcgs, once there were
    assert set(found.values()) == {UNDECIDED}


@pytest.mark.parametrize("one", [side({}), side({}, seconds=0)])
def test_a_side_without_figures_tells_nothing(one: Side) -> None:
    found = [judge(one) for judge in JUDGES.values()]
    assert {v.verdict for v in found} == {UNDECIDED}
    assert all(v.reason for v in found)


@pytest.mark.parametrize("missing", lives(2, 0), ids=lambda one: "-".join(filter(None, (one.metric.name, one.label))))
def test_a_missing_figure_never_makes_a_patched_host_fail(missing: Figure) -> None:
    series = {name: value for name, value in lives(2, 0).items() if name != missing}
    assert FAILS not in verdicts(side(series)).values()


def test_random_walks_of_the_dying_are_no_leak() -> None:
    wrong = 0
    for seed in range(60):
        source, level, walk = random.Random(seed), 50.0, []
        for _ in range(300):
            level = 50 + 0.9 * (level - 50) + source.gauss(0, 4)
            walk.append(max(0, round(level)))
        series = lives(2, 0) | {
            figure(Metric.DYING): lambda t, walk=walk: walk[t],
            figure(Metric.RELEASED): lambda t, walk=walk: max(0, 2 * t - walk[t] + walk[0]),
        }
        wrong += JUDGES["let-go"](side(series, 300)).verdict == FAILS
    assert wrong <= 3


def test_growth_before_and_nothing_after_is_no_letting_go() -> None:
    series = lives(2, 1) | {
        figure(Metric.OFFLINED): lambda t: 2 * min(t, 60),
        figure(Metric.RELEASED): lambda t: min(t, 60),
        figure(Metric.DYING): lambda t: min(t, 60),
    }
    found = JUDGES["let-go"](side(series))
    assert found.verdict == FAILS
    assert "none was released in the second half" in found.reason


def test_many_that_are_being_released_are_not_judged_too_soon() -> None:
    series = lives(2, 1) | {
        figure(Metric.OFFLINED): lambda t: 4 * min(t, 50),
        figure(Metric.RELEASED): lambda t: max(0, t - 100),
        figure(Metric.DYING): lambda t: 4 * min(t, 50) - max(0, t - 100),
    }
    assert JUDGES["let-go"](side(series)).verdict == UNDECIDED


def test_caches_from_before_are_not_held_against_it() -> None:
    series = lives(2, 0) | {figure(Metric.CACHES_MAX): lambda t: 400}
    found = JUDGES["caches-bounded"](side(series))
    assert found.verdict == UNDECIDED
    assert "when the measurement began" in found.reason
    more = lives(2, 0) | {figure(Metric.CACHES_MAX): lambda t: 400 + (t == 100)}
    assert JUDGES["caches-bounded"](side(more)).verdict == FAILS


def test_the_bound_leaves_the_root_out() -> None:
    at_the_bound = lives(2, 0) | {figure(Metric.CACHES_MAX): lambda t: t and 20}
    above = lives(2, 0) | {figure(Metric.CACHES_MAX): lambda t: t and 21}
    assert JUDGES["caches-bounded"](side(at_the_bound)).verdict == HOLDS
    assert JUDGES["caches-bounded"](side(above)).verdict == FAILS


def test_ids_that_come_back_without_caches_are_not_reused_caches() -> None:
    series = {name: value for name, value in lives(2, 0).items() if name not in RECHARGES.values()}
    old = side(series, era="per-memcg", patchset=False)
    assert JUDGES["ids-reused"](old).verdict == FAILS
    # Stale caches with the id of a dead memcg are there on such kernels, too: nobody takes them over.
    stale = side(series, era="per-memcg", patchset=False, ids_reused_with_caches=90)
    assert JUDGES["ids-reused"](stale).verdict == FAILS
    seen = side(series, ids_reused_with_caches=90)
    assert JUDGES["ids-reused"](seen).verdict == HOLDS
    assert JUDGES["ids-reused"](side(series)).verdict == UNDECIDED


def test_failures_that_outweigh_moves_fail() -> None:
    series = lives(2, 0) | {figure(Metric.FAILURES): lambda t: 50 * t}
    assert JUDGES["recharged"](side(series)).verdict == FAILS


def test_moves_from_those_that_died_before_are_moves() -> None:
    quiet = lives(2, 0) | {figure(Metric.OFFLINED): lambda t: 0, figure(Metric.RELEASED): lambda t: 0}
    assert JUDGES["recharged"](side(quiet)).verdict == HOLDS
    assert "only 0 memcgs were removed" in JUDGES["let-go"](side(quiet)).reason


def test_slabs_that_stay_with_the_dead_fail() -> None:
    nothing = dict.fromkeys(RECHARGES.values(), lambda t: 0)
    held = {figure(Metric.CHILD_SLABS, "dentry"): lambda t: 8192}
    assert JUDGES["recharged"](side(lives(2, 0) | nothing | held)).verdict == FAILS
    assert JUDGES["recharged"](side(lives(2, 0) | nothing)).verdict == UNDECIDED
    assert JUDGES["recharged"](side(lives(0.01, 0) | nothing | held)).verdict == UNDECIDED


def test_figures_are_exact() -> None:
    one = patched()
    assert fact(one, "let-go", "removed") == 2 * 199
    assert fact(one, "recharged", "checks") == 100 * 199
    assert fact(one, "recharged", "recharges") == 4 * 199
    assert fact(one, "recharged", "from_dying") == 3 * 199
    assert fact(one, "cost", "checks_per_allocation") == pytest.approx(0.5)
    assert fact(unpatched(), "let-go", "dying_at_end") == 2 * 199


def test_memory_that_is_not_known_at_the_end_is_not_that_of_the_beginning() -> None:
    assert fact(unpatched(), "let-go", "pinned_at_end") is None
    kinds = {figure(Metric.DYING_BYTES, kind): lambda t: 4096 * t for kind in ("slab", "file")}
    assert fact(side(lives(2, 1) | kinds), "let-go", "pinned_at_end") == 2 * 4096 * 199
    assert fact(side(lives(2, 1) | kinds), "let-go", "pinned_slab") == 4096 * 199


def test_child_caches_of_the_dead_are_told_with_their_sum() -> None:
    slabs = {figure(Metric.CHILD_SLABS, name): lambda t: 4096 * t for name in ("filp", "dentry")}
    found = [f for f in JUDGES["let-go"](side(lives(2, 1) | slabs)).facts if f.key.startswith("child_slabs")]
    assert [(f.key, f.value) for f in found] == [
        ("child_slabs", 2 * 4096 * 199), ("child_slabs_dentry", 4096 * 199), ("child_slabs_filp", 4096 * 199),
    ]  # fmt: skip
    assert [len(f.title) - len(f.title.lstrip()) for f in found] == [2, 4, 4]


def test_delays_come_with_their_interval() -> None:
    one = patched(delays=delays([float(n) for n in range(1, 101)], [200.0] * 5))
    median = next(f for f in JUDGES["let-go"](one).facts if f.key == "delay_median")
    assert median.value == 53.0
    assert median.low is not None
    assert median.high is not None
    assert median.low < 53 < median.high


def test_where_nobody_is_released_the_delay_is_longer_than_was_seen() -> None:
    one = unpatched(delays=delays([], [float(n) for n in range(1, 101)]))
    facts = {f.key: f.text for f in JUDGES["let-go"](one).facts}
    assert facts["delay_median"] == facts["delay_p90"] == "more than 1m21s"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (4e-4, "<0.1 %"),
        (6e-4, "0.1 %"),
        (0.5, "50 %"),
        (0.9994, "99.9 %"),
        (0.9996, ">99.9 %"),
        (1, "100 %"),
    ],
)
def test_a_share_that_is_not_nothing_does_not_read_like_nothing(value: float, text: str) -> None:
    assert written(value, SHARE) == text


def test_a_side_that_contradicts_itself_is_not_believed() -> None:
    found = compare(replace(patched("A"), contradictions=("a counter fell",)), patched("B"))
    assert {claim.verdicts[0].verdict for claim in found.claims} == {UNDECIDED}
    assert found.claims[2].verdicts[1].verdict == HOLDS
    assert "a counter fell" in found.claims[0].verdicts[0].reason
    assert any("contradicts itself" in note for note in found.side_notes[0])


def test_one_host_that_fails_is_enough() -> None:
    good, bad = patched("A"), unpatched("B")
    both = replace(good, hosts=(*good.hosts, *bad.hosts))
    found = JUDGES["caches-bounded"](both)
    assert found.verdict == FAILS
    assert "hostB" in found.reason
    assert both.patchset is None
    assert any("several kinds" in note for note in compare(both, good).side_notes[0])


def test_two_sides_with_the_same_fingerprint_are_said_to_be_the_same() -> None:
    a = patched("A", fingerprint="f")
    assert any("the same" in note for note in compare(a, replace(a, label="B")).notes)
    assert any("one host at the same time" in note for note in compare(a, replace(a, fingerprint="g")).notes)


def test_the_table_has_the_difference_in_memory() -> None:
    table = compare(unpatched(), patched()).table
    assert table.memory == "slab"
    assert [row.elapsed_s for row in table.rows] == [pytest.approx(19.9 * n) for n in range(11)]
    last = table.rows[-1]
    assert list(last.dying) == [2 * 199, 2]
    assert last.difference_bytes == 4096 * 2 * 199


def test_the_trends_are_compared() -> None:
    found = compare(unpatched(), patched()).claims[2].difference
    assert found is not None
    assert "apart" in found
    assert "faster on the first side" in found
    same = compare(patched("A"), patched("B")).claims[2].difference
    assert same is not None
    assert "chance" in same
