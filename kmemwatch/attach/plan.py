# SPDX-License-Identifier: GPL-2.0-only
"""Facts -> what to attach: for each signal the candidates, best first, and a reason for each that is left out. Pure.

A candidate is a set of hooks that together give the signal. The loader tries the candidates of a signal in order and
keeps the first one whose programs the kernel all accepts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kmemwatch.errors import ShortageError, UnsupportedError, UsageError
from kmemwatch.kernel.facts import RECHARGE_FUNCTION, Facts
from kmemwatch.maps.defines import Defines, defines

RAW_TP, FENTRY, FEXIT, KPROBE, KRETPROBE, TEST_RUN = "raw_tp", "fentry", "fexit", "kprobe", "kretprobe", "test_run"
KINDS = (RAW_TP, FENTRY, KPROBE)
"""Kinds for ``--without``; FENTRY includes FEXIT, and KPROBE includes KRETPROBE."""


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a program of bpf/ is attached."""

    kind: str
    """RAW_TP, FENTRY, FEXIT, KPROBE, KRETPROBE, or TEST_RUN: attached to nothing, run by user space."""
    target: str
    """Tracepoint or function, as this kernel names it; for TEST_RUN the name of the program."""
    gfp_at: int | None = None
    """Of an allocator: index of the argument that has the flags."""
    return_at: int | None = None
    """FEXIT: index of the return value, which follows the arguments."""
    twice: bool = False
    """There is a second program, `program` + ``_missed``: it counts events that the first misses (bpf/alloc.bpf.c)."""
    timed: bool = False
    """The program measures time (bpf/latency.bpf.c) and counts nothing."""

    @property
    def name(self) -> str:
        """The target as bpf/ names it: without ``_noprof``, which functions got in v6.10."""
        return self.target.removesuffix("_noprof")

    @property
    def program(self) -> str:
        """The function of bpf/ that is attached."""
        return f"{self.kind}_{'timed_' if self.timed else ''}{self.name}"

    @property
    def programs(self) -> tuple[str, ...]:
        """`program`, and the second one if there is one."""
        return (self.program, f"{self.program}_missed") if self.twice else (self.program,)

    @property
    def counts_runs(self) -> bool:
        """The program counts its runs (map ``runs``). Timed calls are only a sample, so their programs do not."""
        return self.kind in (KPROBE, KRETPROBE) and not self.timed

    @property
    def macros(self) -> dict[str, int]:
        """Macros that compile this hook's programs, see bpf/hooks.h."""
        places = {f"GFP_AT_{self.name}": self.gfp_at, f"RETURN_AT_{self.name}": self.return_at}
        return {f"USE_{self.program}": 1} | {name: at for name, at in places.items() if at is not None}


@dataclass(frozen=True, slots=True)
class Candidate:
    hooks: tuple[Hook, ...]
    limits: str | None = None
    """What this candidate cannot see, in one line."""

    @property
    def name(self) -> str:
        """For people: ``raw_tp:kmem_cache_alloc+kmalloc``."""
        kinds: dict[str, list[str]] = {}
        for hook in self.hooks:
            kinds.setdefault(hook.kind, []).append(hook.target)
        return ",".join(f"{kind}:{'+'.join(targets)}" for kind, targets in kinds.items())


