# SPDX-License-Identifier: GPL-2.0-only
"""What the running kernel has: functions by name, members by BTF."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kmemwatch.kernel.btf import Btf


@cache
def kernel_symbols() -> frozenset[str]:
    """Names in /proc/kallsyms; read once, which takes an emulated machine seconds."""
    return frozenset(line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines())


def existing(function: str) -> str:
    """The name that it has on this kernel: ``_noprof`` since v6.10, as commit 7bd230a26648 made macros of many."""
    return next(name for name in (function, f"{function}_noprof") if name in kernel_symbols())


def has_member(struct: str, member: str) -> bool:
    """Whether BTF has the member, which may be a path (``rp.kp.addr``)."""
    with Btf() as btf:
        return btf.field(struct, member) is not None
