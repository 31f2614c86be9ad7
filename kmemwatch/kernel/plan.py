# SPDX-License-Identifier: GPL-2.0-only
"""Facts -> what to attach: for each signal the candidates, best first, and a reason for everything left out. Pure.

A candidate is a set of hooks that together give the signal. The loader tries the candidates of a signal in order and
keeps the first that the kernel accepts, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kmemwatch.errors import UsageError
from kmemwatch.kernel.defines import Defines, defines
from kmemwatch.kernel.facts import Facts
from kmemwatch.kernel.hopeless import refuse_hopeless

RAW_TP, FENTRY, FEXIT, KPROBE, KRETPROBE, TEST_RUN = "raw_tp", "fentry", "fexit", "kprobe", "kretprobe", "test_run"
KINDS = (RAW_TP, FENTRY, KPROBE)
"""Those that can be left out; FENTRY stands for FEXIT as well, KPROBE for KRETPROBE."""


@dataclass(frozen=True, slots=True)
class Hook:
    kind: str
    """RAW_TP, FENTRY, FEXIT, KPROBE, KRETPROBE, or TEST_RUN: attached to nothing, run by user space."""
    target: str
    """Tracepoint or function."""
    body: str
    """``BODY_<body>`` in bpf/; for TEST_RUN the program is ``kmw_tp_<body>``."""
    nargs: int = 0
    """FEXIT: number of arguments, which the return value follows."""
    timed: int | None = None
    """Of a function that is timed (bpf/latency.bpf.c): its place in the map ``timed``; all programs have one body."""

    @property
    def noted(self) -> int | None:
        """``enum noted`` of a body that can be told to have run, so that a second program makes up for skipped runs."""
        if self.kind not in (RAW_TP, FENTRY, FEXIT):
            return None
        return 0 if self.body in _NOTED_ALLOC else 1 if self.body in _NOTED_FREE else None


@dataclass(frozen=True, slots=True)
class Candidate:
    hooks: tuple[Hook, ...]
    limits: str | None = None
    """What this way cannot see; one line."""

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
    """File in bpf/ that has the bodies."""
    candidates: tuple[Candidate, ...]
    """Best first; empty when this kernel cannot give the signal."""
    skipped: tuple[str, ...]
    """Why other ways were left out, one line each."""
    refused: tuple[str, ...] = ()
    """Candidates that this kernel did not take, best first, with its reason; filled while loading."""
    applies: bool = True
    """False: there is nothing on this kernel that the signal could tell of; `skipped` says what."""


@dataclass(frozen=True, slots=True)
class Plan:
    defines: Defines
    signals: tuple[Signal, ...]

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """Those of all candidates."""
        return tuple(hook for signal in self.signals for option in signal.candidates for hook in option.hooks)


def plan(facts: Facts, without: Sequence[str] = (), latency: bool = False) -> Plan:
    """Decide. `without` names KINDS not to use, `latency` adds the signal of that name. Raises UnsupportedError when
    nothing at all could work."""
    unknown = [kind for kind in without if kind not in KINDS]
    if unknown:
        raise UsageError(
            f"--without: no attachment is called {', '.join(unknown)}", hint=f"there are {', '.join(KINDS)}"
        )
    refuse_hopeless(facts)
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
            # Before `recharge`: the latest comes first at an entry, so its program is not in the time of a check.
            *([chooser.signal("latency", "latency.bpf.c", chooser.latency())] if latency else []),
            chooser.child_signal("caches", "caches.bpf.c", chooser.caches()),
            chooser.child_signal("ids", "caches.bpf.c", chooser.ids()),
            chooser.child_signal("recharge", "recharge.bpf.c", chooser.recharge()),
            chooser.child_signal("slabs", "scan.bpf.c", chooser.slabs()),
        ),
    )


class _Reason(Exception):
    """Why a candidate is left out."""


class _Chooser:
    """Candidates of each signal as generators: yield a Candidate, or a str that says why one was left out."""

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
        if self._facts.nokmem and name in _UNTOLD_WITH_NOKMEM:
            limit = f"{_NOKMEM}: {_UNTOLD_WITH_NOKMEM[name]}"
            candidates = [replace(one, limits="; ".join(filter(None, (one.limits, limit)))) for one in candidates]
        return Signal(name, source, tuple(candidates), tuple(option for option in found if isinstance(option, str)))

    def child_signal(self, name: str, source: str, options: Iterator[Candidate | str]) -> Signal:
        """A signal of kernels where memcgs have child caches."""
        needed = RECHARGE_FUNCTION if name == "recharge" else "memcg_create_kmem_cache"
        if needed not in self._known:
            return Signal(name, source, (), (_WITHOUT_CHILD_CACHES[name],), applies=False)
        return self.signal(name, source, options)

    # The signals

    def pins(self) -> Iterator[Candidate | str]:
        # Linux kernel commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in v5.13) made a struct of them.
        lags = "memcg_vmstats__state" not in self._facts.offsets
        limits = "statistics lag by up to 32 pages a CPU, as memory.stat does" if lags else None
        yield Candidate(tuple(Hook(TEST_RUN, name, name) for name in ("walk", "peek", "peek_many")), limits)

    def alloc(self) -> Iterator[Candidate | str]:
        yield self._try(RAW_TP, self._alloc_tracepoints)
        yield self._try(FENTRY, partial(self._alloc_functions, FENTRY))
        yield self._try(KPROBE, partial(self._alloc_functions, KPROBE))

    def alloc_bulk(self) -> Iterator[Candidate | str]:
        for kind, body in ((FEXIT, "alloc_bulk_return"), (KPROBE, "alloc_bulk")):
            yield self._try(kind, partial(self._functions, kind, ("kmem_cache_alloc_bulk", body)))

    def free(self) -> Iterator[Candidate | str]:
        yield self._try(RAW_TP, self._free_tracepoints)
        both = ("kmem_cache_free", "free_entry"), ("kfree", "kfree_entry")
        yield self._try(FENTRY, partial(self._functions, FENTRY, *both))
        limits = "frees in an interrupt that hits while a probe is being handled are missed, and counted as lost"
        yield self._try(KPROBE, partial(self._functions, KPROBE, *both, limits=limits))

    def free_bulk(self) -> Iterator[Candidate | str]:
        # Kprobes first: the verifier lets no fentry program read an argument of type void ** (seen up to v6.12).
        for kind in (KPROBE, FENTRY):
            yield self._try(kind, partial(self._free_bulk_functions, kind))
        yield self._try(RAW_TP, self._free_bulk_tracepoint)

    def charge(self) -> Iterator[Candidate | str]:
        if "MEMCG_KMEM" in self._defines.values:
            yield self._try(RAW_TP, partial(self._tracepoints, ("mod_memcg_state", "memcg_state")))
            for kind in (FENTRY, KPROBE):
                yield self._try(kind, partial(self._functions, kind, ("__mod_memcg_state", "memcg_state")))
            return
        # Before Linux kernel commit a8c49af3be5f ("memcg: add per-memcg total kernel memory stat") (in v5.18).
        yield "enum memcg_stat_item has no MEMCG_KMEM: kernel memory is not one statistic here"
        yield self._try(FEXIT, partial(self._kmem_charge, FEXIT, FENTRY))
        yield self._try(KPROBE, partial(self._kmem_charge, KPROBE, KPROBE))

    def lifecycle(self) -> Iterator[Candidate | str]:
        functions = [(f"mem_cgroup_{event}", event) for event in ("css_online", "css_offline", "css_released")]
        for kind in (FENTRY, KPROBE):
            yield self._try(kind, partial(self._functions, kind, *functions))
        tracepoints = [(event, event) for event in ("cgroup_mkdir", "cgroup_rmdir", "cgroup_release")]
        limits = "tells rmdir, which is shortly before a memcg goes offline; enabling the controller later is not seen"
        yield self._try(RAW_TP, partial(self._tracepoints, *tracepoints, limits=limits))

    def caches(self) -> Iterator[Candidate | str]:
        released = ("slab_kmem_cache_release", "cache_released")
        for entry, at_return in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            created = (at_return, "memcg_create_kmem_cache", "child_created")
            yield self._try(entry, partial(self._mixed, created, (entry, *released)))

    def ids(self) -> Iterator[Candidate | str]:
        for entry, at_return in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            given = (at_return, "memcg_alloc_cache_id", "id_given")
            yield self._try(entry, partial(self._mixed, given, (entry, "memcg_free_cache_id", "id_freed")))

    def recharge(self) -> Iterator[Candidate | str]:
        for entry, at_return, bodies in (
            (FENTRY, FEXIT, ("recharge_entry", "recharge_return")),
            (KPROBE, KRETPROBE, ("recharge_kprobe", "recharge_kretprobe")),
        ):
            hooks = (
                (entry, "memcg_charge_kmem", "recharge_charge"),
                (entry, "memcg_uncharge_kmem", "recharge_uncharge"),
                # Last what begins, so that it is followed to its end from the first one on.
                (at_return, RECHARGE_FUNCTION, bodies[1]),
                (entry, RECHARGE_FUNCTION, bodies[0]),
            )
            yield self._try(entry, partial(self._mixed, *hooks))

    def latency(self) -> Iterator[Candidate | str]:
        for pair in ((FENTRY, FEXIT), (KPROBE, KRETPROBE)):
            yield self._try(pair[0], partial(self._timed, *pair))

    def slabs(self) -> Iterator[Candidate | str]:
        unread = "/proc/kcore cannot be read: where in the kernel's addresses the memory is, is not known"
        yield unread if self._facts.kcore is False else Candidate((Hook(TEST_RUN, "scan", "scan"),))

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
            hooks.append(Hook(RAW_TP, name, "alloc_cache_tp" if args[2:3] == ("kmem_cache *",) else "alloc_object_tp"))
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
                hooks.append(Hook(FEXIT, name, f"kmalloc_return{_place_of_gfp(args)}", len(args)))
            return Candidate(tuple(hooks))
        return Candidate(tuple(hooks), "kmalloc of a size that is not known at compile time is not seen")

    def _by_cache(self, kind: str, function: str) -> Hook:
        """A hook on a function whose first argument is the cache; at return where that can still see the arguments."""
        args = self._facts.function_args.get(function, ("kmem_cache *", "gfp_t"))
        if kind == FENTRY:
            return Hook(FEXIT, function, f"alloc_return{_place_of_gfp(args)}", len(args))
        return Hook(kind, function, f"alloc_gfp{_place_of_gfp(args)}")

    def _free_tracepoints(self) -> Candidate:
        if self._facts.tracepoint_args.get("kmem_cache_free", ())[2:3] != ("kmem_cache *",):
            # Until Linux kernel commit 3544de8ee6e4 ("mm, tracing: record slab name for kmem_cache_free()") and what
            # followed it in v6.1, the event came after the free, when the owner of the object is already gone.
            raise _Reason("tracepoint kmem_cache_free comes after the object has lost its owner")
        return self._tracepoints(("kmem_cache_free", "free_cache_tp"), ("kfree", "free_tp"))

    def _free_bulk_functions(self, kind: str) -> Candidate:
        bulk = ("kmem_cache_free_bulk", "free_bulk")
        if not self._has_sheaves:
            return self._functions(kind, bulk)
        # A sheaf of what kfree_rcu() is given is emptied by this function and no other, by v7.2 for nearly all caches.
        if _SHEAF_FUNCTION in self._known:
            return self._functions(kind, bulk, (_SHEAF_FUNCTION, "free_sheaf"))
        return self._functions(kind, bulk, limits=f"no function {_SHEAF_FUNCTION}: {_UNSEEN_SHEAVES}")

    def _free_bulk_tracepoint(self) -> Candidate:
        limits = "only kfree_rcu(); other users of kmem_cache_free_bulk() are not seen"
        if self._has_sheaves:
            limits = f"{limits}; {_UNSEEN_SHEAVES}"
        return self._tracepoints(("rcu_invoke_kfree_bulk_callback", "free_bulk_tp"), limits=limits)

    @property
    def _has_sheaves(self) -> bool:
        """Whether the kernel frees in sheaves what kfree_rcu() is given."""
        return {"slab_sheaf__size", "slab_sheaf__objects"} <= self._facts.offsets.keys()

    def _kmem_charge(self, charge_kind: str, uncharge_kind: str) -> Candidate:
        return Candidate(
            (
                self._hook(charge_kind, "__memcg_kmem_charge", "kmem_charge"),
                self._hook(uncharge_kind, "__memcg_kmem_uncharge", "kmem_uncharge"),
            )
        )

    def _timed(self, entry: str, at_return: str) -> Candidate:
        functions = dict(enumerate(self._existing(_CACHE_FUNCTIONS)))
        if not functions:
            raise _Reason("no function kmem_cache_alloc, or /proc/kallsyms cannot be read")
        functions |= dict.fromkeys([TIMED_CHECK] if RECHARGE_FUNCTION in self._known else [], RECHARGE_FUNCTION)
        # The return first, so that none is missed of those that have been noted at their entry.
        hooks = ((at_return, "timed_return"), (entry, "timed_entry"))
        return Candidate(
            tuple(Hook(kind, name, body, timed=at) for at, name in functions.items() for kind, body in hooks)
        )

    def _mixed(self, *hooks: tuple[str, str, str]) -> Candidate:
        """A candidate of (kind, function, body) triples."""
        return Candidate(tuple(self._hook(kind, function, body) for kind, function, body in hooks))

    def _functions(self, kind: str, *hooks: tuple[str, str], limits: str | None = None) -> Candidate:
        """A candidate of (function, body) pairs."""
        return Candidate(tuple(self._hook(kind, function, body) for function, body in hooks), limits)

    def _tracepoints(self, *hooks: tuple[str, str], limits: str | None = None) -> Candidate:
        """A candidate of (tracepoint, body) pairs."""
        for name, _ in hooks:
            if name not in self._facts.tracepoint_args:
                raise _Reason(f"no tracepoint {name}")
        return Candidate(tuple(Hook(RAW_TP, name, body) for name, body in hooks), limits)

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

    def _hook(self, kind: str, function: str, body: str) -> Hook:
        names = self._existing((function,))
        if not names:
            raise _Reason(f"no function {function}")
        return Hook(kind, names[0], body, len(self._facts.function_args.get(names[0], ())))

    def _existing(self, functions: Sequence[str]) -> list[str]:
        """Those that this kernel has under this name or, since v6.10, with ``_noprof``."""
        known = self._known
        found = []
        for name in functions:
            found += [alias for alias in (name, f"{name}_noprof") if alias in known][:1]
        return found

    @property
    def _known(self) -> Mapping[str, object]:
        """Functions of this kernel, of those that the facts ask for."""
        return self._facts.function_args if self._facts.symbols is None else self._facts.symbols


def _place_of_gfp(args: Sequence[str]) -> int:
    """Which argument of an allocator the flags are, 0 being the first."""
    return 2 if args[2:3] == ("gfp_t",) else 1


TIMED_CHECK = 3
"""Place of the recharge check in the map ``timed``; those of _CACHE_FUNCTIONS come before it."""
RECHARGE_FUNCTION = "__memcg_kmem_recharge_slab"

_SHEAF_FUNCTION = "__rcu_free_sheaf_prepare"
_UNSEEN_SHEAVES = "what kfree_rcu() frees by way of a sheaf is not seen"

_NOKMEM = "the kernel was started with cgroup.memory=nokmem"
_UNTOLD_WITH_NOKMEM = {
    "pins": "kernel and slab memory of cgroups is not known",
    "free": "no object has an owner, so frees by cgroup and live bytes are not known",
}
_WITHOUT_CHILD_CACHES = {
    "caches": "memcgs have no child caches on this kernel; which caches there are is read from the list of caches",
    "ids": "no cache belongs to a kmemcg_id on this kernel",
    "recharge": f"no function {RECHARGE_FUNCTION}: this kernel does not have the patch set, and no slab ever moves",
    "slabs": "a slab has objects of any memcg on this kernel, and is charged to none as a whole",
}

_NOTED_ALLOC = frozenset(
    {"alloc_cache_tp", "alloc_object_tp", "alloc_return1", "alloc_return2", "kmalloc_return1", "kmalloc_return2"}
)
_NOTED_FREE = frozenset({"free_tp", "free_cache_tp", "free_entry", "kfree_entry"})
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
