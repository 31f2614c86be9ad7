# SPDX-License-Identifier: GPL-2.0-only
"""Look, decide, compile, attach: the only module that knows bcc, used by the child (`attach`) on a cold start only."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmemwatch import shortages
from kmemwatch.errors import KmemwatchError, UnsupportedError
from kmemwatch.kernel import bpf_calls, cgroupfs, facts, plan
from kmemwatch.kernel.btf import Btf
from kmemwatch.kernel.plan import Hook, Plan, Signal
from kmemwatch.sources import decode, discover
from kmemwatch.sources.handover import Manifest, ProbeResult
from kmemwatch.sources.maps import MapHandle, MapReader
from kmemwatch.sources.peek import Peek
from kmemwatch.sources.stderr import StderrCapture

_PER_CPU = ("lost", "pairs", "charges", "recovered", "recharge_counts", "recharges", "runs", "timed", "latency")
_COUNT_RUNS = {plan.KPROBE: "kmw_kp_", plan.KRETPROBE: "kmw_kr_"}
"""Kinds whose programs count their runs -> prefix of their names, see bpf/hooks.h."""
_HEADERS = {
    "pairs.h": {"alloc.bpf.c"},
    "slab.h": {"alloc.bpf.c", "recharge.bpf.c", "scan.bpf.c"},
    "slab_events.h": {"caches.bpf.c", "recharge.bpf.c"},
}
"""Header of bpf/ that not every kernel can have -> files that need it."""
_CANNOT = "the probes cannot be attached"
_SOURCES = Path(importlib.import_module("kmemwatch.bpf").__path__[0])


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """What it takes to load and attach a program again."""

    name: str
    """As in `Manifest.programs`."""
    kind: str
    """`plan.RAW_TP` and its like."""
    target: str
    fd: int
    code: bytes
    """Instructions, with our own descriptors where they speak of maps."""


@dataclass(frozen=True, slots=True)
class Loaded:
    manifest: Manifest
    programs: tuple[LoadedProgram, ...]
    links: tuple[int, ...]

    @property
    def descriptors(self) -> list[int]:
        """In the order of the manifest: programs, maps, links."""
        programs, maps = (program.fd for program in self.programs), (handle.fd for handle in self.manifest.maps)
        return [*programs, *maps, *self.links]


def load(without: tuple[str, ...], latency: bool = False) -> Loaded:
    """Look, decide, compile, attach. Raises KmemwatchError."""
    # Half of either is waiting for the kernel or for the linker.
    early = threading.Thread(target=_import_early)
    early.start()
    found = facts.gather()
    chosen = plan.plan(found, without, latency)
    hierarchy = cgroupfs.find_memory()
    if hierarchy is not None:
        # Maps are charged to whoever makes them; the root memcg is charged nothing, and nobody is watched for it.
        cgroupfs.join_root(hierarchy)
    early.join()
    bcc, include = _bcc()
    refused: dict[str, list[str]] = {}
    while True:
        # Only the best candidates are compiled, which halves the time to the first screen; when the kernel refuses one,
        # everything starts again without it.
        attempt = _Attempt(bcc, include, found, best_only(chosen, refused))
        try:
            return attempt.run()
        except _Refused as refusal:
            attempt.undo()
            refused.setdefault(refusal.signal, []).append(refusal.why)


class _Refused(Exception):
    """The kernel did not take the candidate of a signal."""

    def __init__(self, signal: str, why: str) -> None:
        super().__init__(why)
        self.signal = signal
        self.why = why


def best_only(chosen: Plan, refused: Mapping[str, Sequence[str]]) -> Plan:
    """The plan with only the first candidate of each signal that was not refused; the refusals become reasons."""
    signals = []
    for signal in chosen.signals:
        why = refused.get(signal.name, ())
        left = signal.candidates[len(why) : len(why) + 1]
        skipped = signal.skipped if left else (*signal.skipped, *why)
        signals.append(replace(signal, candidates=left, skipped=skipped, refused=tuple(why)))
    return replace(chosen, signals=tuple(signals))


def source_text(chosen: Plan) -> str:
    """All C that the plan needs, as one text; line directives keep the compiler's messages true."""
    names = ["compat.h", "maps.h", "hooks.h"]
    sources = dict.fromkeys(signal.source for signal in chosen.signals if signal.candidates)
    names += [header for header, users in _HEADERS.items() if users & sources.keys()]
    names += sources
    parts = [_runs(chosen), *(f'#line 1 "bpf/{name}"\n{(_SOURCES / name).read_text()}' for name in names)]
    stubs = {_stub(hook) for hook in chosen.hooks}
    return "\n".join([*parts, '#line 1 "hooks of this kernel"', *sorted(stubs - {""})])


