# SPDX-License-Identifier: GPL-2.0-only
"""What a test may need from the machine, each with a check, so that no skip goes unquestioned.

``@pytest.mark.needs("root", "kprobes")`` skips where one is missing. In CI any other skip, and a
skip for something that is there after all, counts as a failure (tests/conftest.py).
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
"""In the stash of a test: whether it failed so far, for what is torn down after it."""

TRACEFS = Path("/sys/kernel/tracing")

SLAB_COUNTERS = Path("/sys/kernel/debug/memcg_slab")
"""What the lab's own kernels count of themselves: a line ``mode NAME``, then ``name value`` lines."""

BPFTOOL = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
"""sbin is not on the PATH of ordinary users."""

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
"""What opens the report of `compare`; Debian's, as Playwright's own builds are not packaged."""


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
    """Whether pip gets anything."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "click"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def _has_version(distribution: str, version: str) -> bool:
    try:
        return importlib.metadata.version(distribution) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def unpacked(program: str) -> str | None:
    """A program of a package that scripts/setup unpacks and does not install; else the installed one."""
    here = Path(__file__).parents[1] / ".venv/unpacked/usr/bin" / program
    return str(here) if here.exists() else shutil.which(program)


def _tells_kernel_memory() -> bool:
    """On v2 since v5.18."""
    mount = memory_mount()
    return mount is not None and (mount.version == 1 or "\nkernel " in (mount.path / "memory.stat").read_text())


def _tree_is_open() -> bool:
    """Whether other users reach this tree: home directories are often closed to them."""
    here = Path(__file__).resolve()
    return here.stat().st_mode & 0o004 != 0 and all(parent.stat().st_mode & 0o001 for parent in here.parents)


NEEDS: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "bcc": lambda: importlib.util.find_spec("bcc") is not None,
    # Another compiler makes other code.
    "bcc 0.26.0": lambda: _has_version("bcc", "0.26.0"),
    "bpftool": lambda: BPFTOOL is not None,
    "bpftrace": lambda: shutil.which("bpftrace") is not None,
    "qemu": lambda: shutil.which("qemu-system-x86_64") is not None,
    "a Debian archive": _debian_archive,
    "a package index": _package_index,
    # PyYAML 6.0, which Debian 12 has, has no wheels for later ones.
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
    # What the lab's own kernels tell of themselves (tests/lab/linux); other kernels with them cannot check us.
    "child caches": lambda: slab_mode() in ("private", "reuse"),
    "caches that all share": lambda: slab_mode() not in ("private", "reuse"),
    "recharges": lambda: slab_mode() == "reuse",
    "kernel memory in the cgroups' files": _tells_kernel_memory,
    # On 7.2 the pages of a memcg that goes offline become its parent's, and keep it no more.
    "pages that pin the dead": lambda: not _has_symbol("lru_reparent_memcg"),
    # By kfree_rcu(); one by one in a function of its own before v6.12.
    "watches freed in batches": lambda: not _has_symbol("epi_rcu_free"),
    # Charged since v5.11; by v7.2 BPF has an allocator of its own for them.
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
    """``shared``, ``private`` or ``reuse``; None on a kernel that is not the lab's own."""
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
    """Skip the running test unless all of `names` (keys of NEEDS) are here."""
    for name in names:
        if not NEEDS[name]():
            pytest.skip(f"needs {name}")


def justified(reason: str) -> bool:
    """Whether a skip for `reason` had to be: it names a need, and that need is really missing.

    ``6.1: needs kprobes`` is about a kernel of the lab, and the lab's table has what it lacks.
    """
    from tests.lab.kernels import GUESTS, VARIANTS

    where, _, name = reason.removeprefix("Skipped: ").rpartition("needs ")
    for kernel in (*GUESTS, *VARIANTS):
        if where == f"{kernel.name}: ":
            return name in kernel.may_skip
    return not where and name in NEEDS and not NEEDS[name]()