@dataclass(frozen=True, slots=True)
class Signal:
    name: str
    source: str
    """File in bpf/ that has the programs."""
    candidates: tuple[Candidate, ...]
    """Best first; empty when this kernel cannot give the signal."""
    skipped: tuple[str, ...]
    """Why candidates were left out, one line each."""
    refused: tuple[str, ...] = ()
    """Reasons of candidates that the kernel rejected, best first; filled while loading."""
    applies: bool = True
    """False: this kernel has nothing that the signal could count; `skipped` says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    defines: Defines
    signals: tuple[Signal, ...]

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """Hooks of all candidates."""
        return tuple(hook for signal in self.signals for option in signal.candidates for hook in option.hooks)

    @property
    def macros(self) -> dict[str, int]:
        """All macros of a compilation. ``RUN_*``: index of a program in the map ``runs``."""
        values = dict(self.defines.values)
        for hook in self.hooks:
            values |= hook.macros
        counting = list(dict.fromkeys(hook.program for hook in self.hooks if hook.counts_runs))
        values |= {f"RUN_{program}": number for number, program in enumerate(counting)}
        return values | ({"RUNS": len(counting)} if counting else {})

    def cflags(self) -> list[str]:
        """For the compiler."""
        # Without ULL, clang warns about numbers that need all 64 bits.
        return [f"-D{name}={value}{'ULL' if value >> 63 > 0 else ''}" for name, value in sorted(self.macros.items())]


def plan(facts: Facts, without: Sequence[str] = (), latency: bool = False) -> Plan:
    """Decide what to attach, without the KINDS in `without`; `latency` adds the signal of that name.

    Raises UnsupportedError when nothing can work on this host.
    """
    unknown = [kind for kind in without if kind not in KINDS]
    if unknown:
        raise UsageError(
            f"--without: no attachment is called {', '.join(unknown)}", hint=f"there are {', '.join(KINDS)}"
        )
    _require_basics(facts)
    found = defines(facts)
    chooser = _Chooser(facts, found, tuple(without))
    return Plan(
        found,
        (
            chooser.signal("pins", "peek.bpf.c", chooser.pins()),
            chooser.signal("alloc", "alloc.bpf.c", chooser.alloc()),
            chooser.signal("alloc-bulk", "alloc.bpf.c", chooser.alloc_bulk()),
            chooser.signal("free", "alloc.bpf.c", chooser.free()),
            chooser.signal("free-bulk", "alloc.bpf.c", chooser.free_bulk()),
            chooser.signal("charge", "charge.bpf.c", chooser.charge()),
            chooser.signal("lifecycle", "lifecycle.bpf.c", chooser.lifecycle()),
            # Before `recharge`: the program that is attached last runs first at an entry, so the time of a check does
            # not include that of the recharge program.
            *([chooser.signal("latency", "latency.bpf.c", chooser.latency())] if latency else []),
            chooser.child_signal("caches", "caches.bpf.c", chooser.caches()),
            chooser.child_signal("ids", "caches.bpf.c", chooser.ids()),
            chooser.child_signal("recharge", "recharge.bpf.c", chooser.recharge()),
            chooser.child_signal("slabs", "scan.bpf.c", chooser.slabs()),
        ),
    )


def _require_basics(facts: Facts) -> None:
    """Raise UnsupportedError when the facts rule out every signal, ShortageError when they are incomplete."""
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
        hint = "every user of a host may read it: look for what forbids it here, such as a container's profile"
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


class _Reason(Exception):
    """Why a candidate is left out."""


class _Chooser:
    """One generator per signal: it yields Candidates, and a str with the reason for each that is left out."""

    def __init__(self, facts: Facts, found: Defines, without: tuple[str, ...]) -> None:
        self._facts = facts
        self._defines = found
        self._without = without

    def signal(self, name: str, source: str, options: Iterator[Candidate | str]) -> Signal:
        lacking = self._defines.lacking(source)
        if lacking is not None:
            return Signal(name, source, (), (lacking,))
        if self._facts.nokmem and name == "charge":
            return Signal(name, source, (), (f"{_NOKMEM}: nothing is charged",), applies=False)
        found = list(options)
        candidates = [option for option in found if isinstance(option, Candidate)]
        if self._facts.nokmem and name in _LIMITS_WITH_NOKMEM:
            limit = f"{_NOKMEM}: {_LIMITS_WITH_NOKMEM[name]}"
            candidates = [replace(one, limits="; ".join(filter(None, (one.limits, limit)))) for one in candidates]
        return Signal(name, source, tuple(candidates), tuple(option for option in found if isinstance(option, str)))

    def child_signal(self, name: str, source: str, options: Iterator[Candidate | str]) -> Signal:
        """A signal that exists only where memcgs have child caches."""
        needed = RECHARGE_FUNCTION if name == "recharge" else "memcg_create_kmem_cache"
        if needed not in self._known:
            return Signal(name, source, (), (_WITHOUT_CHILD_CACHES[name],), applies=False)
        return self.signal(name, source, options)

    # The signals

    def pins(self) -> Iterator[Candidate | str]:
        # Linux kernel commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in v5.13) made a struct of them.
        lags = "memcg_vmstats__state" not in self._facts.offsets
        limits = "statistics lag by up to 32 pages a CPU, as memory.stat does" if lags else None
        yield Candidate(tuple(Hook(TEST_RUN, name) for name in ("walk", "peek", "peek_many")), limits)

    def alloc(self) -> Iterator[Candidate | str]:
        yield self._try(RAW_TP, self._alloc_tracepoints)
        yield self._try(FENTRY, partial(self._alloc_functions, FENTRY))
        yield self._try(KPROBE, partial(self._alloc_functions, KPROBE))

    def alloc_bulk(self) -> Iterator[Candidate | str]:
        for kind in (FEXIT, KPROBE):
            yield self._try(kind, partial(self._functions, kind, "kmem_cache_alloc_bulk"))

    def free(self) -> Iterator[Candidate | str]:
        yield self._try(RAW_TP, self._free_tracepoints)
        both = ("kmem_cache_free", "kfree")
        yield self._try(FENTRY, partial(self._functions, FENTRY, *both, twice=True))
        limits = "misses frees in an interrupt that hits while a kprobe is handled, and counts them as lost"
        yield self._try(KPROBE, partial(self._functions, KPROBE, *both, limits=limits))

    def free_bulk(self) -> Iterator[Candidate | str]:
        # Kprobes first: the verifier lets no fentry program read an argument of type void ** (seen up to v6.12).
        for kind in (KPROBE, FENTRY):
            yield self._try(kind, partial(self._free_bulk_functions, kind))
        yield self._try(RAW_TP, self._free_bulk_tracepoint)

    def charge(self) -> Iterator[Candidate | str]:
        if "MEMCG_KMEM" in self._defines.values:
            yield self._try(RAW_TP, partial(self._tracepoints, "mod_memcg_state"))
            for kind in (FENTRY, KPROBE):
                yield self._try(kind, partial(self._functions, kind, "__mod_memcg_state"))
            return
        # Before Linux kernel commit a8c49af3be5f ("memcg: add per-memcg total kernel memory stat") (in v5.18).
        yield "enum memcg_stat_item has no MEMCG_KMEM: kernel memory is not one statistic here"
        yield self._try(FEXIT, partial(self._kmem_charge, FEXIT, FENTRY))
        yield self._try(KPROBE, partial(self._kmem_charge, KPROBE, KPROBE))

    def lifecycle(self) -> Iterator[Candidate | str]:
        functions = [f"mem_cgroup_css_{event}" for event in ("online", "offline", "released")]
        for kind in (FENTRY, KPROBE):
            yield self._try(kind, partial(self._functions, kind, *functions))
        tracepoints = ("cgroup_mkdir", "cgroup_rmdir", "cgroup_release")
        limits = "reports rmdir, shortly before a memcg goes offline; misses controllers that are enabled after mkdir"
        yield self._try(RAW_TP, partial(self._tracepoints, *tracepoints, limits=limits))

    def caches(self) -> Iterator[Candidate | str]:
        for entry, at_return in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            created = (at_return, "memcg_create_kmem_cache")
            yield self._try(entry, partial(self._mixed, created, (entry, "slab_kmem_cache_release")))

    def ids(self) -> Iterator[Candidate | str]:
        for entry, at_return in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            given = (at_return, "memcg_alloc_cache_id")
            yield self._try(entry, partial(self._mixed, given, (entry, "memcg_free_cache_id")))

    def recharge(self) -> Iterator[Candidate | str]:
        for entry, at_return in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            hooks = (
                (entry, "memcg_charge_kmem"),
                (entry, "memcg_uncharge_kmem"),
                # The entry last: every check that is seen to begin is then followed to its end.
                (at_return, RECHARGE_FUNCTION),
                (entry, RECHARGE_FUNCTION),
            )
            yield self._try(entry, partial(self._mixed, *hooks))

    def latency(self) -> Iterator[Candidate | str]:
        for pair in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            yield self._try(pair[0], partial(self._timed, *pair))

    def slabs(self) -> Iterator[Candidate | str]:
        unread = "/proc/kcore cannot be read: it says which kernel addresses are memory"
        yield unread if self._facts.kcore is False else Candidate((Hook(TEST_RUN, "scan"),))

    # Their parts

    def _alloc_tracepoints(self) -> Candidate:
        hooks = []
        for name in ("kmem_cache_alloc", "kmem_cache_alloc_node", "kmalloc", "kmalloc_node"):
            args = self._facts.tracepoint_args.get(name)
            if args is None:
                if name.endswith("_node"):
                    # Linux kernel commit 11e9734bcb6a ("mm/slab_common: unify NUMA and UMA version of tracepoints")
                    # (in v6.1) left one event for both.
                    continue
                raise _Reason(f"no tracepoint {name}")
            hooks.append(Hook(RAW_TP, name, twice=True))
        return Candidate(tuple(hooks))

    def _alloc_functions(self, kind: str) -> Candidate:
        shared = self._existing(("__kmem_cache_alloc_node",))
        by_cache = [*self._existing(_CACHE_FUNCTIONS), *(shared or self._existing(_KMALLOC_CACHE_FUNCTIONS))]
        hooks = [self._by_cache(kind, name) for name in by_cache]
        if not self._existing(("kmem_cache_alloc",)):
            raise _Reason("no function kmem_cache_alloc, or /proc/kallsyms cannot be read")
        if shared:
            return Candidate(tuple(hooks))
        if kind == FENTRY:
            for name in self._existing(_KMALLOC_SIZE_FUNCTIONS):
                args = self._facts.function_args.get(name, ())
                hooks.append(Hook(FEXIT, name, _gfp_at(args), len(args), twice=True))
            return Candidate(tuple(hooks))
        return Candidate(tuple(hooks), "misses kmalloc() of sizes that are not known at compile time")

    def _by_cache(self, kind: str, function: str) -> Hook:
        """A hook on a function whose first argument is the cache: at return (FEXIT), where the arguments are still
        known."""
        args = self._facts.function_args.get(function, ("kmem_cache *", "gfp_t"))
        if kind == FENTRY:
            return Hook(FEXIT, function, _gfp_at(args), len(args), twice=True)
        return Hook(kind, function, _gfp_at(args))

    def _free_tracepoints(self) -> Candidate:
        if self._facts.tracepoint_args.get("kmem_cache_free", ())[2:3] != ("kmem_cache *",):
            # Until Linux kernel commit 3544de8ee6e4 ("mm, tracing: record slab name for kmem_cache_free()") and what
            # followed it in v6.1, the event came after the free, when the object no longer has its owner.
            raise _Reason("tracepoint kmem_cache_free comes after the object has lost its owner")
        return self._tracepoints("kmem_cache_free", "kfree", twice=True)

    def _free_bulk_functions(self, kind: str) -> Candidate:
        bulk = "kmem_cache_free_bulk"
        if not self._has_sheaves:
            return self._functions(kind, bulk)
        # Objects of kfree_rcu() wait in sheaves, by v7.2 for nearly all caches; only this function empties them.
        if _SHEAF_FUNCTION in self._known:
            return self._functions(kind, bulk, _SHEAF_FUNCTION)
        return self._functions(kind, bulk, limits=f"no function {_SHEAF_FUNCTION}: {_MISSES_SHEAVES}")

    def _free_bulk_tracepoint(self) -> Candidate:
        limits = "sees kfree_rcu(), no other users of kmem_cache_free_bulk()"
        if self._has_sheaves:
            limits = f"{limits}; {_MISSES_SHEAVES}"
        return self._tracepoints("rcu_invoke_kfree_bulk_callback", limits=limits)

    @property
    def _has_sheaves(self) -> bool:
        """Whether the kernel keeps objects of kfree_rcu() in sheaves."""
        return {"slab_sheaf__size", "slab_sheaf__objects"} <= self._facts.offsets.keys()

    def _kmem_charge(self, charge_kind: str, uncharge_kind: str) -> Candidate:
        return Candidate(
            (
                self._hook(charge_kind, "__memcg_kmem_charge"),
                self._hook(uncharge_kind, "__memcg_kmem_uncharge"),
            ),
            None if charge_kind == FEXIT else "also counts charges that the kernel refuses",
        )

    def _timed(self, entry: str, at_return: str) -> Candidate:
        functions = self._existing(_CACHE_FUNCTIONS)
        if not functions:
            raise _Reason("no function kmem_cache_alloc, or /proc/kallsyms cannot be read")
        functions += [RECHARGE_FUNCTION] if RECHARGE_FUNCTION in self._known else []
        # The return first, so that the return of every call that an entry program times is seen.
        return Candidate(tuple(Hook(kind, name, timed=True) for name in functions for kind in (at_return, entry)))

    def _mixed(self, *hooks: tuple[str, str]) -> Candidate:
        """A candidate of (kind, function) pairs."""
        return Candidate(tuple(self._hook(kind, function) for kind, function in hooks))

    def _functions(self, kind: str, *functions: str, twice: bool = False, limits: str | None = None) -> Candidate:
        return Candidate(tuple(self._hook(kind, function, twice) for function in functions), limits)

    def _tracepoints(self, *names: str, twice: bool = False, limits: str | None = None) -> Candidate:
        for name in names:
            if name not in self._facts.tracepoint_args:
                raise _Reason(f"no tracepoint {name}")
        return Candidate(tuple(Hook(RAW_TP, name, twice=twice) for name in names), limits)

    def _try(self, kind: str, make: Callable[[], Candidate]) -> Candidate | str:
        refusal = self._refusal(kind)
        if refusal is not None:
            return f"{kind}: {refusal}"
        try:
            return make()
        except _Reason as reason:
            return f"{kind}: {reason}"

    def _refusal(self, kind: str) -> str | None:
        if kind in self._without or (kind == FEXIT and FENTRY in self._without):
            return "left out by --without"
        if kind == KPROBE and self._facts.kprobes is False:
            return "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        if kind in (FENTRY, FEXIT) and self._facts.fentry is False:
            return self._facts.fentry_why
        return None

    def _hook(self, kind: str, function: str, twice: bool = False) -> Hook:
        names = self._existing((function,))
        if not names:
            raise _Reason(f"no function {function}")
        arguments = len(self._facts.function_args.get(names[0], ()))
        return Hook(kind, names[0], return_at=arguments if kind == FEXIT else None, twice=twice)

    def _existing(self, functions: Sequence[str]) -> list[str]:
        """Those that this kernel has, under this name or, since v6.10, with ``_noprof``."""
        known = self._known
        found = []
        for name in functions:
            found += [alias for alias in (name, f"{name}_noprof") if alias in known][:1]
        return found

    @property
    def _known(self) -> Mapping[str, object]:
        """`facts.FUNCTIONS` that this kernel has."""
        return self._facts.function_args if self._facts.symbols is None else self._facts.symbols


def _gfp_at(args: Sequence[str]) -> int:
    """Index of an allocator's argument with the flags."""
    return 2 if args[2:3] == ("gfp_t",) else 1