def _runs(chosen: Plan) -> str:
    """``enum runs``: a number for every program of a kprobe, for bpf/hooks.h."""
    numbered = dict.fromkeys(_function_of(hook) for hook in chosen.hooks if _counts_runs(hook))
    if not numbered:
        return ""
    names = ", ".join(name.replace("kmw_", "RUN_", 1) for name in numbered)
    return f"#define COUNT_RUNS\nenum runs {{ {names}, RUNS }};"


def _counts_runs(hook: Hook) -> bool:
    """What is timed is a sample anyway."""
    return hook.kind in _COUNT_RUNS and hook.timed is None


def _function_of(hook: Hook) -> str:
    """Of a kprobe or kretprobe: what hooks.h calls its program."""
    return f"{_COUNT_RUNS[hook.kind]}{hook.target}"


def _stub(hook: Hook) -> str:
    if hook.kind == plan.TEST_RUN:
        return ""
    if hook.timed is not None:
        return f"KMW_TIMED_{hook.kind.upper()}({hook.target}, {hook.timed})"
    nargs = f", {hook.nargs}" if hook.kind == plan.FEXIT else ""
    macro = f"KMW_{hook.kind.upper()}"
    if hook.kind == plan.FENTRY and hook.body == "kfree_entry":
        macro += "_COPY"  # its argument is const void *, which fentry refuses to load
    if _is_pair(hook):
        return f"{macro}_PAIR({hook.target}, {hook.body}{nargs}, {hook.noted})"
    return f"{macro}({hook.target}, {hook.body}{nargs})"


def _is_pair(hook: Hook) -> bool:
    """Two programs for this hook. bcc attaches one function to one target only, so libbpf has to do the second."""
    return hook.noted is not None and bpf_calls.available()


