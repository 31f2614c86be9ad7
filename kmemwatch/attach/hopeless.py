# SPDX-License-Identifier: GPL-2.0-only
"""Facts that leave nothing to attach to, each with what to do about it. Pure."""

from __future__ import annotations

import errno
import os

from kmemwatch.errors import ShortageError, UnsupportedError
from kmemwatch.kernel.facts import Facts


def refuse_hopeless(facts: Facts) -> None:
    """Raises UnsupportedError when no signal could work, ShortageError when that could not be looked up."""
    if facts.shortage is not None:
        raise ShortageError(*facts.shortage)
    if facts.unmounted is not None:
        raise UnsupportedError(*facts.unmounted)
    if not facts.btf:
        raise _without_btf(facts)
    if facts.lockdown == "confidentiality":
        raise UnsupportedError(
            "/sys/kernel/security/lockdown: lockdown=confidentiality forbids BPF programs to read kernel memory",
            hint="boot with lockdown=integrity or without lockdown",
        )
    if facts.host_namespace is False:
        raise UnsupportedError(
            "not the host's root: this is a user namespace (a rootless container?), which may not load BPF programs",
            hint="run it as root of the host, or in a container with its user namespace (--userns=host, as root)",
        )
    if facts.privileged is False:
        raise UnsupportedError(
            "no privilege to load BPF programs (CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN)",
            hint="run with sudo, or watch a running daemon: kmemwatch top --connect URL",
        )
    if facts.hierarchy is None:
        raise _without_hierarchy(facts.hierarchy_why)


def _without_btf(facts: Facts) -> UnsupportedError:
    if facts.btf is False:
        return UnsupportedError(
            "/sys/kernel/btf/vmlinux: this kernel has no BTF type information",
            hint="use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions ship since about 2021",
        )
    why = facts.btf_why or "/sys/kernel/btf/vmlinux: the kernel's BTF type information is there, but cannot be read"
    if os.strerror(errno.EACCES) in why or os.strerror(errno.EPERM) in why:
        hint = "on a host everybody may read it: look for what forbids it here, such as a container's profile"
    elif facts.btf_why is None or why.startswith("libbpf"):
        hint = "install the library that reads it: apt-get install libbpf1"
    else:
        hint = "it may take a newer library: apt-get install libbpf1"
    return UnsupportedError(why, hint)


def _without_hierarchy(why: str | None) -> UnsupportedError:
    why = why or "/proc/cgroups: the memory controller is not enabled"
    if why.startswith("/proc/cgroups"):
        hint = "boot without cgroup_disable=memory (some ARM boards: with cgroup_enable=memory)"
    else:
        hint = "mount it where it can be read: mount -t cgroup2 none /sys/fs/cgroup"
    return UnsupportedError(why, hint)
