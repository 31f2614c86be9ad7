# SPDX-License-Identifier: GPL-2.0-only
"""Facts about the running kernel and our privileges. Nothing is decided here, and nothing stays loaded.

A fact is True, False, a value, or None: it could not be checked, which is not the same as False.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from kmemwatch.errors import ShortageError, UnsupportedError, raise_if_shortage
from kmemwatch.kernel import bpf_calls, cgroupfs, libbpf, members
from kmemwatch.kernel import btf as btf_module
from kmemwatch.kernel.btf import Btf

T = TypeVar("T")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
KCORE = Path("/proc/kcore")
KALLSYMS = Path("/proc/kallsyms")
USER_NAMESPACE = Path("/proc/self/ns/user")
_HOST_USER_NAMESPACE = 0xEFFFFFFD
"""``PROC_USER_INIT_INO``: inode of the user namespace that a kernel boots with; later ones get other inodes."""
COMMAND_LINE = Path("/proc/cmdline")
POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")
"""``0-3``, or with gaps ``0-3,8-11``."""

CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39

TRACEPOINTS = (
    "kmem_cache_alloc",
    "kmem_cache_alloc_node",
    "kmem_cache_free",
    "kmalloc",
    "kmalloc_node",
    "kfree",
    "mod_memcg_state",
    "cgroup_mkdir",
    "cgroup_rmdir",
    "cgroup_release",
    "rcu_invoke_kfree_bulk_callback",
)

_KMEM_CACHE = (
    "kmem_cache_alloc",
    "kmem_cache_alloc_lru",
    "kmem_cache_alloc_node",
    "kmem_cache_alloc_trace",
    "kmem_cache_alloc_node_trace",
    "kmem_cache_alloc_bulk",
    "kmalloc_trace",
    "kmalloc_node_trace",
    "__kmem_cache_alloc_node",
    "__kmalloc_cache",
    "__kmalloc_cache_node",
    "__kmalloc",
    "__kmalloc_node",
    "__kmalloc_track_caller",
    "__kmalloc_node_track_caller",
)

FUNCTIONS = (
    *_KMEM_CACHE,
    # Linux kernel commit 7bd230a26648 ("mm/slab: enable slab allocation tagging for kmalloc and friends") (in v6.10).
    *(f"{name}_noprof" for name in _KMEM_CACHE),
    "kmem_cache_free",
    "kfree",
    "kmem_cache_free_bulk",
    "__rcu_free_sheaf_prepare",
    "__mod_memcg_state",
    "__memcg_kmem_charge",
    "__memcg_kmem_uncharge",
    "memcg_charge_kmem",
    "memcg_uncharge_kmem",
    "mem_cgroup_css_online",
    "mem_cgroup_css_offline",
    "mem_cgroup_css_released",
    "__memcg_kmem_recharge_slab",
    "memcg_alloc_cache_id",
    "memcg_free_cache_id",
    "memcg_get_cache_ids",
    "slab_kmem_cache_release",
    "__memcg_kmem_get_cache",
    "memcg_kmem_get_cache",
    "memcg_create_kmem_cache",
    "lru_reparent_memcg",
)

DATA_SYMBOLS = (
    "slab_caches",
    "mem_cgroup_stats_index",
    "__per_cpu_offset",
    "_text",
)

RECHARGE_FUNCTION = "__memcg_kmem_recharge_slab"
RECHARGE = "recharge"
"""Era of a kernel with the patch set: child caches per memcg that are reused, slabs that move between memcgs."""
PER_MEMCG = "per-memcg"
"""Era of v4.1 to v5.8: child caches per memcg, no slab moves."""
OBJCG = "objcg"
"""Era since Linux kernel commit 10befea91b61 (v5.9): memcgs share caches, and each object has an owner."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of one host. They can be written to JSON and read back: the tests of `plan` use those of other hosts."""

    release: str
    arch: str
    page_bytes: int
    cpus: int
    privileged: bool | None
    """kmemwatch may load tracing programs: CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, in the host's user namespace."""
    lockdown: str | None
    kprobes: bool | None
    """The kernel has the kprobe PMU, which removes a probe when its descriptor is closed."""
    tracefs: str | None
    """Where it is mounted; None when it is not, or when kmemwatch may not look into it."""
    btf: bool | None
    hierarchy: Mapping[str, object] | None
    """`cgroupfs.Hierarchy` as a dict."""
    symbols: Mapping[str, int] | None
    """Address of each of FUNCTIONS and DATA_SYMBOLS that /proc/kallsyms has; 0 where the kernel hides it."""
    fentry: bool | None = None
    """The kernel loads a test program of type fentry. Only trying shows that: a kernel can have BTF, trampolines and
    ftrace, and still refuse (lockdown, a hardened build)."""
    fentry_why: str | None = None
    """Why `fentry` is False."""
    function_args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Argument types of each of FUNCTIONS that BTF has."""
    tracepoint_args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    enums: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    current_task_btf: bool | None = None
    """The helper bpf_get_current_task_btf() exists."""
    gfp_account: int | None = None
    """Value of __GFP_ACCOUNT."""
    kcore: bool | None = None
    """kmemwatch can read /proc/kcore, which has the ranges of kernel addresses that are memory."""
    possible_cpus: int | None = None
    """The highest number that a CPU may ever have, plus one; None when sysfs does not say."""
    host_namespace: bool | None = None
    """kmemwatch runs in the user namespace that the kernel booted with; root of another one is not the host's root."""
    unmounted: tuple[str, str] | None = None
    """Which of /proc and /sys is missing here, so that nothing else can be checked; and what to do about it."""
    btf_why: str | None = None
    """Why `btf` is None."""
    hierarchy_why: str | None = None
    """Why `hierarchy` is None."""
    own_cgroup: str | None = None
    """Path of this process in the memory hierarchy, as its cgroup namespace shows it."""
    tracefs_why: str | None = None
    """Why `tracefs` is None."""
    shortage: tuple[str, str] | None = None
    """What ran out while kmemwatch looked, and what to do. Facts may be None for that reason alone."""
    nokmem: bool | None = None
    """The kernel was started with ``cgroup.memory=nokmem``: it charges no kernel memory."""

    def to_json(self, addresses: bool = False) -> str:
        """Stable JSON text. Without `addresses`, symbols have null for theirs, and 0 where the kernel hides it."""
        raw = asdict(self)
        if self.symbols is not None and not addresses:
            raw["symbols"] = {name: None if address else 0 for name, address in self.symbols.items()}
        return json.dumps(raw, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Facts:
        """Inverse of `to_json`."""
        return Facts.from_raw(json.loads(text))

    @staticmethod
    def from_raw(raw: Mapping[str, Any]) -> Facts:
        """Inverse of `asdict`, also after JSON has made lists of tuples. Ignores facts of other versions."""
        functions, tracepoints = raw["function_args"], raw["tracepoint_args"]
        known = {one.name for one in fields(Facts)}
        pairs = {name: tuple(raw[name]) for name in ("unmounted", "shortage") if raw.get(name) is not None}
        symbols = raw["symbols"]
        args = {
            **pairs,
            "symbols": symbols and {name: _HAS_ADDRESS if at is None else at for name, at in symbols.items()},
            "function_args": {name: tuple(types) for name, types in functions.items()},
            "tracepoint_args": {name: tuple(types) for name, types in tracepoints.items()},
        }
        return Facts(**{**{name: value for name, value in raw.items() if name in known}, **args})


_HAS_ADDRESS = 1
"""Replaces the address of a symbol that `Facts.to_json` left out."""


def has_patchset(facts: Facts) -> bool | None:
    """The kernel has the patch set; None when neither symbols nor BTF can be read."""
    if facts.symbols is None and not facts.btf:
        return None
    return RECHARGE_FUNCTION in (facts.symbols or {}) or RECHARGE_FUNCTION in facts.function_args


def era(facts: Facts) -> str | None:
    """How this kernel accounts slab memory: RECHARGE, PER_MEMCG or OBJCG; None when the facts do not say.

    From symbols and BTF, never from the version number.
    """
    if has_patchset(facts):
        return RECHARGE
    known = {*(facts.symbols or ()), *facts.function_args}
    if {"memcg_create_kmem_cache", "memcg_kmem_get_cache", "__memcg_kmem_get_cache"} & known:
        return PER_MEMCG
    return OBJCG if "obj_cgroup__memcg" in facts.offsets else None


class _Looks:
    """Runs one check after the other. A check that meets a shortage gives None; the first shortage is kept."""

    def __init__(self) -> None:
        self.shortage: tuple[str, str] | None = None

    def __call__(self, look: Callable[..., T], *args: Any) -> T | None:
        try:
            return look(*args)
        except ShortageError as error:
            self.shortage = self.shortage or (str(error), error.hint or "")
            return None


def gather() -> Facts:
    """Look at this host. Never raises for what the host lacks: that is a fact, too."""
    look = _Looks()
    unmounted = why_unmounted()
    hierarchy = look(cgroupfs.find_memory)
    tracefs, tracefs_why = look(_tracefs) or (None, None)
    host_namespace = look(_host_namespace)
    privileged = look(_privileged, host_namespace)
    found: dict[str, Any] = {
        "release": platform.release(),
        "arch": platform.machine(),
        "page_bytes": resource.getpagesize(),
        "cpus": os.cpu_count() or 1,
        "possible_cpus": look(_possible_cpus),
        "privileged": privileged,
        "host_namespace": host_namespace,
        "unmounted": unmounted,
        "lockdown": look(_lockdown),
        "kprobes": _is_dir(bpf_calls.KPROBE_PMU) if _is_dir(bpf_calls.KPROBE_PMU.parent) else None,
        "tracefs": str(tracefs) if tracefs else None,
        "tracefs_why": tracefs_why,
        "hierarchy": None if hierarchy is None else asdict(hierarchy),
        "hierarchy_why": look(cgroupfs.why_not_found) if hierarchy is None else None,
        "own_cgroup": None if hierarchy is None else look(cgroupfs.own_path, hierarchy),
        "symbols": look(symbol_addresses, (*FUNCTIONS, *DATA_SYMBOLS)),
        "nokmem": look(_nokmem),
        # Only root may read it.
        "kcore": look(_starts_with, KCORE, b"\x7fELF") if privileged else None,
        **((None if unmounted else look(_btf_facts, tracefs, privileged)) or {"btf": None}),
    }
    return Facts(**found, shortage=look.shortage)


def _btf_facts(tracefs: Path | None, privileged: bool | None) -> dict[str, Any]:
    """Raises ShortageError."""
    try:
        btf = Btf()
    except btf_module.NoBtfError:
        return {"btf": False}
    except UnsupportedError as error:
        # The library that reads it is missing, or kmemwatch may not read it: the kernel may still have BTF.
        return {"btf": None, "btf_why": str(error)}
    with btf:
        functions = {name: btf.function_args(name) for name in FUNCTIONS}
        tracepoints = {name: btf.tracepoint_args(name) for name in TRACEPOINTS}
        return {
            "btf": True,
            "function_args": {name: args for name, args in functions.items() if args is not None},
            "tracepoint_args": {name: args for name, args in tracepoints.items() if args is not None},
            "offsets": members.read_offsets(btf),
            "sizes": members.read_sizes(btf),
            "enums": {name: btf.enum_values(name) for name in members.ENUMS},
            "current_task_btf": btf.enum_value("bpf_func_id", "BPF_FUNC_get_current_task_btf") is not None,
            "gfp_account": _gfp_account(tracefs),
            **dict(zip(("fentry", "fentry_why"), try_fentry(btf, privileged), strict=True)),
        }


def symbol_addresses(names: Iterable[str], path: Path = KALLSYMS) -> Mapping[str, int] | None:
    """Address of every symbol of `names` that exists, 0 where the kernel hides it; None when the file cannot be read.

    Symbols of modules are left out. A static function that exists twice gives the first. Reading takes the kernel some
    70 ms, so ask once for all.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise_if_shortage(error, str(path))
        return None
    # The address is as wide as a pointer everywhere: "ffffffff81000000 T name". Slicing 120,000 lines takes 35 ms, a
    # regular expression with all names three times as long; start-up has 1.5 s.
    start = text.find(b" ") + len(" T ")
    wanted = {name.encode(): name for name in names}
    found: dict[str, int] = {}
    for line in text.split(b"\n"):
        if line[start:] in wanted:
            found.setdefault(wanted[line[start:]], int(line[: start - 3], 16))
    return found


def try_fentry(btf: Btf, privileged: bool | None, function: str = "kfree") -> tuple[bool | None, str | None]:
    """(whether the kernel loads a test program of type fentry, why not). None: kmemwatch could not try, which says
    nothing about the kernel. The program is dropped at once. Raises ShortageError."""
    function_id = btf.function_id(function)
    if function_id is None:
        return False, f"BTF has no function {function}"
    if not libbpf.has("bpf_prog_load") or privileged is False:
        return None, None
    kind, attach_type = bpf_calls.LOADS["fentry"]
    try:
        os.close(bpf_calls.load_program(kind, "kmw_test", bpf_calls.RETURN_0, attach_type, function_id))
    except OSError as error:
        raise_if_shortage(error, "a test program cannot be loaded", bpf=True)
        return False, f"the kernel refuses a test program for {function}: {libbpf.error_text(error.errno or 0)}"
    return True, None


def why_unmounted(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> tuple[str, str] | None:
    """`Facts.unmounted`: looks for names that every kernel has there."""
    if not (proc / "self/status").exists():
        return f"{proc}: not mounted", f"mount -t proc proc {proc}"
    if not (proc / "sys").exists():
        return f"{proc}: mounted so that it shows processes only (subset=pid)", f"mount -t proc proc {proc}"
    if not _is_dir(sys / "kernel"):
        return f"{sys}: not mounted", f"mount -t sysfs sysfs {sys}; a container needs that of the host"
    return None


def _host_namespace(path: Path = USER_NAMESPACE) -> bool | None:
    """Kernels without user namespaces have no such file."""
    try:
        return path.stat().st_ino == _HOST_USER_NAMESPACE
    except FileNotFoundError:
        return True if path.parent.exists() else None
    except OSError:
        return None


def _tracefs() -> tuple[Path | None, str | None]:
    """(where it is, why not)."""
    why = f"not mounted at {TRACEFS[0]}"
    for path in TRACEFS:
        try:
            (path / "events").stat()
        except PermissionError:
            why = "not ours to read"
        except OSError as error:
            raise_if_shortage(error, str(path))
        else:
            return path, None
    return None, why


def _possible_cpus(path: Path = POSSIBLE_CPUS) -> int | None:
    """A machine to which CPUs can be added has more possible ones than present ones."""
    try:
        return int(re.split("[-,]", path.read_text().strip())[-1]) + 1
    except (OSError, ValueError) as error:
        raise_if_shortage(error, str(path))
        return None


def _nokmem(path: Path = COMMAND_LINE) -> bool | None:
    try:
        words = path.read_text(errors="surrogateescape").split()
    except OSError as error:
        raise_if_shortage(error, str(path))
        return None
    return any("nokmem" in word.partition("=")[2].split(",") for word in words if word.startswith("cgroup.memory="))


def _is_dir(path: Path) -> bool:
    """False also where kmemwatch may not look: only root may enter tracefs."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise_if_shortage(error, str(path))
        return False


def _privileged(host_namespace: bool | None) -> bool | None:
    """Capabilities in another user namespace do not count: the kernel checks those of the host's."""
    if host_namespace is False:
        return False
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        raise_if_shortage(error, "/proc/self/status")
        return None
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if match is None:
        return None
    effective = int(match[1], 16)
    has = [bool(effective >> cap & 1) for cap in (CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF)]
    return has[0] or (has[1] and has[2])


def _lockdown(path: Path = LOCKDOWN) -> str | None:
    """``none``, ``integrity``, ``confidentiality``; None when securityfs is not mounted."""
    try:
        match = re.search(r"\[(\w+)\]", path.read_text())
    except OSError as error:
        raise_if_shortage(error, str(path))
        return None
    return match[1] if match else None


def _gfp_account(tracefs: Path | None) -> int | None:
    """__GFP_ACCOUNT is a macro; its bit is an enum since commit 772dd0342727 ("mm: enumerate all gfp flags")."""
    bit = btf_module.find_anonymous_constant("___GFP_ACCOUNT_BIT", "___GFP_")
    if bit is not None:
        return 1 << bit
    if tracefs is None:
        return None
    try:
        text = (tracefs / "events/kmem/kmalloc/format").read_text()
    except OSError as error:
        raise_if_shortage(error, str(tracefs))
        return None
    # The format file shows C after the preprocessor: {( unsigned long)((( gfp_t)0x400000u)), "..."}
    match = re.search(r'\{([^{}]*),\s*"__GFP_ACCOUNT"', text)
    number = re.search(r"0x([0-9a-f]+)u", match[1]) if match else None
    return int(number[1], 16) if number else None
