# SPDX-License-Identifier: GPL-2.0-only
"""The five claims of the cover letter, each judged for one side; pure.

1 and 2: child caches and kmemcg_ids. 3: whether dying memcgs are released. 4: recharging. 5: what a check costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from kmemwatch.compare.figures import Figure, Metric, Values, figure, pinned
from kmemwatch.compare.side import HostRuns, Run, Side, known_total
from kmemwatch.compare.stats import (
    FLAT,
    GROWING,
    SHRINKING,
    UNCLEAR,
    Share,
    Survival,
    Trend,
    bucket_quantile,
    share,
    survival,
    trend,
)
from kmemwatch.compare.verdict import (
    BYTES,
    BYTES_PER_HOUR,
    FAILS,
    HOLDS,
    MIN_CHECKS,
    MIN_DEAD,
    MIN_SAMPLES,
    NANOSECONDS,
    PER_HOUR,
    RATIO,
    SECONDS,
    SHARE,
    UNDECIDED,
    Fact,
    Verdict,
    number,
    of_share,
    worst,
    written,
)

SHARED = "the kernel shares its slab caches among all memcgs: there are no child caches to speak of (era objcg)"
NO_RECHARGE = "this kernel has no recharging (no __memcg_kmem_recharge_slab)"
_STATES = (("dying", "dying owners"), ("none", "nobody"), ("online", "living owners"))
_HALF = 0.5
_SLACK = 5
"""Ids of dying memcgs: so few may be those of memcgs that were removed just now."""
HOUR_S = 3600
_MOST, _FEW = 0.5, 0.05
"""Shares of the removed memcgs: more than half stay: nothing releases them; a twentieth may just have been removed."""
_SOME = 0.2
"""If surely fewer than that stay, and their number does not grow, the claim holds."""
WITHOUT, WITH, CHECK = "allocation_without_check", "allocation_with_check", "recharge_check"
_TITLES = ((WITHOUT, "allocations without a check"), (WITH, "allocations with a check"), (CHECK, "checks alone"))
SMALL = 0.1
"""A check that takes no more than this share of its allocation costs next to nothing."""
_MEDIAN, _P99 = 0.5, 0.99
UNTIMED = "the time of an allocation was not measured"


def caches_bounded(side: Side) -> Verdict:
    """Child caches of one kind never exceed the largest number of memcgs online at once."""
    verdicts = [_bounded_on(host) for host in side.hosts]
    if len(verdicts) == 1:
        return verdicts[0]
    of_all = worst(verdicts)
    counts = {one: sum(v.verdict == one for v in verdicts) for one in (HOLDS, FAILS, UNDECIDED)}
    where = side.hosts[verdicts.index(of_all)].name
    text = ", ".join(f"{one} on {count}" for one, count in counts.items() if count)
    return Verdict(of_all.verdict, f"of {len(verdicts)} hosts it {text}; {where}: {of_all.reason}", of_all.facts)


def _bounded_on(host: HostRuns) -> Verdict:
    most, at_first = host.largest(figure(Metric.CACHES_MAX)), Metric.CACHES_MAX.of(host.first())
    peak = host.largest(figure(Metric.ONLINE_PEAK))
    peak = peak if peak is not None else host.largest(figure(Metric.ONLINE))
    below_root = None if peak is None else max(0.0, peak - 1)  # the root has no kmemcg_id, so no child caches
    given = host.increase(Metric.IDS_GIVEN)
    facts = (
        Fact("most_child_caches", "most child caches of one root cache", most),
        Fact("most_memcgs_online", "most memcgs online at once, without the root", below_root),
        Fact("most_ids_in_use", "most kmemcg_ids in use at once, as sampled", host.largest(figure(Metric.IDS))),
        Fact("ids_given", "kmemcg_ids given meanwhile", given),
    )
    if host.era == "objcg":
        return Verdict(UNDECIDED, SHARED, facts)
    if most is None or below_root is None:
        what = "child caches" if most is None else "memcgs online"
        return Verdict(UNDECIDED, f"the number of {what} is not known", facts)
    both = f"up to {number(most)} child caches of one root cache, up to {number(below_root)} memcgs online at once"
    if most > max(below_root, at_first or 0.0):
        return Verdict(FAILS, both, facts)
    if most > below_root:
        return Verdict(UNDECIDED, f"{both}, but there were as many when the measurement began", facts)
    if given is None or given < MIN_DEAD:
        few = f"only {number(given)} kmemcg_ids were given meanwhile, fewer than {MIN_DEAD}"
        return Verdict(UNDECIDED, f"{both}, but {few}", facts)
    held = (Metric.IDS.of(host.first()) or 0.0) + given
    if held <= below_root:
        few = "too few memcgs came and went: caches of all of them would be fewer"
        return Verdict(UNDECIDED, f"{both}, but {few}", facts)
    return Verdict(HOLDS, f"{both}, and {number(given)} ids were given meanwhile", facts)


def ids_reused(side: Side) -> Verdict:
    """Later memcgs get the ids of removed ones again, and with them their caches."""
    given, reused = side.increase(Metric.IDS_GIVEN), side.increase(Metric.IDS_REUSED)
    freed, offlined = side.increase(Metric.IDS_FREED), side.increase(Metric.OFFLINED)
    back = share(freed, offlined) if freed is not None and offlined is not None else None
    seen = share(reused, given) if reused is not None and given is not None else None
    taken = _taken_over(side)
    facts = (
        Fact("ids_given", "kmemcg_ids given", given),
        Fact("ids_reused", "of these, ids that another memcg had before", reused),
        of_share("reused_share", "share of the ids given", seen),
        Fact("ids_freed", "kmemcg_ids given back", freed),
        of_share("freed_share", "ids given back, of the memcgs that were removed", back),
        Fact("ids_in_use_at_end", "kmemcg_ids in use at the end", side.at_end(Metric.IDS.of)),
        Fact("slabs_from_the_dead", "slabs in reused caches that were taken over from the dead", taken),
        Fact("reused_with_caches", "ids that came with caches (events)", side.ids_reused_with_caches),
    )
    reason, verdict = _judge_ids(side, given, reused, offlined, facts)
    return Verdict(verdict, reason, facts)


def _judge_ids(
    side: Side, given: float | None, reused: float | None, offlined: float | None, facts: tuple[Fact, ...]
) -> tuple[str, str]:
    if side.each("era") == ["objcg"]:
        return SHARED, UNDECIDED
    if given is None or reused is None:
        return "kmemcg_ids cannot be followed here", UNDECIDED
    if given < MIN_DEAD or offlined is None or offlined < MIN_DEAD:
        few = f"{number(given)} ids were given and {number(offlined)} memcgs removed"
        return f"{few}; it takes {MIN_DEAD} of both to tell", UNDECIDED
    by_key = {fact.key: fact for fact in facts}
    back, taken = by_key["freed_share"], by_key["slabs_from_the_dead"].value
    counts = f"{number(reused)} of {number(given)} ids given had an owner before"
    held = side.at_end(_ids_of_dying)
    if (by_key["reused_share"].high or 0.0) < _HALF and held is not None and held > _SLACK:
        return f"{counts}, and the dead keep {number(held)} of them", FAILS
    if reused < MIN_DEAD:
        return f"{counts}; it takes {MIN_DEAD} to tell", UNDECIDED
    passed_on = (taken or 0.0) > 0 or (side.ids_reused_with_caches or 0) > 0
    if side.patchset is False:
        return f"{counts}, but without recharging the slabs of its caches stay with the dead", FAILS
    if not passed_on:
        return f"{counts}; whether caches went with them was not seen", UNDECIDED
    if back.low is not None and back.low > _HALF:
        return f"{counts}, and their caches went with them", HOLDS
    return f"{counts}, but {back.text} of the memcgs removed gave their id back", UNDECIDED


def _ids_of_dying(values: Values) -> float | None:
    """None also when memcgs online have no id: then it is unknown which ids are theirs."""
    in_use, online = Metric.IDS.of(values), Metric.ONLINE.of(values)
    extra = None if in_use is None or online is None else in_use - max(0.0, online - 1)
    return extra if extra is None or extra >= 0 else None


def _taken_over(side: Side) -> float | None:
    """Slabs that moved to the next owner of their cache from one that was removed."""
    return known_total(_moved(side, state) for state in ("dying", "none"))


@dataclass(frozen=True)
class Removed:
    """What became of the memcgs that were removed while a side was measured."""

    offlined: float | None
    released: float | None
    dying: float | None
    left: Share | None
    """Of those that were removed, how many more are dying at the end than at the start."""
    late_offlined: float | None
    late_released: float | None
    whole: Trend | None
    late: Trend | None
    """Of the second half: what a host does once it is warm."""
    survival: Survival | None


def removed(side: Side) -> Removed:
    """Counts and trends."""
    offlined, released = side.increase(Metric.OFFLINED), side.increase(Metric.RELEASED)
    series = side.dying()
    left = None
    if offlined is not None and released is not None:
        left = share(offlined - released, offlined)
    elif offlined is not None and series:
        left = share(series[-1][1] - series[0][1], offlined)
    half_s = (series[0][0] + series[-1][0]) / 2 if series else 0.0
    return Removed(
        offlined,
        released,
        side.at_end(Metric.DYING.of),
        left,
        _after(side, Metric.OFFLINED, half_s),
        _after(side, Metric.RELEASED, half_s),
        trend(series),
        trend([point for point in series if point[0] >= half_s]),
        survival(side.delays.released_s, side.delays.still_dying_s),
    )


def _after(side: Side, metric: Metric, begin_s: float) -> float | None:
    found = None
    for host in side.hosts:
        for run in host.runs:
            late = Run(
                tuple(s for s in run.samples if s.elapsed_s >= begin_s),
                run.from_zero and run.samples[0].elapsed_s >= begin_s,
                run.exact,
            )
            grown = late.increase(figure(metric))[0]
            found = found if grown is None else (found or 0.0) + grown
    return found


def let_go(side: Side) -> Verdict:
    """Dead memcgs are released sooner or later."""
    seen = removed(side)
    verdict, reason = _judge_release(seen)
    return Verdict(verdict, reason, tuple(_release_facts(side, seen)))


def _judge_release(seen: Removed) -> tuple[str, str]:
    if seen.offlined is None or seen.dying is None:
        return UNDECIDED, "the memcgs that are removed and released are not counted here"
    if seen.offlined < MIN_DEAD or seen.left is None:
        return UNDECIDED, f"only {number(seen.offlined)} memcgs were removed meanwhile, fewer than {MIN_DEAD}"
    if seen.whole is None or seen.late is None:
        return UNDECIDED, "too few samples, or too short a time, to tell whether the number of dying memcgs grows"
    stay = (
        f"{number(seen.offlined)} were removed and {number(seen.released)} released,"
        f" {number(seen.dying)} are dying at the end"
    )
    late, moves = seen.late, f"in the second half, {_moves(seen.late)}"
    dwindling = late.direction == SHRINKING and not late.is_small
    if seen.left.low > _MOST and not dwindling:
        return FAILS, f"{stay}; {moves}"
    if late.direction == GROWING and late.is_much and seen.left.low > _FEW:
        return FAILS, f"{stay}; {moves}"
    stuck = not seen.late_released and (seen.late_offlined or 0.0) < MIN_DEAD
    if stuck and seen.left.low > _FEW:
        return FAILS, f"{stay}; none was released in the second half"
    if late.direction == GROWING and not late.is_small:
        return UNDECIDED, f"{stay}; {moves}, and it takes longer to judge that"
    if seen.left.high < _SOME:
        return HOLDS, f"{stay}; {moves}"
    return UNDECIDED, f"{stay}; {moves}; it takes longer to tell whether these are let go"


def _moves(found: Trend) -> str:
    """The trend of their number as a clause, with its interval or its upper bound."""
    if found.direction == FLAT:
        return "their number is flat"
    rates = (found.per_s, found.low_per_s, found.high_per_s)
    value, low, high = (HOUR_S * rate for rate in rates)
    if found.direction == UNCLEAR:
        interval = Fact("", "", None, PER_HOUR, low, high).text
        return f"it is not certain whether their number grows ({interval})"
    if found.direction == SHRINKING:
        value, low, high = -value, -high, -low
    verb = "grows" if found.direction == GROWING else "shrinks"
    if found.is_small:
        return f"their number {verb} by less than {written(HOUR_S * found.small_per_s, PER_HOUR)}"
    return f"their number {verb} by {Fact('', '', value, PER_HOUR, low, high).text}"


def _release_facts(side: Side, seen: Removed) -> list[Fact]:
    kinds, caches = side.figures_of(Metric.DYING_BYTES), side.figures_of(Metric.CHILD_SLABS)
    return [
        Fact("removed", "memcgs removed", seen.offlined),
        Fact("released", "memcgs released", seen.released),
        of_share("left_share", "more dying at the end than at the start, of those removed", seen.left),
        *_delay_facts(side, seen.survival),
        Fact("dying_at_end", "dying at the end", seen.dying),
        Fact("oldest_dying", "oldest of them, at least", _oldest(side), SECONDS),
        Fact("pinned_at_end", "memory that they keep at the end", side.at_end(pinned), BYTES),
        *(_kind(side, one) for one in kinds if _at_end(side, one)),
        *_slabs(side, [one for one in caches if _at_end(side, one)]),
        _trend_fact("dying_trend", "trend of their number", seen.whole, PER_HOUR),
        _trend_fact("dying_trend_late", "the same in the second half", seen.late, PER_HOUR),
        _trend_fact("pinned_trend", "trend of the memory that they keep", trend(side.total(pinned)), BYTES_PER_HOUR),
    ]


def _at_end(side: Side, one: Figure) -> float | None:
    return side.at_end(lambda values: values.get(one))


def _kind(side: Side, one: Figure) -> Fact:
    return Fact(f"pinned_{one.label}", f"  of it {one.label}", _at_end(side, one), BYTES)


def _slabs(side: Side, caches: list[Figure]) -> list[Fact]:
    """kmemwatch scans a part of memory at a time, so slabs of the latest dying memcgs may be missing."""
    if not caches:
        return []
    found = {one.label: _at_end(side, one) for one in caches}
    return [
        Fact("child_slabs", "  in child caches, as far as looked at", known_total(found.values()), BYTES),
        *(Fact(f"child_slabs_{cache}", f"    {cache}", value, BYTES) for cache, value in found.items()),
    ]


def _oldest(side: Side) -> float | None:
    return max((v for host in side.hosts if (v := Metric.OLDEST_DYING.of(host.last())) is not None), default=None)


def _trend_fact(key: str, title: str, found: Trend | None, unit: str) -> Fact:
    if found is None:
        return Fact(key, title, None, unit)
    rates = (found.per_s, found.low_per_s, found.high_per_s)
    value, low, high = (HOUR_S * rate for rate in rates)
    return Fact(key, title, value, unit, low, high, found.direction, HOUR_S * found.small_per_s)


def _delay_facts(side: Side, found: Survival | None) -> list[Fact]:
    facts = []
    buckets = sorted(side.delays.buckets.items())
    for part, key, name in ((0.5, "delay_median", "half of the dead"), (0.9, "delay_p90", "nine of ten")):
        title = f"time after which {name} are released"
        if found is not None:
            at = found.quantile(part)
            unknown_from = found.times_s[-1] if at.value is None else at.low
            facts.append(Fact(key, title, at.value, SECONDS, unknown_from, at.high))
        elif buckets:
            at = bucket_quantile(buckets, part)
            title = f"time after which {name} of those released were released"
            facts.append(Fact(key, title, None, SECONDS, at.low, at.high))
        else:
            facts.append(Fact(key, title, None, SECONDS))
    return facts


def _moved(side: Side, state: str, metric: Metric = Metric.RECHARGES) -> float | None:
    return side.increase_of(figure(metric, state))


def recharged(side: Side) -> Verdict:
    """Slabs of dying memcgs move to the memcgs that use them."""
    checks, failures = side.increase(Metric.CHECKS), side.increase(Metric.FAILURES)
    moved = side.increase(Metric.RECHARGES)
    failed = share(failures, failures + (moved or 0.0)) if failures is not None else None
    facts = (
        Fact("checks", "recharge checks", checks),
        Fact("recharges", "slabs moved", moved),
        *(Fact(f"from_{state}", f"  from {who}", _moved(side, state)) for state, who in _STATES),
        Fact("moved_share", "slabs moved per check", moved / checks if moved is not None and checks else None, SHARE),
        Fact("recharged_bytes", "bytes moved", side.increase(Metric.RECHARGED_BYTES), BYTES),
        *(
            Fact(f"bytes_from_{state}", f"  from {who}", _moved(side, state, Metric.RECHARGED_BYTES), BYTES)
            for state, who in _STATES
        ),
        Fact("failures", "allocations that failed for it", failures),
        of_share("failed_share", "failures, of moves and failures", failed),
        Fact("lost_races", "another task was first", side.increase(Metric.LOST_RACES)),
    )
    verdict, reason = _judge_recharging(side, checks, moved, failures)
    return Verdict(verdict, reason, facts)


def _judge_recharging(side: Side, checks: float | None, moved: float | None, failures: float | None) -> tuple[str, str]:
    if side.each("era") == ["objcg"]:
        return UNDECIDED, SHARED
    if side.patchset is False:
        return FAILS, NO_RECHARGE
    if checks is None:
        return UNDECIDED, "recharge checks are not counted here"
    if checks < MIN_CHECKS:
        return UNDECIDED, f"only {number(checks)} checks, fewer than {MIN_CHECKS}"
    from_dead = (_moved(side, "dying") or 0.0) + (_moved(side, "none") or 0.0)
    text = f"{number(checks)} checks moved {number(moved or 0)} slabs, {number(from_dead)} of them from the dead"
    failed = share(failures or 0.0, (failures or 0.0) + (moved or 0.0))
    if failed is not None and failed.low > _HALF:
        return FAILS, f"{text}, but {number(failures)} allocations failed for it"
    if from_dead >= MIN_DEAD:
        return HOLDS, f"{text}, {number(failures)} failed"
    held = any(host.largest(one) for host in side.hosts for one in host.figures_of(Metric.CHILD_SLABS))
    if from_dead == 0 and held and (side.increase(Metric.OFFLINED) or 0) >= MIN_DEAD:
        return FAILS, f"{text}, although the dead had slabs"
    return UNDECIDED, f"{text}; it takes {MIN_DEAD} from the dead to tell"


@dataclass(frozen=True, slots=True)
class CallTimes:
    """How long the calls of one kind took that kmemwatch timed while it measured the side."""

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


def call_times(side: Side, kind: str) -> CallTimes | None:
    """None when nothing was timed, or that is not known."""
    samples = side.increase_of(figure(Metric.LATENCY_SAMPLES, kind))
    took = side.increase_of(figure(Metric.LATENCY_NS, kind))
    if not samples or took is None:
        return None
    buckets = tuple(
        (one.bucket, count)
        for one in side.figures_of(Metric.LATENCY_BUCKET)
        if one.label == kind and (count := side.increase_of(one))
    )
    return CallTimes(samples, took / samples, buckets)


def cost(side: Side) -> Verdict:
    """The check makes allocations hardly longer."""
    checks, allocations = side.increase(Metric.CHECKS), side.increase(Metric.ALLOCATIONS)
    per_allocation = checks / allocations if checks is not None and allocations else None
    seconds, runs = side.increase(Metric.BPF_SECONDS), side.increase(Metric.BPF_RUNS)
    timed = {kind: found for kind, _ in _TITLES if (found := call_times(side, kind)) is not None}
    facts = (
        Fact("allocations", "objects allocated", allocations),
        Fact("checks", "recharge checks", checks),
        Fact("checks_per_allocation", "recharge checks per allocation", per_allocation, RATIO),
        *(fact for kind, title in _TITLES if kind in timed for fact in _timed_facts(kind, title, timed[kind])),
        *(_timing_facts(side, timed) if timed else ()),
        Fact("bpf_run", "time of a run of kmemwatch's own BPF programs", _ns(seconds, runs), NANOSECONDS),
    )
    return Verdict(*_judge_cost(side, per_allocation, timed), facts)


def _timing_facts(side: Side, timed: dict[str, CallTimes]) -> tuple[Fact, ...]:
    return (
        Fact("check_share", "mean of a check, of an allocation with one", _check_share(timed), SHARE),
        Fact("dropped", "samples dropped", side.increase(Metric.LATENCY_DROPPED)),
    )


def compare_cost(sides: tuple[Side, Side]) -> str | None:
    """How long an allocation takes on both; None unless both have enough samples."""
    parts = []
    for kind, title in _TITLES:
        a, b = (call_times(side, kind) for side in sides)
        if a is not None and b is not None and min(a.samples, b.samples) >= MIN_SAMPLES:
            parts.append(f"{title} take {a.mean_ns:.0f} ns and {b.mean_ns:.0f} ns in the mean")
    return "; ".join(parts) or None


def _timed_facts(kind: str, title: str, found: CallTimes) -> tuple[Fact, ...]:
    """Median and 99th percentile are bounds of buckets: no more is known of them."""
    return (
        Fact(f"{kind}_samples", f"{title}: samples", found.samples),
        Fact(f"{kind}_mean", "  mean", found.mean_ns, NANOSECONDS),
        Fact(f"{kind}_median", "  half take less than", None, NANOSECONDS, *found.quantile_ns(_MEDIAN)),
        Fact(f"{kind}_p99", "  99 of 100 take less than", None, NANOSECONDS, *found.quantile_ns(_P99)),
    )


def _check_share(timed: dict[str, CallTimes]) -> float | None:
    if WITH not in timed or CHECK not in timed or not timed[WITH].mean_ns:
        return None
    return timed[CHECK].mean_ns / timed[WITH].mean_ns


def _judge_cost(side: Side, per_allocation: float | None, timed: dict[str, CallTimes]) -> tuple[str, str]:
    if side.each("era") == ["objcg"] or side.patchset is False:
        nothing = "this kernel makes no recharge check, so there is nothing to cost"
        if WITHOUT not in timed:
            return UNDECIDED, f"{UNTIMED}; {nothing}"
        return UNDECIDED, f"an allocation takes {timed[WITHOUT].mean_ns:.0f} ns in the mean; {nothing}"
    if not timed:
        if per_allocation is None:
            return UNDECIDED, f"{UNTIMED}, and checks per allocation are not known"
        return UNDECIDED, f"{UNTIMED}; there were {per_allocation:.3g} checks per allocation"
    few = min(timed[kind].samples if kind in timed else 0 for kind in (WITH, CHECK))
    if few < MIN_SAMPLES:
        return UNDECIDED, f"only {number(few)} samples of a check or of allocations with one, fewer than {MIN_SAMPLES}"
    check, allocation = timed[CHECK], timed[WITH]
    share = check.mean_ns / allocation.mean_ns if allocation.mean_ns else 1.0
    text = (
        f"a check takes {check.mean_ns:.0f} ns in the mean, of {allocation.mean_ns:.0f} ns for an allocation with one"
    )
    medians_agree = check.quantile_ns(_MEDIAN)[0] <= SMALL * allocation.quantile_ns(_MEDIAN)[1]
    if share <= SMALL and medians_agree:
        return HOLDS, text
    # Never FAILS: kmemwatch's own time is in both figures, and may be most of the check's.
    return UNDECIDED, f"{text}; kmemwatch's own programs are in both, so it may be less, but that cannot be told"


def _ns(seconds: float | None, runs: float | None) -> float | None:
    return None if seconds is None or not runs else 1e9 * seconds / runs
