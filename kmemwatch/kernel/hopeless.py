# SPDX-License-Identifier: GPL-2.0-only
"""Facts that leave nothing to attach to, each with what to do about it. Pure."""

from __future__ import annotations

from kmemwatch.errors import UnsupportedError
from kmemwatch.kernel.facts import Facts


def refuse_hopeless(facts: Facts) -> None:
    """Raises UnsupportedError when no signal could work."""
    if facts.btf is False:
        raise UnsupportedError(
            "/sys/kernel/btf/vmlinux: this kernel has no BTF type information",
            hint="use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions ship since about 2021",
        )
    if facts.btf is None:
        raise UnsupportedError(
            "/sys/kernel/btf/vmlinux: the kernel's BTF type information is there, but cannot be read",
            hint="install the library that reads it: apt-get install libbpf1",
        )
    if facts.lockdown == "confidentiality":
        raise UnsupportedError(
            "/sys/kernel/security/lockdown: lockdown=confidentiality forbids BPF programs to read kernel memory",
            hint="boot with lockdown=integrity or without lockdown",
        )
    if facts.privileged is False:
        raise UnsupportedError(
            "no privilege to load BPF programs (CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN)",
            hint="run with sudo, or watch a running daemon: kmemwatch top --connect URL",
        )
    if facts.hierarchy is None:
        raise UnsupportedError(
            "/proc/cgroups: the memory controller is not enabled",
            hint="boot without cgroup_disable=memory (some ARM boards: with cgroup_enable=memory)",
        )
