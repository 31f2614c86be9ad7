# SPDX-License-Identifier: GPL-2.0-only
"""Claims 1 and 2: how many child caches there are, and whether ids and caches are used again; pure."""

from __future__ import annotations

from kmemwatch.compare import figures
from kmemwatch.compare.side import Side, Track, known_total
from kmemwatch.compare.stats import share
from kmemwatch.compare.verdict import FAILS, HOLDS, MIN_DEAD, UNTOLD, Fact, Verdict, number, of_share, worst

SHARED = "the kernel shares its slab caches among all memcgs: there are no child caches to speak of (era objcg)"
_HALF = 0.5
_SLACK = 5


def caches_bounded(side: Side) -> Verdict:
    """Child caches of one kind never exceed the largest number of memcgs online at once."""
    verdicts = [_bounded(track) for track in side.tracks]
    if len(verdicts) == 1:
        return verdicts[0]
    of_all = worst(verdicts)
    counts = {one: sum(v.verdict == one for v in verdicts) for one in (HOLDS, FAILS, UNTOLD)}
    where = side.tracks[verdicts.index(of_all)].host
    text = ", ".join(f"{one} on {count}" for one, count in counts.items() if count)
    return Verdict(of_all.verdict, f"of {len(verdicts)} hosts it {text}; {where}: {of_all.reason}", of_all.facts)


def _bounded(track: Track) -> Verdict:
    most, at_first = track.largest(figures.CACHES_MAX), track.first().get(figures.CACHES_MAX)
    peak = track.largest(figures.ONLINE_PEAK)
    peak = peak if peak is not None else track.largest(figures.ONLINE)
    below_root = None if peak is None else max(0.0, peak - 1)  # the root has no kmemcg_id, so no child caches
    given = track.increase(figures.IDS_GIVEN)
    facts = (
        Fact("most_child_caches", "most child caches of one root cache", most),
        Fact("most_memcgs_online", "most memcgs online at once, without the root", below_root),
        Fact("most_ids_in_use", "most kmemcg_ids in use at once, as sampled", track.largest(figures.IDS)),
        Fact("ids_given", "kmemcg_ids given meanwhile", given),
    )
    if track.era == "objcg":
        return Verdict(UNTOLD, SHARED, facts)
    if most is None or below_root is None:
        what = "child caches" if most is None else "memcgs online"
        return Verdict(UNTOLD, f"the number of {what} is not known", facts)
    both = f"up to {number(most)} child caches of one root cache, up to {number(below_root)} memcgs online at once"
    if most > max(below_root, at_first or 0.0):
        return Verdict(FAILS, both, facts)
    if most > below_root:
        return Verdict(UNTOLD, f"{both}, but there were as many when the measurement began", facts)
    if given is None or given < MIN_DEAD:
        few = f"only {number(given)} kmemcg_ids were given meanwhile, fewer than {MIN_DEAD}"
        return Verdict(UNTOLD, f"{both}, but {few}", facts)
    held = (track.first().get(figures.IDS) or 0.0) + given
    if held <= below_root:
        return Verdict(UNTOLD, f"{both}, but too few memcgs came and went: caches of all of them would be fewer", facts)
    return Verdict(HOLDS, f"{both}, and {number(given)} ids were given meanwhile", facts)


def ids_reused(side: Side) -> Verdict:
    """Ids, and with them caches, are used again by later memcgs."""
    given, reused = side.increase(figures.IDS_GIVEN), side.increase(figures.IDS_REUSED)
    freed, offlined = side.increase(figures.IDS_FREED), side.increase(figures.OFFLINED)
    back = share(freed, offlined) if freed is not None and offlined is not None else None
    seen = share(reused, given) if reused is not None and given is not None else None
    taken = _taken_over(side)
    handed = side.handovers
    facts = (
        Fact("ids_given", "kmemcg_ids given", given),
        Fact("ids_reused", "of these, ids that another memcg had before", reused),
        of_share("reused_share", "share of the ids given", seen),
        Fact("ids_freed", "kmemcg_ids given back", freed),
        of_share("freed_share", "ids given back, of the memcgs that were removed", back),
        Fact("ids_in_use_at_end", "kmemcg_ids in use at the end", side.at_end(lambda v: v.get(figures.IDS))),
        Fact("slabs_from_the_dead", "slabs in reused caches that were taken over from the dead", taken),
        Fact(
            "reused_with_caches", "ids that came with caches (events)", None if handed is None else handed.with_caches
        ),
    )
    reason, verdict = _judge_ids(side, given, reused, offlined, facts)
    return Verdict(verdict, reason, facts)


def _judge_ids(
    side: Side, given: float | None, reused: float | None, offlined: float | None, facts: tuple[Fact, ...]
) -> tuple[str, str]:
    if side.each("era") == ["objcg"]:
        return SHARED, UNTOLD
    if given is None or reused is None:
        return "kmemcg_ids cannot be followed here", UNTOLD
    if given < MIN_DEAD or offlined is None or offlined < MIN_DEAD:
        few = f"{number(given)} ids were given and {number(offlined)} memcgs removed"
        return f"{few}; it takes {MIN_DEAD} of both to tell", UNTOLD
    by_key = {fact.key: fact for fact in facts}
    back, handed, taken = by_key["freed_share"], side.handovers, by_key["slabs_from_the_dead"].value
    counts = f"{number(reused)} of {number(given)} ids given had an owner before"
    held = side.at_end(_ids_of_the_dead)
    if (by_key["reused_share"].high or 0.0) < _HALF and held is not None and held > _SLACK:
        return f"{counts}, and the dead keep {number(held)} of them", FAILS
    if reused < MIN_DEAD:
        return f"{counts}; it takes {MIN_DEAD} to tell", UNTOLD
    passed_on = (taken or 0.0) > 0 or (handed is not None and handed.with_caches > 0)
    if side.patchset is False:
        return f"{counts}, but without recharging the slabs of its caches stay with the dead", FAILS
    if not passed_on:
        return f"{counts}; whether caches went with them was not seen", UNTOLD
    if back.low is not None and back.low > _HALF:
        return f"{counts}, and their caches went with them", HOLDS
    return f"{counts}, but {back.text} of the memcgs removed gave their id back", UNTOLD


def _ids_of_the_dead(values: figures.Values) -> float | None:
    in_use, online = values.get(figures.IDS), values.get(figures.ONLINE)
    extra = None if in_use is None or online is None else in_use - max(0.0, online - 1)
    return (
        extra if extra is None or extra >= 0 else None
    )  # memcgs without an id, and then it is not known whose are which


def _taken_over(side: Side) -> float | None:
    """Slabs that moved to the next owner of their cache from one that is gone."""
    return known_total(
        side.increase_of(figures.name(figures.RECHARGES, [("from_state", state)])) for state in ("dying", "none")
    )