class _Attempt:
    """One compilation, and the attachment of all that is in it."""

    def __init__(self, bcc: Any, include: Path, found: facts.Facts, chosen: Plan) -> None:
        self._facts = found
        self._plan = chosen
        self._programs: dict[str, LoadedProgram] = {}
        self._links: list[int] = []
        self._btf: Btf | None = None
        self._stderr = StderrCapture()
        self._bpf = self._compile(bcc, include)
        self._maps = self._map_handles()

    def run(self) -> Loaded:
        """Attach. Raises _Refused when a candidate is not taken, UnsupportedError when there is nothing to attach."""
        results = []
        learned: dict[str, Any] = {}
        for signal in self._plan.signals:
            results.append(self._attach_signal(signal))
            if signal.name == "pins" and results[0].attachment is not None:
                # Before anything counts: objects are found through their pages from the first one on.
                learned = self._learn()
        if all(result.attachment is None for result in results):
            raise UnsupportedError(
                f"no probe could be attached: {results[0].signal}: {results[0].why}", hint="run: kmemwatch doctor"
            )
        manifest = Manifest(
            facts=self._facts,
            probes=tuple(results),
            programs=tuple(self._programs),
            maps=tuple(self._maps.values()),
            stats_count=self._plan.defines.values.get("STATS_COUNT", 0),
            **learned,
        )
        return Loaded(manifest, tuple(self._programs.values()), tuple(self._links))

    def undo(self) -> None:
        """Detach, and free the compiler's memory and the maps."""
        for fd in self._links:
            os.close(fd)
        self._bpf.kprobe_fds.clear()  # closed by now; bcc would close them again, and raise
        self._bpf.cleanup()

    def _compile(self, bcc: Any, include: Path) -> Any:
        # bcc compiles against our few headers only: no kernel headers have to be installed.
        os.environ["BCC_KERNEL_SOURCE"] = str(include)

        class Module(bcc.BPF):  # type: ignore[misc]
            """bcc would attach by name as soon as it has compiled; we attach by plan."""

            def _trace_autoload(self) -> None:
                pass

        try:
            with self._stderr:
                return Module(text=source_text(self._plan).encode(), cflags=self._plan.defines.cflags())
        except Exception as error:  # bcc raises bare Exception
            self._refuse_shortage(error)
            raise UnsupportedError(
                f"bpf/: {self._stderr.reason() or error}", hint="run: kmemwatch doctor, and report what it says"
            ) from error

    def _refuse_shortage(self, error: Exception) -> None:
        """A shortage may be told by what was raised, or only by what was written; it says nothing about the kernel."""
        for told in (error, self._stderr.text()):
            shortages.refuse(told, _CANNOT, bpf=True)

    def _map_handles(self) -> dict[str, MapHandle]:
        handles = {}
        names = ["lost", "events"]
        sources = {signal.source for signal in self._plan.signals if signal.candidates}
        names += ["page_base"] if _HEADERS["slab.h"] & sources else []
        names += ["pairs", "slots"] if "alloc.bpf.c" in sources else []
        # Of no use to the parent but as a part of what it keeps for the next start.
        names += ["noted", "recovered"] if any(map(_is_pair, self._plan.hooks)) else []
        names += ["runs"] if any(map(_counts_runs, self._plan.hooks)) else []
        names += ["timed", "latency"] if "latency.bpf.c" in sources else []
        names += ["charges"] if "charge.bpf.c" in sources else []
        # `recharging` and what goes with it are of no use to the parent either.
        recharge = ("recharge_counts", "recharges", "recharging", "recharging_tasks", "no_frames")
        names += recharge if "recharge.bpf.c" in sources else ()
        # `scan_chunk` neither.
        names += ["child_slabs", "scan", "scan_chunk"] if "scan.bpf.c" in sources else []
        names += ["peek_out", "peek_in", "peek_parts", "walk_out", "walk"] if "peek.bpf.c" in sources else []
        for name in names:
            table = self._bpf[name]
            ring = name == "events"
            handles[name] = MapHandle(
                name,
                int(table.map_fd),
                0 if ring else ctypes.sizeof(table.Key),
                0 if ring else ctypes.sizeof(getattr(table, "sLeaf", table.Leaf)),  # of one CPU
                0 if ring else int(table.max_entries),
                name in _PER_CPU,
            )
        decode.check_sizes({handle.name: handle.value_bytes for handle in handles.values() if handle.value_bytes})
        return handles

    def _attach_signal(self, signal: Signal) -> ProbeResult:
        if not signal.candidates:
            why = _join(*signal.skipped) or "no way is known for this kernel"
            return ProbeResult(signal.name, None, bool(signal.refused), why, signal.applies)
        candidate = signal.candidates[0]
        for hook in candidate.hooks:
            try:
                with self._stderr:
                    self._attach_programs(signal.name, hook)
            except Exception as error:  # bcc raises bare Exception
                self._refuse_shortage(error)
                reason = self._stderr.reason() or str(error)
                raise _Refused(signal.name, f"{hook.kind}: {hook.target}: {reason}") from error
        return ProbeResult(signal.name, candidate.name, bool(signal.refused), _join(*signal.refused, candidate.limits))

    def _attach_programs(self, signal: str, hook: Hook) -> None:
        if hook.timed is not None:
            self._attach_timed(signal, hook)
            return
        # The kernel runs the programs of a tracepoint in the order in which they came, those of fentry the other way.
        before = _is_pair(hook) and hook.kind != plan.RAW_TP
        if before:
            self._attach_again(signal, hook)
        function, links = self._attach_hook(hook)
        name = hook.target if hook.kind == plan.TEST_RUN else f"{signal}/{hook.kind}:{hook.target}"
        self._keep(name, hook, self._bpf.funcs[function].fd, self._bpf.dump_func(function), links)
        if _is_pair(hook) and not before:
            self._attach_again(signal, hook)

    def _attach_again(self, signal: str, hook: Hook) -> None:
        """The second program of a hook, which counts what the first was skipped for."""
        code = self._bpf.dump_func(b"kmw_ag_" + hook.target.encode())
        kind, attach_type = bpf_calls.LOADS[hook.kind]
        program = bpf_calls.load_program(kind, f"kmw_ag_{hook.target}"[:15], code, attach_type, self._function_id(hook))
        link = bpf_calls.attach_tracepoint(program, hook.target if hook.kind == plan.RAW_TP else None)
        self._keep(f"{signal}/again:{hook.target}", hook, program, code, [link])

    def _attach_timed(self, signal: str, hook: Hook) -> None:
        """As `_attach_again`: the function may have another program of ours already."""
        if not bpf_calls.available():
            raise KmemwatchError("this release of libbpf cannot attach a second program to a function")
        at_entry = hook.kind in (plan.FENTRY, plan.KPROBE)
        function = f"{'kmw_le_' if at_entry else 'kmw_lr_'}{hook.target}"
        code = self._bpf.dump_func(function.encode())
        kind, attach_type = bpf_calls.LOADS[hook.kind]
        traced = 0 if hook.kind in _COUNT_RUNS else self._function_id(hook)
        program = bpf_calls.load_program(kind, function[:15], code, attach_type, traced)
        if hook.kind in _COUNT_RUNS:
            link = bpf_calls.attach_kprobe(program, hook.target, not at_entry)
        else:
            link = bpf_calls.attach_tracepoint(program, None)
        self._keep(f"{signal}/{'entry' if at_entry else 'return'}:{hook.target}", hook, program, code, [link])

    def _keep(self, name: str, hook: Hook, program: int, code: bytes, links: list[int]) -> None:
        self._programs[name] = LoadedProgram(name, hook.kind, hook.target, program, code)
        self._links += links

    def _function_id(self, hook: Hook) -> int:
        if hook.kind == plan.RAW_TP:
            return 0
        if self._btf is None:
            self._btf = Btf()
        return self._btf.function_id(hook.target) or 0

    def _attach_hook(self, hook: Hook) -> tuple[bytes, list[int]]:
        """(function of the C code, descriptors that keep it attached)."""
        bpf, target = self._bpf, hook.target.encode()
        if hook.kind == plan.TEST_RUN:
            name = b"kmw_tp_" + hook.body.encode()
            bpf.load_func(name, bpf.RAW_TRACEPOINT)
            return name, []
        if hook.kind == plan.RAW_TP:
            name = b"kmw_tp_" + target
            bpf.load_func(name, bpf.RAW_TRACEPOINT)
            bpf.attach_raw_tracepoint(target, name)
            return name, [bpf.raw_tracepoint_fds.pop(target)]
        if hook.kind in (plan.KPROBE, plan.KRETPROBE):
            name = _function_of(hook).encode()
            bpf.load_func(name, bpf.KPROBE)
            attach = bpf.attach_kprobe if hook.kind == plan.KPROBE else bpf.attach_kretprobe
            attach(event=target, fn_name=name)
            return name, [fd for fds in bpf.kprobe_fds.values() for fd in _values(fds) if fd not in self._links]
        name = self._function(b"kfunc__" if hook.kind == plan.FENTRY else b"kretfunc__", target)
        attach = bpf.attach_kfunc if hook.kind == plan.FENTRY else bpf.attach_kretfunc
        attach(name)
        fds = bpf.kfunc_entry_fds if hook.kind == plan.FENTRY else bpf.kfunc_exit_fds
        return name, [fds.pop(name)]

    def _function(self, prefix: bytes, target: bytes) -> bytes:
        """The name that bcc's macro gave: newer releases of bcc put the module between the two."""
        for name in (prefix + target, prefix + b"vmlinux__" + target):
            try:
                self._bpf.dump_func(name)
            except Exception:  # noqa: BLE001 - bcc raises bare Exception: "Unknown program"
                continue
            return name
        raise KmemwatchError(f"bpf/hooks.h: no program for {target.decode()}")

    def _learn(self) -> dict[str, Any]:
        """Where struct pages and caches are, and the order of statistics; what cannot be learned stays None."""
        programs = {name: self._programs[name].fd for name in ("walk", "peek", "peek_many")}
        peek = Peek(programs, self._maps, self._plan.defines.values["STATS_COUNT"])
        learned: dict[str, Any] = {"stats_index": discover.stats_index(peek, self._facts)}
        try:
            learned["first_cache"] = discover.first_cache(peek, self._facts)
            caches = discover.CacheList(peek, self._facts, learned["first_cache"]).read()
            learned["slab_account"] = discover.slab_account_flag(self._facts, caches)
            learned["page_base"] = discover.page_base(peek, self._facts, caches)
        except (OSError, KeyError, KmemwatchError) as error:
            shortages.refuse(error, _CANNOT)
            learned["learn_error"] = str(error)
        if learned.get("page_base") and "page_base" in self._maps:
            MapReader(self._maps["page_base"]).update(bytes(4), learned["page_base"].to_bytes(8, sys.byteorder))
        peek.close()
        return learned


def _values(fds: Any) -> list[int]:
    """bcc keeps one descriptor per program since 0.21, and one per event before."""
    return list(fds.values()) if isinstance(fds, dict) else [fds]


def _join(*reasons: str | None) -> str | None:
    return "; ".join(reason for reason in reasons if reason) or None


def _import_early() -> None:
    try:
        import bcc  # noqa: F401
    except Exception:  # noqa: BLE001 - `_bcc` meets it again, and says so
        pass


def _bcc() -> tuple[Any, Path]:
    """(the module, the directory with our headers)."""
    try:
        import bcc
    except ImportError as error:
        shortages.refuse(error, _CANNOT)
        raise UnsupportedError(
            f"{sys.executable}: cannot import bcc: {error}",
            hint="install it: apt-get install python3-bpfcc, and run kmemwatch with the system's python3 (make setup)",
        ) from error
    include = _SOURCES / "include"
    if not include.is_dir():
        raise KmemwatchError(f"{include}: not installed", hint="install kmemwatch again: make setup")
    return bcc, include