_SHEAF_FUNCTION = "__rcu_free_sheaf_prepare"
_MISSES_SHEAVES = "misses objects that kfree_rcu() frees through a sheaf"

_NOKMEM = "the kernel was started with cgroup.memory=nokmem"
_LIMITS_WITH_NOKMEM = {
    "pins": "kernel and slab memory of cgroups is not known",
    "free": "objects have no owner, so frees by cgroup and live bytes are not known",
}
_WITHOUT_CHILD_CACHES = {
    "caches": "memcgs have no child caches on this kernel; caches are read from the kernel's list of them",
    "ids": "no cache belongs to a kmemcg_id on this kernel",
    "recharge": f"no function {RECHARGE_FUNCTION}: this kernel does not have the patch set, and no slab ever moves",
    "slabs": "on this kernel a slab has objects of any memcg, and is charged to none as a whole",
}

_CACHE_FUNCTIONS = ("kmem_cache_alloc", "kmem_cache_alloc_lru", "kmem_cache_alloc_node")
_KMALLOC_CACHE_FUNCTIONS = (
    "kmem_cache_alloc_trace",
    "kmem_cache_alloc_node_trace",
    "kmalloc_trace",
    "kmalloc_node_trace",
    "__kmalloc_cache",
    "__kmalloc_cache_node",
)
_KMALLOC_SIZE_FUNCTIONS = ("__kmalloc", "__kmalloc_node", "__kmalloc_track_caller", "__kmalloc_node_track_caller")
