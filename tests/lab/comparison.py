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
"""Each cgroup leaves an inode, a name and a pipe, of 200 objects; they go when DEAD others have died.

One object, or the slab that it leaves, is enough to pin a memcg on `baseline`. If objects stay for good, they pin
memcgs with the series too: nobody allocates from a full slab, so it is never recharged. There are no pages, because
those pin a memcg with the series as well as without.
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
"""Key of a fact of a claim -> the name of the kernel's own figure."""


def recording(directory: Path, kernel: str) -> Path:
    """The recording of the guest."""
    return directory / f"{kernel}.kmw"


def churn_report(directory: Path, kernel: str) -> Path:
    """The churn report of the guest."""
    return directory / f"{kernel}.churn.json"


def counters(directory: Path, kernel: str) -> Path:
    """What the kernel itself counted meanwhile: names of `FIGURES` -> number, without those that it does not count."""
    return directory / f"{kernel}.counters.json"
