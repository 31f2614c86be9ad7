# SPDX-License-Identifier: GPL-2.0-only
"""The process that lives the lives of cgroups, in an interpreter with little else in it: ``main(CHANNEL PARENT ...)``.

Each cgroup below PARENT gets a child that is forked outside, enters it, does what its life says with plain system
calls, and exits: its own memory goes with it, what it made stays. Files outlive it on a tmpfs that only this process
and its children have mounted, page cache and negative dentries in SCRATCH. Pipes and sockets are sent to another child,
who never was in any of the cgroups. A child with threads moves out and waits. All outsiders are in the root cgroup, so
that what they use for themselves, such as blocks of directories, is charged to nobody and leaves no dead cgroup behind.

One command a line on CHANNEL, one answer a line, a Python literal:

    life NAME STEPS     {"made": {kind: n}, "left": ..., "failed": {(kind, errno): n}, "errors": [(what, errno)], ...}
    release NAME        let go of what it left
    end                 let go of everything; the end of CHANNEL means the same
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import gc
import marshal
import os
import resource
import signal
import socket
import time
from typing import Any, NoReturn

from kmemwatch.churn.holder import Holder, close_all_but, die_with
from kmemwatch.churn.objects import Making, Places

ON_TMPFS = "dis"
RMDIR_S = 10.0
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2
_TCP_LIMIT = str(1 << 40)


def _call(name: str, *args: object) -> None:
    """A function of libc that answers 0, or OSError."""
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)


def _nothing() -> dict[str, Any]:
    return {"made": {}, "left": {}, "failed": {}, "errors": [], "held_fds": 0}


def _read_all(fd: int) -> bytes:
    text = b""
    while part := os.read(fd, 65536):
        text += part
    return text


def _rmdir(path: str) -> None:
    """Remove a cgroup; whoever was in it may take a moment to be gone."""
    until = time.monotonic() + RMDIR_S
    while True:
        try:
            return os.rmdir(path)  # noqa: PTH106
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.001)


def _charge_sockets(path: str) -> None:
    """cgroup v1 charges sockets to a cgroup only when their memory has a limit there."""
    with (
        contextlib.suppress(OSError),
        open(f"{path}/memory.kmem.tcp.limit_in_bytes", "w") as limit,
    ):
        limit.write(_TCP_LIMIT)


def _raise_descriptor_limit() -> None:
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):  # without CAP_SYS_RESOURCE
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Worker:
    """Lives one life after the other."""

    def __init__(
        self, channel: socket.socket, root: str, parent: str, scratch: str, letters: str, version: int
    ) -> None:
        self._channel = channel
        self._home = f"{root}/cgroup.procs"
        self._parent = parent
        self._disk = scratch
        self._tmpfs = f"{scratch}/tmpfs-{os.getpid()}"
        self._letters = letters
        self._version = version
        self._mounted = False
        self._pid = os.getpid()
        self._waiting: dict[str, int] = {}
        """Name -> pid of a child whose threads outlive their cgroup."""
        self._places: dict[str, Places] = {}
        with open(self._home, "wb", buffering=0) as procs:
            procs.write(b"0")
        _raise_descriptor_limit()
        self._holder = Holder()

    def prepare(self) -> None:
        """What happens on the first use of anything, before the first life."""
        if set(self._letters) & set(ON_TMPFS):
            os.mkdir(self._tmpfs, 0o700)  # noqa: PTH102
            _call("unshare", _CLONE_NEWNS)
            _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
            options = b"size=0,nr_inodes=0,mode=700"
            _call("mount", b"kmemwatch-churn", os.fsencode(self._tmpfs), b"tmpfs", 0, options)
            self._mounted = True
        _thread.stack_size(64 * 1024)
        gc.collect()
        gc.freeze()
        gc.disable()
        places = Places(self._tmpfs, self._disk, f"warm-{os.getpid()}")
        steps = "".join(f"{letter.upper()}2{letter}1" for letter in self._letters)
        outcome = self._inhabit("warm", steps, places, self._home)
        self._let_go("warm", places)
        if outcome["errors"] or outcome["failed"]:
            (what, number), *_ = list(outcome["errors"]) or list(outcome["failed"])
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def life(self, name: str, steps: str) -> dict[str, Any]:
        """Make the cgroup, live in it, remove it."""
        path = f"{self._parent}/{name}"
        places = Places(self._tmpfs, self._disk, name)
        answer: dict[str, Any] = {"name": name, "id": None, "made_at_ns": None, "removed_at_ns": None}
        try:
            os.mkdir(path)  # noqa: PTH102
        except OSError as exc:
            return {**answer, **_nothing(), "errors": [("mkdir", exc.errno)]}
        answer.update(id=os.stat(path).st_ino, made_at_ns=time.time_ns())  # noqa: PTH116
        if self._version == 1 and "k" in steps.lower():
            _charge_sockets(path)
        self._places[name] = places
        outcome = self._inhabit(name, steps, places, f"{path}/cgroup.procs")
        try:
            _rmdir(path)
            answer["removed_at_ns"] = time.time_ns()
        except OSError as exc:
            outcome["errors"].append(("rmdir", exc.errno))
        return {**answer, **outcome}

    def _inhabit(self, name: str, steps: str, places: Places, procs_path: str) -> dict[str, Any]:
        """Fork a child that does `steps` in the cgroup with that cgroup.procs; what it says it did."""
        try:
            places.prepare(steps.lower())
            procs = os.open(procs_path, os.O_WRONLY | os.O_CLOEXEC)
            home = os.open(self._home, os.O_WRONLY | os.O_CLOEXEC)
            answer, theirs = os.pipe()
            pid = os.fork()
        except OSError as exc:
            places.close()
            return {**_nothing(), "errors": [("prepare", exc.errno)]}
        if pid == 0:
            self._child(name, steps, places, (procs, home, theirs))
        for fd in (procs, home, theirs):
            os.close(fd)
        places.close()
        text = _read_all(answer)
        os.close(answer)
        if "t" in steps.lower() and text:
            self._waiting[name] = pid
        else:
            os.waitpid(pid, 0)
        if not text:
            return {**_nothing(), "errors": [("child", errno.ECHILD)]}
        outcome: dict[str, Any] = marshal.loads(text)
        if "p" in steps.lower() or "k" in steps.lower():
            outcome["held_fds"] = self._holder.ask("?", name)
        return outcome

    def _child(self, name: str, steps: str, places: Places, fds: tuple[int, int, int]) -> NoReturn:
        try:
            procs, home, theirs = fds
            die_with(self._pid)
            holder = self._holder.channel.fileno()
            close_all_but(procs, home, theirs, holder, *places.fds.values())
            making = Making(places)
            os.write(procs, b"0")
            making.make(steps)
            making.free()
            self._holder.send(name, making.kept_fds)
            waits = "t" in steps.lower()
            if waits:
                os.write(home, b"0")  # with all its threads
            outcome = {"made": making.made, "left": making.left, "failed": making.failed, "errors": [], "held_fds": 0}
            os.write(theirs, marshal.dumps(outcome))
            if waits:
                close_all_but()
                while True:
                    signal.pause()
        except OSError as exc:
            os.write(theirs, marshal.dumps({**_nothing(), "errors": [("life", exc.errno)]}))
        finally:
            os._exit(0)

    def release(self, name: str) -> None:
        """Let go of what a dead cgroup left."""
        places = self._places.pop(name, None)
        if places is not None:
            self._let_go(name, places)

    def _let_go(self, name: str, places: Places) -> None:
        pid = self._waiting.pop(name, None)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._holder.ask("-", name)
        places.remove()

    def end(self) -> None:
        """Let go of everything."""
        for pid in self._waiting.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._waiting.values():
            os.waitpid(pid, 0)
        self._waiting.clear()
        self._holder.end()
        if self._mounted:
            _call("umount2", os.fsencode(self._tmpfs), _MNT_DETACH)
            self._mounted = False

    def serve(self) -> None:
        """Until told to end, or whoever tells is gone."""
        try:
            self._say({"ready": os.getpid()})
            with self._channel.makefile("r") as commands:
                for line in commands:
                    verb, *words = line.split()
                    if verb == "end":
                        break
                    self._obey(verb, words)
        finally:
            self.end()
        self._say({"ended": os.getpid()})

    def _obey(self, verb: str, words: list[str]) -> None:
        if verb == "life":
            self._say(self.life(*words))
        elif verb == "release":
            self.release(words[0])
            self._say({"released": words[0]})
        else:
            raise ValueError(verb)

    def _say(self, answer: dict[str, Any]) -> None:
        self._channel.sendall(f"{answer!r}\n".encode())


def main(arguments: list[str]) -> None:
    """CHANNEL (a descriptor), ROOT, PARENT, SCRATCH, KINDS (letters), VERSION of cgroups: serve the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(arguments[0]))
    root, parent, scratch, letters, version = arguments[1:]
    try:
        worker = Worker(channel, root, parent, scratch, letters, int(version))
        worker.prepare()
    except OSError as exc:
        channel.sendall(f"{ {'refused': str(exc.strerror or exc)}!r}\n".encode())
        return
    worker.serve()
