# SPDX-License-Identifier: GPL-2.0-only
"""Claims 4 and 5: what recharging does, and what it costs where objects are allocated; pure."""

from __future__ import annotations

from kmemwatch.compare import figures
from kmemwatch.compare.claims_ids import SHARED
from kmemwatch.compare.side import Side
from kmemwatch.compare.stats import share
from kmemwatch.compare.verdict import (
    BYTES,
    FAILS,
    HOLDS,
    MIN_CHECKS,
    MIN_DEAD,
    SHARE,
    UNTOLD,
    Fact,
    Verdict,
    number,
    of_share,
)

_STATES = (("dying", "dying owners"), ("none", "nobody"), ("online", "living owners"))
NO_RECHARGE = "this kernel has no recharging (no __memcg_kmem_recharge_slab)"
_HALF = 0.5


def _moved(side: Side, state: str, metric: str = figures.RECHARGES) -> float | None:
    return side.increase_of(figures.name(metric, [("from_state", state)]))


def recharged(side: Side) -> Verdict:
    """Slabs of the dead move to whoever uses them."""
    checks, failures = side.increase(figures.CHECKS), side.increase(figures.FAILURES)
    moved = side.increase(figures.RECHARGES)
    failed = share(failures, failures + (moved or 0.0)) if failures is not None else None
    facts = (
        Fact("checks", "recharge checks", checks),
        Fact("recharges", "slabs moved", moved),
        *(Fact(f"from_{state}", f"  from {who}", _moved(side, state)) for state, who in _STATES),
        Fact("moved_share", "slabs moved per check", moved / checks if moved is not None and checks else None, SHARE),
        Fact("recharged_bytes", "bytes moved", side.increase(figures.RECHARGED_BYTES), BYTES),
        *(
            Fact(f"bytes_from_{state}", f"  from {who}", _moved(side, state, figures.RECHARGED_BYTES), BYTES)
            for state, who in _STATES
        ),
        Fact("failures", "allocations that failed for it", failures),
        of_share("failed_share", "failures, of moves and failures", failed),
        Fact("lost_races", "another task was first", side.increase(figures.LOST_RACES)),
    )
    verdict, reason = _judge(side, checks, moved, failures)
    return Verdict(verdict, reason, facts)


def _judge(side: Side, checks: float | None, moved: float | None, failures: float | None) -> tuple[str, str]:
    if side.each("era") == ["objcg"]:
        return UNTOLD, SHARED
    if side.patchset is False:
        return FAILS, NO_RECHARGE
    if checks is None:
        return UNTOLD, "recharge checks are not counted here"
    if checks < MIN_CHECKS:
        return UNTOLD, f"only {number(checks)} checks, fewer than {MIN_CHECKS}"
    from_dead = (_moved(side, "dying") or 0.0) + (_moved(side, "none") or 0.0)
    text = f"{number(checks)} checks moved {number(moved or 0)} slabs, {number(from_dead)} of them from the dead"
    failed = share(failures or 0.0, (failures or 0.0) + (moved or 0.0))
    if failed is not None and failed.low > _HALF:
        return FAILS, f"{text}, but {number(failures)} allocations failed for it"
    if from_dead >= MIN_DEAD:
        return HOLDS, f"{text}, {number(failures)} failed"
    held = any(
        track.largest(figure) for track in side.tracks for figure in track.names(figures.CHILD_SLABS)
    )  # fmt: skip
    if from_dead == 0 and held and (side.increase(figures.OFFLINED) or 0) >= MIN_DEAD:
        return FAILS, f"{text}, although the dead had slabs"
    return UNTOLD, f"{text}; it takes {MIN_DEAD} from the dead to tell"
