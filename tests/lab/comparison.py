# SPDX-License-Identifier: GPL-2.0-only
"""The same churn on kernels with and without the series: what the guests run, which files they leave, and the verdicts
that `compare` must give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

KERNELS = ("baseline", "patched", "6.1")
"""Child caches as before the series, with the series, and Debian's stock kernel; names of the lab."""
PAIRS = (("baseline", "patched"), ("6.1", "patched"), ("baseline", "6.1"))
"""Sides A and B."""
GUEST_TEST = "tests/lab/guest/test_recorded_churn.py"

CGROUPS = 400
SEED = 2014
DEAD = 10
CHURN = (
    "--kind", "inode=2,dentry=1,pipe=1", "--objects", "200", "--leave", "1", "--dead", str(DEAD),
    "--cgroups", str(CGROUPS), "--rate", "4", "--seed", str(SEED),
)  # fmt: skip
"""Each cgroup leaves an inode, a name and a pipe, of 200 objects; they are gone when DEAD others have died.

One object is enough to keep a memcg where nothing lets go, and the slab that it leaves when it goes is as good. Where
objects stay for good the series keeps memcgs too: nobody allocates from a slab that is full, so it is never recharged.
No pages: those keep a memcg with the series as well as without.
"""
INTERVAL_S = 2
RECORD = ("--interval", str(INTERVAL_S), "--latency")

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told"
EXPECTED: Mapping[str, Mapping[str, str]] = {
    "baseline": {
        "caches-bounded": FAILS, "ids-reused": FAILS, "let-go": FAILS, "recharged": FAILS, "cost": UNTOLD,
    },
    "patched": {
        "caches-bounded": HOLDS, "ids-reused": HOLDS, "let-go": HOLDS, "recharged": HOLDS, "cost": UNTOLD,
    },
    # One cache for all memcgs: most claims are about something that it does not have.
    "6.1": {
        "caches-bounded": UNTOLD, "ids-reused": UNTOLD, "let-go": HOLDS, "recharged": UNTOLD, "cost": UNTOLD,
    },
}  # fmt: skip
"""Verdicts by kernel and key of the claim."""

FIGURES: Mapping[str, str] = {
    "removed": "css_offline",
    "released": "css_free",
    "dying_at_end": "dying",
    "ids_given": "ids_allocated",
    "ids_reused": "id_reuses",
    "ids_freed": "ids_freed",
    "ids_in_use_at_end": "ids_in_use",
    "checks": "recharge_checks",
    "recharges": "recharges",
    "from_dying": "recharges_from_dead",
    "from_none": "recharges_from_none",
    "failures": "recharge_failures",
    "lost_races": "recharge_lost_races",
}
"""Key of a fact of a claim -> what it is called among the figures of the kernel."""


def recording(directory: Path, kernel: str) -> Path:
    """What `kmemwatch record` wrote in the guest."""
    return directory / f"{kernel}.kmw"


def churn_report(directory: Path, kernel: str) -> Path:
    """What `kmemwatch churn` printed in the guest."""
    return directory / f"{kernel}.churn.json"


def counters(directory: Path, kernel: str) -> Path:
    """What the kernel itself counted meanwhile: names of `FIGURES` -> number; what it does not count is not there."""
    return directory / f"{kernel}.counters.json"
