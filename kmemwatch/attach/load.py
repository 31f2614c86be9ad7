# SPDX-License-Identifier: GPL-2.0-only
"""A cold start: gather facts, plan, compile, attach. The only module that imports bcc."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kmemwatch.attach import discover, plan
from kmemwatch.attach.handover import Manifest, ProbeResult
from kmemwatch.attach.plan import Hook, Plan, Signal
from kmemwatch.errors import KmemwatchError, UnsupportedError, raise_if_shortage
from kmemwatch.kernel import bpf_calls, cgroupfs, facts
from kmemwatch.kernel.btf import Btf
from kmemwatch.maps import decode
from kmemwatch.maps.handles import MapHandle, MapReader
from kmemwatch.maps.peek import Peek
from kmemwatch.maps.structs import maps_of

_HEADERS = {
    "pairs.h": {"alloc.bpf.c"},
    "slab.h": {"alloc.bpf.c", "recharge.bpf.c", "scan.bpf.c"},
    "slab_events.h": {"caches.bpf.c", "recharge.bpf.c"},
}
"""Header of bpf/ that not every kernel can have -> files that need it."""
_CANNOT = "the probes cannot be attached"
_LEARN_TRIES = 5
_SOURCES = Path(importlib.import_module("kmemwatch.bpf").__path__[0])


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program, with all that is needed to load and attach it again."""

    name: str
    """As in `Manifest.programs`."""
    kind: str
    """`plan.RAW_TP` and its like."""
    target: str
    fd: int
    code: bytes
    """Instructions; references to maps are descriptors of this process."""


@dataclass(frozen=True, slots=True)
class Loaded:
    manifest: Manifest
    programs: tuple[LoadedProgram, ...]
    links: tuple[int, ...]
    may_do_better: bool = False
    """A candidate was refused for a reason that may be gone at the next start: a policy, or a resource that is busy."""

    @property
    def descriptors(self) -> list[int]:
        """In the order of the manifest: programs, maps, links."""
        programs, maps = (program.fd for program in self.programs), (handle.fd for handle in self.manifest.maps)
        return [*programs, *maps, *self.links]


def load(without: tuple[str, ...], latency: bool = False) -> Loaded:
    """Gather facts, plan, compile, attach. Raises KmemwatchError."""
    # Importing bcc waits for the linker, gathering facts for the kernel: together they take half as long.
    early = threading.Thread(target=_import_early)
    early.start()
    found = facts.gather()
    chosen = plan.plan(found, without, latency)
    hierarchy = cgroupfs.find_memory()
    if hierarchy is not None:
        # The kernel charges maps to the memcg of the process that makes them, but never to the root.
        cgroupfs.join_root(hierarchy)
    early.join()
    bcc, include = find_bcc()
    if not bpf_calls.available():
        raise UnsupportedError(
            "libbpf: older than 1.0: it cannot load programs", hint="install a newer one: apt-get install libbpf1"
        )
    refused: dict[str, list[str]] = {}
    may_do_better = False
    while True:
        # Compiling only the best candidates halves the time to the first screen. When the kernel refuses one,
        # everything starts again without it.
        attempt = _Attempt(bcc, include, found, best_only(chosen, refused))
        try:
            return replace(attempt.run(), may_do_better=may_do_better)
        except _Refused as refusal:
            attempt.undo()
            may_do_better |= not refusal.final
            refused.setdefault(refusal.signal, []).append(refusal.why)


class _Refused(Exception):
    """The kernel rejected the candidate of a signal."""

    def __init__(self, signal: str, why: str, final: bool) -> None:
        super().__init__(why)
        self.signal = signal
        self.why = why
        self.final = final
        """This kernel will always reject it."""


def best_only(chosen: Plan, refused: Mapping[str, Sequence[str]]) -> Plan:
    """The plan with only the first candidate of each signal that was not refused; the refusals become reasons."""
    signals = []
    for signal in chosen.signals:
        why = refused.get(signal.name, ())
        left = signal.candidates[len(why) : len(why) + 1]
        skipped = signal.skipped if left else (*signal.skipped, *why)
        signals.append(replace(signal, candidates=left, skipped=skipped, refused=tuple(why)))
    return replace(chosen, signals=tuple(signals))


