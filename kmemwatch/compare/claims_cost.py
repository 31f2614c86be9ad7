# SPDX-License-Identifier: GPL-2.0-only
"""Claim 5: what the check costs where objects are allocated; pure."""

from __future__ import annotations

from dataclasses import dataclass

from kmemwatch.compare import figures
from kmemwatch.compare.side import Side
from kmemwatch.compare.verdict import HOLDS, MIN_SAMPLES, NANOSECONDS, RATIO, SHARE, UNTOLD, Fact, Verdict, number

WITHOUT, WITH, CHECK = "allocation_without_check", "allocation_with_check", "recharge_check"
_TITLES = ((WITHOUT, "allocations without a check"), (WITH, "allocations with a check"), (CHECK, "checks alone"))
SMALL = 0.1
"""A check that takes no more than this of the allocation that it is in costs next to nothing."""
_MEDIAN, _P99 = 0.5, 0.99
UNTIMED = "the time of an allocation was not measured"


@dataclass(frozen=True, slots=True)
class Times:
    """Of the calls of one kind that were timed while the side was watched."""

    samples: float
    mean_ns: float
    buckets: tuple[tuple[int, float], ...]
    """(number, samples), in order: from 2^number up to 2^(number + 1) nanoseconds."""

    def quantile_ns(self, part: float) -> tuple[float, float]:
        """Bounds of the bucket that the quantile lies in."""
        seen, number = 0.0, 0
        for number, count in self.buckets:  # noqa: B007 - the last one is wanted
            seen += count
            if seen >= part * self.samples:
                break
        return float(1 << number if number else 0), float(2 << number)


def times(side: Side, kind: str) -> Times | None:
    """None when nothing was timed, or when it is not known."""
    samples = side.increase_of(figures.name(figures.LATENCY_SAMPLES, [("kind", kind)]))
    took = side.increase_of(figures.name(figures.LATENCY_NS, [("kind", kind)]))
    if not samples or took is None:
        return None
    buckets = []
    for figure in side.labels(figures.LATENCY_BUCKET):
        of_kind, _, bucket = figures.label_value(figure).partition("/")
        if of_kind == kind and (count := side.increase_of(figure)):
            buckets.append((int(bucket), count))
    return Times(samples, took / samples, tuple(sorted(buckets)))


def cost(side: Side) -> Verdict:
    """An allocation takes no longer than without the check, to speak of."""
    checks, allocations = side.increase(figures.CHECKS), side.increase(figures.ALLOCATIONS)
    per_allocation = checks / allocations if checks is not None and allocations else None
    seconds, runs = side.increase(figures.BPF_SECONDS), side.increase(figures.BPF_RUNS)
    timed = {kind: found for kind, _ in _TITLES if (found := times(side, kind)) is not None}
    facts = (
        Fact("allocations", "objects allocated", allocations),
        Fact("checks", "recharge checks", checks),
        Fact("checks_per_allocation", "recharge checks per allocation", per_allocation, RATIO),
        *(fact for kind, title in _TITLES if kind in timed for fact in _facts(kind, title, timed[kind])),
        *([Fact("check_share", "mean of a check, of an allocation with one", _share(timed), SHARE)] if timed else []),
        *([Fact("dropped", "samples dropped", side.increase(figures.LATENCY_DROPPED))] if timed else []),
        Fact("bpf_run", "time of a run of kmemwatch's own BPF programs", _ns(seconds, runs), NANOSECONDS),
    )
    return Verdict(*_judge(side, per_allocation, timed), facts)


def across(sides: tuple[Side, Side]) -> str | None:
    """What an allocation takes on both; None unless both have enough samples."""
    parts = []
    for kind, title in _TITLES:
        a, b = (times(side, kind) for side in sides)
        if a is not None and b is not None and min(a.samples, b.samples) >= MIN_SAMPLES:
            parts.append(f"{title} take {a.mean_ns:.0f} ns and {b.mean_ns:.0f} ns in the mean")
    return "; ".join(parts) or None


def _facts(kind: str, title: str, found: Times) -> tuple[Fact, ...]:
    """Median and 99th percentile are bounds of buckets: no more is known of them."""
    return (
        Fact(f"{kind}_samples", f"{title}: samples", found.samples),
        Fact(f"{kind}_mean", "  mean", found.mean_ns, NANOSECONDS),
        Fact(f"{kind}_median", "  half take less than", None, NANOSECONDS, *found.quantile_ns(_MEDIAN)),
        Fact(f"{kind}_p99", "  99 of 100 take less than", None, NANOSECONDS, *found.quantile_ns(_P99)),
    )


def _share(timed: dict[str, Times]) -> float | None:
    if WITH not in timed or CHECK not in timed or not timed[WITH].mean_ns:
        return None
    return timed[CHECK].mean_ns / timed[WITH].mean_ns


def _judge(side: Side, per_allocation: float | None, timed: dict[str, Times]) -> tuple[str, str]:
    if side.each("era") == ["objcg"] or side.patchset is False:
        nothing = "this kernel makes no recharge check, so there is nothing to cost"
        if WITHOUT not in timed:
            return UNTOLD, f"{UNTIMED}; {nothing}"
        return UNTOLD, f"an allocation takes {timed[WITHOUT].mean_ns:.0f} ns in the mean; {nothing}"
    if not timed:
        if per_allocation is None:
            return UNTOLD, f"{UNTIMED}, and checks per allocation are not known"
        return UNTOLD, f"{UNTIMED}; there were {per_allocation:.3g} checks per allocation"
    few = min(timed[kind].samples if kind in timed else 0 for kind in (WITH, CHECK))
    if few < MIN_SAMPLES:
        return UNTOLD, f"only {number(few)} samples of a check or of allocations with one, fewer than {MIN_SAMPLES}"
    check, allocation = timed[CHECK], timed[WITH]
    share = check.mean_ns / allocation.mean_ns if allocation.mean_ns else 1.0
    text = (
        f"a check takes {check.mean_ns:.0f} ns in the mean, of {allocation.mean_ns:.0f} ns for an allocation with one"
    )
    medians_agree = check.quantile_ns(_MEDIAN)[0] <= SMALL * allocation.quantile_ns(_MEDIAN)[1]
    if share <= SMALL and medians_agree:
        return HOLDS, text
    # Never that it fails: what kmemwatch itself takes is in both times, and in that of the check it may be most of it.
    return UNTOLD, f"{text}; kmemwatch's own programs are in both, so it may be less, but that cannot be told"


def _ns(seconds: float | None, runs: float | None) -> float | None:
    return None if seconds is None or not runs else 1e9 * seconds / runs
