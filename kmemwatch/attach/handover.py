# SPDX-License-Identifier: GPL-2.0-only
"""The parent's side of attaching: it starts the child and takes a manifest and descriptors over a Unix socket."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import kmemwatch
from kmemwatch import errors
from kmemwatch.cacheids import without_addresses
from kmemwatch.errors import KmemwatchError, ShortageError, raise_if_shortage, shortage_error, shortage_of
from kmemwatch.kernel.facts import Facts
from kmemwatch.kernel.lifeline import TiedProcess
from kmemwatch.maps.handles import MapHandle
from kmemwatch.model import ABSENT, ATTACHED, FALLBACK, MISSING


@dataclass(frozen=True, slots=True)
class ProbeResult:
    signal: str
    attachment: str | None
    """`plan.Candidate.name` of the one that is attached; None when none is."""
    fell_back: bool
    why: str | None
    applies: bool = True
    """`plan.Signal.applies`."""

    @property
    def status(self) -> str:
        """As in `model.Probe`."""
        if self.attachment is None:
            return MISSING if self.applies else ABSENT
        return FALLBACK if self.fell_back else ATTACHED


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the child found, and what it attached."""

    facts: Facts
    probes: tuple[ProbeResult, ...]
    programs: tuple[str, ...]
    """``walk``, ``peek``, else ``signal/kind:target``. Their descriptors come first, then those of maps, then links."""
    maps: tuple[MapHandle, ...]
    """`MapHandle.fd` is the child's number of the descriptor."""
    stats_count: int
    stats_index: Mapping[str, int] | None = None
    """`discover.stats_index`."""
    first_cache: int | None = None
    page_base: int | None = None
    slab_account: int | None = None
    learn_error: str | None = None
    """Why the caches or the struct pages were not found."""

    def to_raw(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def from_raw(raw: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_raw`, also after JSON has made lists of tuples."""
        return Manifest(
            **{
                **raw,
                "facts": Facts.from_raw(raw["facts"]),
                "probes": tuple(ProbeResult(**{**probe, "why": _clean(probe["why"])}) for probe in raw["probes"]),
                "learn_error": _clean(raw.get("learn_error")),
                "programs": tuple(raw["programs"]),
                "maps": tuple(MapHandle(**handle) for handle in raw["maps"]),
            }
        )


def _clean(text: str | None) -> str | None:
    return None if text is None else without_addresses(text)


@dataclass(frozen=True, slots=True)
class Handed:
    """What the parent has received, with its own descriptors. `close` detaches everything."""

    manifest: Manifest
    programs: Mapping[str, int]
    maps: Mapping[str, MapHandle]
    links: tuple[int, ...]

    @property
    def link_of(self) -> Mapping[str, int]:
        """Program -> the descriptor that keeps it attached. Programs that user space runs have none."""
        attached = (name for name in self.manifest.programs if "/" in name)
        return dict(zip(attached, self.links, strict=True))

    def close(self) -> None:
        """Close links first, so that no program runs while maps are closed."""
        for fd in (*self.links, *self.programs.values(), *(handle.fd for handle in self.maps.values())):
            os.close(fd)


_EXIT_S = 5.0
_SCM_MAX_FD = 253
"""Descriptors in one message, at most."""
_OUT_OF_MEMORY = "if memory ran out, dmesg says so: free some, or raise the cgroup's limit, or ulimit -v"
CHILD_DIRECTORY = "/"
"""``python -m`` looks for modules in the current directory first. That may be another user's, and we may be root."""


def child_environ() -> dict[str, str]:
    """Environment of a process that runs a module of kmemwatch in CHILD_DIRECTORY: it must find a checkout that this
    process has found through its own current directory."""
    home = Path(kmemwatch.__file__).resolve().parent.parent
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if home.name not in ("site-packages", "dist-packages"):
        paths.insert(0, str(home))
    return {**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}


class Child:
    """The process that attaches. The parent starts it early and does other work before it waits."""

    def __init__(
        self, without: Sequence[str] = (), module: str = "kmemwatch.attach.child", latency: bool = False
    ) -> None:
        """`module`: what to run as the child; tests pass their own. Raises ShortageError."""
        options = json.dumps({"without": list(without), "latency": latency})
        with ExitStack() as opened:
            try:
                self._channel, theirs = map(opened.enter_context, socket.socketpair())
                command = [sys.executable, "-m", module, str(theirs.fileno()), options]
                # Not a pipe: nobody reads it before the answer comes, and the child would block on a full one.
                self._stderr = opened.enter_context(open(os.memfd_create("stderr"), "w+b"))
                self._process = TiedProcess(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=self._stderr, cwd=CHILD_DIRECTORY, env=child_environ(),
                )  # fmt: skip
            except OSError as error:
                raise_if_shortage(error, "the process that attaches the probes cannot be started")
                raise
            opened.pop_all()
        theirs.close()

    def wait(self) -> Handed:
        """Everything that the child hands over. Raises KmemwatchError with the child's reason."""
        try:
            answer = self._receive_answer()
            if "error" in answer:
                raise getattr(errors, answer["error"])(without_addresses(answer["message"]), hint=answer["hint"])
            return self._receive_descriptors(answer)
        finally:
            self.close()

    def close(self) -> None:
        """Kill the child if it still runs."""
        self._channel.close()
        self._process.end()
        self._stderr.close()

    def _receive_answer(self) -> dict[str, Any]:
        head = self._receive_exactly(8)
        text = self._receive_exactly(int.from_bytes(head, "little"))
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _receive_exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._wait_for_more()
            part = self._channel.recv(size - len(parts))
            if not part:
                raise self._ended()
            parts += part
        return bytes(parts)

    def _wait_for_more(self) -> None:
        """There is no time limit for compiling, but a child that is stopped (SIGSTOP) ends the start."""
        if not self._process.speaks(self._channel):
            raise self._silence()

    @staticmethod
    def _silence() -> KmemwatchError:
        return KmemwatchError("the process that attaches the probes does not answer", "is it stopped?")

    def _ended(self) -> KmemwatchError:
        """Why it ended: by the last line it wrote, else by its exit status."""
        what = "the process that attaches the probes ended"
        status = self._process.wait(_EXIT_S)
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        short = shortage_of(lines[-1], what) if lines else None
        if short is not None:
            return short
        if status is None and not lines:
            return KmemwatchError(f"{what}: it has closed its end, and still runs")
        if status is not None and status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            return ShortageError(f"{what}: {name}", _OUT_OF_MEMORY)
        return KmemwatchError(f"{what}: {without_addresses(lines[-1]) if lines else f'exit status {status}'}")

    def _receive_descriptors(self, answer: Mapping[str, Any]) -> Handed:
        descriptors: list[int] = []
        while len(descriptors) < answer["descriptors"]:
            speaks = self._process.speaks(self._channel)
            if speaks:
                data, fds, flags, _ = socket.recv_fds(self._channel, 1, _SCM_MAX_FD)
                descriptors += fds
                if data and not flags & socket.MSG_CTRUNC:
                    continue
            for fd in descriptors:  # or the programs that have come so far would stay attached
                os.close(fd)
            if not speaks:
                raise self._silence()
            if data:  # the kernel leaves out descriptors above this process's limit
                raise shortage_error(errno.EMFILE, "the probes cannot be taken over")
            raise ShortageError("the process that attaches the probes ended while it handed them over", _OUT_OF_MEMORY)
        manifest = Manifest.from_raw(answer["manifest"])
        numbers = iter(descriptors)
        programs = {name: next(numbers) for name in manifest.programs}
        maps = {handle.name: replace(handle, fd=next(numbers)) for handle in manifest.maps}
        return Handed(manifest, programs, maps, tuple(numbers))