def source_files(chosen: Plan) -> list[str]:
    """Files of bpf/ that the plan needs, in the order in which they are compiled."""
    sources = dict.fromkeys(signal.source for signal in chosen.signals if signal.candidates)
    headers = [header for header, users in _HEADERS.items() if users & sources.keys()]
    return ["compat.h", "maps.h", "hooks.h", *headers, *sources]


def source_text(chosen: Plan) -> str:
    """Those files as one text; line directives keep file and line in the compiler's messages."""
    return "\n".join(f'#line 1 "bpf/{name}"\n{(_SOURCES / name).read_text()}' for name in source_files(chosen))


def compiled(chosen: Plan, bcc: Any, include: Path) -> Any:
    """bcc's module of all programs of the plan; none is loaded or attached. Sets BCC_KERNEL_SOURCE in the environment,
    and raises what bcc raises: bare Exception."""
    # bcc compiles against our few headers only: no kernel headers have to be installed.
    os.environ["BCC_KERNEL_SOURCE"] = str(include)

    class Module(bcc.BPF):  # type: ignore[misc]
        """Keeps bcc from attaching programs by their names: the plan decides."""

        def _trace_autoload(self) -> None:
            pass

    return Module(text=source_text(chosen).encode(), cflags=chosen.cflags())


class _StderrCapture:
    """Catches what the compiler writes to descriptor 2: it has the reason of a failure."""

    def __init__(self) -> None:
        # In memory: a container may have no directory that can be written to.
        self._file = open(os.memfd_create("stderr"), "w+b")  # noqa: SIM115 - lives as long as this object
        self._saved = -1

    def __enter__(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        sys.stderr.flush()
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)

    def text(self) -> str:
        """All that was written."""
        self._file.seek(0)
        return self._file.read().decode("utf-8", "replace")

    def reason(self) -> str | None:
        """The line that has the reason."""
        return bpf_calls.reason_in(self.text())


