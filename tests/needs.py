# SPDX-License-Identifier: GPL-2.0-only
"""What tests may need from the machine, each with a check of whether it is there.

``@pytest.mark.needs("root", "kprobes")`` skips where one is missing. In CI any other skip, and a
skip for a need that the machine meets, is a failure (tests/conftest.py).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cgroup_mounts import memory_mount
from tests.symbols import has_member, kernel_symbols

GUEST = os.environ.get("KMEMWATCH_GUEST")
"""Name of the lab kernel that runs these tests, None outside of the lab."""

FAILED = pytest.StashKey[bool]()
"""Key in the stash of a test: whether it has failed. Fixtures read it when they are torn down."""

TRACEFS = Path("/sys/kernel/tracing")

SLAB_COUNTERS = Path("/sys/kernel/debug/memcg_slab")
"""Counters that the kernels built for the lab keep: a line ``mode NAME``, then ``name value`` lines."""

BPFTOOL = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
"""Ordinary users do not have sbin on their PATH."""

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
"""Opens the report of `compare`. Debian's Chromium: Playwright's own builds are not packaged."""


def _fentry() -> bool:
    # Where the kernel refuses this list (lockdown), loading fentry programs fails with EPERM too.
    try:
        with (TRACEFS / "available_filter_functions").open() as functions:
            return bool(functions.readline()) and Path("/sys/kernel/btf/vmlinux").exists()
    except OSError:
        return False


def _cgroup_version() -> int | None:
    mount = memory_mount()
    return mount.version if mount else None


def _debian_archive() -> bool:
    from tests.lab.archive import has_debian_archive

    return has_debian_archive()


@functools.cache
def _package_index() -> bool:
    """Whether pip can download packages."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "click"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def _has_version(distribution: str, version: str) -> bool:
    try:
        return importlib.metadata.version(distribution) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def unpacked(program: str) -> str | None:
    """Path of a program that scripts/setup has unpacked without installing it; else of the installed program."""
    here = Path(__file__).parents[1] / ".venv/unpacked/usr/bin" / program
    return str(here) if here.exists() else shutil.which(program)


def _tells_kernel_memory() -> bool:
    """cgroup v2 has this since v5.18."""
    mount = memory_mount()
    return mount is not None and (mount.version == 1 or "\nkernel " in (mount.path / "memory.stat").read_text())


def _tree_is_open() -> bool:
    """Whether other users can read this tree; home directories are often closed to them."""
    here = Path(__file__).resolve()
    return here.stat().st_mode & 0o004 != 0 and all(parent.stat().st_mode & 0o001 for parent in here.parents)


NEEDS: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "bcc": lambda: importlib.util.find_spec("bcc") is not None,
    # Another version compiles to other code.
    "bcc 0.26.0": lambda: _has_version("bcc", "0.26.0"),
    "bpftool": lambda: BPFTOOL is not None,
    "bpftrace": lambda: shutil.which("bpftrace") is not None,
    "qemu": lambda: shutil.which("qemu-system-x86_64") is not None,
    "a Debian archive": _debian_archive,
    "a package index": _package_index,
    # PyYAML 6.0, the version of Debian 12, has no wheels for a later Python.
    "wheels of the lowest versions": lambda: sys.version_info < (3, 12),
    "a memory controller": lambda: memory_mount() is not None,
    "cgroup v1": lambda: _cgroup_version() == 1,
    "cgroup v2": lambda: _cgroup_version() == 2,
    "BTF": lambda: Path("/sys/kernel/btf/vmlinux").exists(),
    "kprobes": lambda: Path("/sys/bus/event_source/devices/kprobe").exists(),
    "fentry": _fentry,
    # The verifier of 5.10 refuses fentry on kfree.
    "first choices": lambda: GUEST != "5.10",
    "memcg tracepoints": lambda: (TRACEFS / "events/memcg/mod_memcg_state").exists(),
    "cache in tracepoints": lambda: "accounted" in _event_format("kmem/kmem_cache_alloc"),
    # Only the kernels built for the lab (tests/lab/linux) have counters to check kmemwatch against.
    "child caches": lambda: slab_mode() in ("private", "reuse"),
    "caches that all share": lambda: slab_mode() not in ("private", "reuse"),
    "recharges": lambda: slab_mode() == "reuse",
    "kernel memory in the cgroups' files": _tells_kernel_memory,
    # Since 7.2 the pages of a memcg that goes offline move to its parent, and no longer pin it.
    "pages that pin the dead": lambda: not _has_symbol("lru_reparent_memcg"),
    # By kfree_rcu(), since v6.12; before, epi_rcu_free() freed them one by one.
    "watches freed in batches": lambda: not _has_symbol("epi_rcu_free"),
    # Charged since v5.11; by v7.2 they come from BPF's own allocator.
    "tries made of kmalloc": lambda: _has_symbol("bpf_map_kmalloc_node") and not has_member("lpm_trie", "ma"),
    "kernel memory of nobody": lambda: "cgroup.memory=nokmem" in _command_line(),
    "objects of KFENCE": lambda: "kfence.sample_interval=1" in _command_line(),
    "swap": lambda: Path("/proc/swaps").exists(),
    "statistics that are added up": lambda: _has_symbol("mem_cgroup_css_rstat_flush"),
    "Prometheus": lambda: all(map(unpacked, ("prometheus", "promtool", "prometheus-alertmanager", "amtool"))),
    "systemd-analyze": lambda: shutil.which("systemd-analyze") is not None,
    "a browser": lambda: BROWSER is not None and importlib.util.find_spec("playwright") is not None,
    "Grafana's types": lambda: importlib.util.find_spec("grafana_foundation_sdk") is not None,
    "Textual 8.2.8": lambda: importlib.metadata.version("textual") == "8.2.8",
    "a tree that all may read": _tree_is_open,
    "the lab": lambda: GUEST is not None,
    "no lab": lambda: GUEST is None,
}


def _command_line() -> str:
    return Path("/proc/cmdline").read_text()


def _has_symbol(name: str) -> bool:
    return name in kernel_symbols()


def slab_mode() -> str | None:
    """``shared``, ``private`` or ``reuse``; None unless the kernel was built for the lab."""
    try:
        first = SLAB_COUNTERS.read_text().splitlines()[0]
    except OSError:
        return None
    return first.removeprefix("mode").strip()


def _event_format(event: str) -> str:
    try:
        return (TRACEFS / "events" / event / "format").read_text()
    except OSError:
        return ""


def require(*names: str) -> None:
    """Skip the running test unless the machine meets all of `names` (keys of NEEDS)."""
    for name in names:
        if not NEEDS[name]():
            pytest.skip(f"needs {name}")


def justified(reason: str) -> bool:
    """Whether a skip is justified: `reason` names a need, and the machine does not meet it.

    ``6.1: needs kprobes`` is about a kernel of the lab; the lab's table lists what each kernel lacks.
    """
    from tests.lab.kernels import GUESTS, VARIANTS

    where, _, name = reason.removeprefix("Skipped: ").rpartition("needs ")
    for kernel in (*GUESTS, *VARIANTS):
        if where == f"{kernel.name}: ":
            return name in kernel.may_skip
    return not where and name in NEEDS and not NEEDS[name]()