class _Attempt:
    """One compilation, and the attachment of all that is in it."""

    def __init__(self, bcc: Any, include: Path, found: facts.Facts, chosen: Plan) -> None:
        self._facts = found
        self._plan = chosen
        self._programs: dict[str, LoadedProgram] = {}
        self._links: list[int] = []
        self._btf: Btf | None = None
        self._stderr = _StderrCapture()
        self._bpf = self._compile(bcc, include)
        self._maps = self._map_handles()

    def run(self) -> Loaded:
        """Attach. Raises _Refused when the kernel rejects a candidate, UnsupportedError when there is nothing to
        attach."""
        results = []
        learned: dict[str, Any] = {}
        for signal in self._plan.signals:
            results.append(self._attach_signal(signal))
            if signal.name == "pins" and results[0].attachment is not None:
                # Before a program counts: all of them need `page_base` from the first object on.
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
        for fd in (*self._links, *(program.fd for program in self._programs.values())):
            os.close(fd)
        self._bpf.cleanup()

    def _compile(self, bcc: Any, include: Path) -> Any:
        try:
            with self._stderr:
                return compiled(self._plan, bcc, include)
        except Exception as error:  # bcc raises bare Exception
            self._refuse_shortage(error)
            raise UnsupportedError(
                f"bpf/: {self._stderr.reason() or error}", hint="run: kmemwatch doctor, and report what it says"
            ) from error

    def _refuse_shortage(self, error: Exception) -> None:
        """Raise ShortageError if the exception, or only the compiler's output, shows a shortage."""
        for sign in (error, self._stderr.text()):
            raise_if_shortage(sign, _CANNOT, bpf=True)

    def _map_handles(self) -> dict[str, MapHandle]:
        """All maps, also those that only programs use (`counted`, `recharging`, `scan_chunk` and the like): a warm
        start has to make them."""
        handles = {}
        for name, per_cpu in maps_of(source_files(self._plan)).items():
            try:
                table = self._bpf[name]
            except KeyError:  # `runs` exists only with kprobes
                continue
            ring = name == "events"
            handles[name] = MapHandle(
                name,
                int(table.map_fd),
                0 if ring else ctypes.sizeof(table.Key),
                0 if ring else ctypes.sizeof(getattr(table, "sLeaf", table.Leaf)),  # of one CPU
                0 if ring else int(table.max_entries),
                per_cpu,
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
                self._attach_programs(signal.name, hook)
            except OSError as error:
                raise_if_shortage(error, _CANNOT, bpf=True)
                why = f"{hook.kind}: {hook.target}: {error.strerror}"
                raise _Refused(signal.name, why, _is_final(error)) from error
        return ProbeResult(signal.name, candidate.name, bool(signal.refused), _join(*signal.refused, candidate.limits))

    def _attach_programs(self, signal: str, hook: Hook) -> None:
        name = f"{signal}/{hook.kind}:{hook.target}"
        if hook.kind == plan.TEST_RUN:
            name = hook.target
        elif hook.timed:
            at_entry = hook.kind in (plan.FENTRY, plan.KPROBE)
            name = f"{signal}/{'entry' if at_entry else 'return'}:{hook.target}"
        programs = list(zip((name, f"{signal}/missed:{hook.target}"), hook.programs, strict=False))
        # The kernel runs the programs of a tracepoint in the order in which they were attached, those of fentry in the
        # opposite order.
        for name, function in programs if hook.kind == plan.RAW_TP else reversed(programs):
            self._attach_program(name, hook, function)

    def _attach_program(self, name: str, hook: Hook, function: str) -> None:
        code = self._bpf.dump_func(function.encode())
        kind, attach_type = bpf_calls.LOADS[hook.kind]
        traced = self._function_id(hook) if hook.kind in (plan.FENTRY, plan.FEXIT) else 0
        program = bpf_calls.load_program(kind, f"kmw_{hook.name}"[:15], code, attach_type, traced)
        self._programs[name] = LoadedProgram(name, hook.kind, hook.target, program, code)
        if hook.kind != plan.TEST_RUN:
            self._links.append(bpf_calls.attach(program, hook.kind, hook.target))

    def _function_id(self, hook: Hook) -> int:
        if self._btf is None:
            self._btf = Btf()
        return self._btf.function_id(hook.target) or 0

    def _learn(self) -> dict[str, Any]:
        """Find out where struct pages and caches are, and the order of statistics. Each stays None if that fails."""
        programs = {name: self._programs[name].fd for name in ("walk", "peek", "peek_many")}
        peek = Peek(programs, self._maps, self._plan.defines.values["STATS_COUNT"])
        learned: dict[str, Any] = {"stats_index": discover.stats_index(peek, self._facts)}
        for _ in range(_LEARN_TRIES):  # the kernel changes meanwhile what is read
            try:
                self._learn_slabs(peek, learned)
                learned.pop("learn_error", None)
                break
            except (OSError, KeyError, KmemwatchError) as error:
                raise_if_shortage(error, _CANNOT)
                learned["learn_error"] = str(error)
        if learned.get("page_base") and "page_base" in self._maps:
            MapReader(self._maps["page_base"]).update(bytes(4), learned["page_base"].to_bytes(8, sys.byteorder))
        peek.close()
        return learned

    def _learn_slabs(self, peek: Peek, learned: dict[str, Any]) -> None:
        """Fills `learned` as far as it gets. Raises OSError, KeyError, KmemwatchError."""
        learned["first_cache"] = discover.first_cache(peek, self._facts)
        caches = discover.CacheList(peek, self._facts, learned["first_cache"]).read()
        learned["slab_account"] = discover.slab_account_flag(self._facts, caches)
        learned["page_base"] = discover.page_base(peek, self._facts, caches)


def _is_final(error: OSError) -> bool:
    """Whether this kernel will always refuse it. A missing file system may be mounted later, and EPERM and EACCES may
    come from seccomp or a security module, which can change before the next boot."""
    always = error.errno in (errno.EINVAL, errno.ENOENT) and error.filename is None
    return always or isinstance(error, bpf_calls.VerifierError)


def _join(*reasons: str | None) -> str | None:
    return "; ".join(reason for reason in reasons if reason) or None


def _import_early() -> None:
    try:
        import bcc  # noqa: F401
    except Exception:  # noqa: BLE001 - `find_bcc` meets it again, and reports it
        pass


def find_bcc() -> tuple[Any, Path]:
    """(the module, the directory with our headers)."""
    try:
        import bcc
    except ImportError as error:
        raise_if_shortage(error, _CANNOT)
        raise UnsupportedError(
            f"{sys.executable}: cannot import bcc: {error}",
            hint="install it: apt-get install python3-bpfcc, and run kmemwatch with the system's python3 (make setup)",
        ) from error
    include = _SOURCES / "include"
    if not include.is_dir():
        raise KmemwatchError(f"{include}: not installed", hint="install kmemwatch again: make setup")
    return bcc, include
