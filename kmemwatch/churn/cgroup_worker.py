# SPDX-License-Identifier: GPL-2.0-only
"""The worker process: makes and removes cgroups, in an interpreter that loads little else.

For each cgroup below PARENT the worker forks a child outside of it. The child enters the cgroup, makes the objects of
its life with plain system calls, and exits: its own memory goes with it, the objects stay. Files stay on a tmpfs that
only the worker and its children have mounted; page cache and negative dentries in SCRATCH. The child sends pipes and
sockets to the `DescriptorKeeper`, which never was in any of the cgroups. A child with threads leaves the cgroup and
waits. The worker, the keeper and such children are in the root cgroup. So the kernel charges their own memory, such as
blocks of directories, to none of the cgroups, and it keeps none of them dying.

One command a line on CHANNEL, one answer a line, a Python literal:

    life NAME STEPS     {"made": {kind: n}, "left": ..., "failed": {(kind, errno): n}, "errors": [(what, errno)], ...}
    release NAME        free what it left
    end                 free everything; the end of CHANNEL means the same
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

from kmemwatch.churn.objects import ObjectFiles, ObjectMaker

ON_TMPFS = "dis"
RMDIR_S = 10.0
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2
_TCP_LIMIT = str(1 << 40)
_FDS_PER_MESSAGE = 250
_PR_SET_PDEATHSIG = 1


def _call(name: str, *args: object) -> None:
    """Call a function of libc that returns 0 or sets errno. Raises OSError."""
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
    """Remove a cgroup; its processes may need a moment to exit."""
    until = time.monotonic() + RMDIR_S
    while True:
        try:
            return os.rmdir(path)  # noqa: PTH106
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.001)


def _charge_sockets(path: str) -> None:
    """cgroup v1 charges sockets only to a cgroup that has a limit for them."""
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


class DescriptorKeeper:
    """A child outside all cgroups of the run; it keeps the descriptors open that a cgroup's process sends it."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            die_with(parent)
            self.channel.close()
            close_all_but(theirs.fileno())
            _keep(theirs)
        theirs.close()

    def send(self, name: str, fds: list[int]) -> None:
        """Called inside a cgroup."""
        for place in range(0, len(fds), _FDS_PER_MESSAGE):
            socket.send_fds(self.channel, [f"+{name}".encode()], fds[place : place + _FDS_PER_MESSAGE])

    def ask(self, verb: str, name: str) -> int:
        """``?``: how many it has for that cgroup; ``-``: close them."""
        self.channel.send(f"{verb}{name}".encode())
        return int(self.channel.recv(64))

    def end(self) -> None:
        self.channel.close()
        os.waitpid(self.pid, 0)


def _keep(channel: socket.socket) -> NoReturn:
    kept: dict[bytes, list[int]] = {}
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 256, _FDS_PER_MESSAGE)
        verb, name = message[:1], message[1:]
        if verb == b"+":
            kept.setdefault(name, []).extend(fds)
        elif verb == b"?":
            channel.send(b"%d" % len(kept.get(name, ())))
        elif verb == b"-":
            for fd in kept.pop(name, ()):
                os.close(fd)
            channel.send(b"0")
        else:
            os._exit(0)


def die_with(parent: int) -> None:
    """In a forked child that runs no other program: end when `parent`, which waits for it, is killed.

    `parent` is its pid from before the fork; it may have ended since.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def close_all_but(*spared: int) -> None:
    """Close all descriptors but these and the standard ones. Not inside a cgroup: reading /proc allocates."""
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > 2 and fd not in spared:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)


class CgroupWorker:
    """Makes one cgroup after the other, has a child act in it, and removes it."""

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
        self._files: dict[str, ObjectFiles] = {}
        with open(self._home, "wb", buffering=0) as procs:
            procs.write(b"0")
        _raise_descriptor_limit()
        self._keeper = DescriptorKeeper()

    def prepare(self) -> None:
        """Make everything once before the first life, so that what the first use allocates is charged to no cgroup."""
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
        files = ObjectFiles(self._tmpfs, self._disk, f"warm-{os.getpid()}")
        steps = "".join(f"{letter.upper()}2{letter}1" for letter in self._letters)
        outcome = self._act_inside("warm", steps, files, self._home)
        self._free("warm", files)
        if outcome["errors"] or outcome["failed"]:
            (what, number), *_ = list(outcome["errors"]) or list(outcome["failed"])
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def life(self, name: str, steps: str) -> dict[str, Any]:
        """Make the cgroup, have a child make its objects, remove it."""
        path = f"{self._parent}/{name}"
        files = ObjectFiles(self._tmpfs, self._disk, name)
        answer: dict[str, Any] = {"name": name, "id": None, "made_at_ns": None, "removed_at_ns": None}
        try:
            os.mkdir(path)  # noqa: PTH102
        except OSError as exc:
            return {**answer, **_nothing(), "errors": [("mkdir", exc.errno)]}
        answer.update(id=os.stat(path).st_ino, made_at_ns=time.time_ns())  # noqa: PTH116
        if self._version == 1 and "k" in steps.lower():
            _charge_sockets(path)
        self._files[name] = files
        outcome = self._act_inside(name, steps, files, f"{path}/cgroup.procs")
        try:
            _rmdir(path)
            answer["removed_at_ns"] = time.time_ns()
        except OSError as exc:
            outcome["errors"].append(("rmdir", exc.errno))
        return {**answer, **outcome}

    def _act_inside(self, name: str, steps: str, files: ObjectFiles, procs_path: str) -> dict[str, Any]:
        """Fork a child that does `steps` in the cgroup with that cgroup.procs; returns what the child reports."""
        try:
            files.prepare(steps.lower())
            procs = os.open(procs_path, os.O_WRONLY | os.O_CLOEXEC)
            home = os.open(self._home, os.O_WRONLY | os.O_CLOEXEC)
            answer, theirs = os.pipe()
            pid = os.fork()
        except OSError as exc:
            files.close()
            return {**_nothing(), "errors": [("prepare", exc.errno)]}
        if pid == 0:
            self._child(name, steps, files, (procs, home, theirs))
        for fd in (procs, home, theirs):
            os.close(fd)
        files.close()
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
            outcome["held_fds"] = self._keeper.ask("?", name)
        return outcome

    def _child(self, name: str, steps: str, files: ObjectFiles, fds: tuple[int, int, int]) -> NoReturn:
        try:
            procs, home, theirs = fds
            die_with(self._pid)
            keeper = self._keeper.channel.fileno()
            close_all_but(procs, home, theirs, keeper, *files.fds.values())
            maker = ObjectMaker(files)
            os.write(procs, b"0")
            maker.make(steps)
            maker.free()
            self._keeper.send(name, maker.kept_fds)
            waits = "t" in steps.lower()
            if waits:
                os.write(home, b"0")  # with all its threads
            outcome = {"made": maker.made, "left": maker.left, "failed": maker.failed, "errors": [], "held_fds": 0}
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
        """Free what a removed cgroup left."""
        files = self._files.pop(name, None)
        if files is not None:
            self._free(name, files)

    def _free(self, name: str, files: ObjectFiles) -> None:
        pid = self._waiting.pop(name, None)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._keeper.ask("-", name)
        files.remove()

    def end(self) -> None:
        """Free everything."""
        for pid in self._waiting.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._waiting.values():
            os.waitpid(pid, 0)
        self._waiting.clear()
        self._keeper.end()
        if self._mounted:
            _call("umount2", os.fsencode(self._tmpfs), _MNT_DETACH)
            self._mounted = False

    def serve(self) -> None:
        """Run commands until ``end``, or until the other side closes the channel."""
        try:
            self._answer({"ready": os.getpid()})
            with self._channel.makefile("r") as commands:
                for line in commands:
                    verb, *words = line.split()
                    if verb == "end":
                        break
                    self._run(verb, words)
        finally:
            self.end()
        self._answer({"ended": os.getpid()})

    def _run(self, verb: str, words: list[str]) -> None:
        if verb == "life":
            self._answer(self.life(*words))
        elif verb == "release":
            self.release(words[0])
            self._answer({"released": words[0]})
        else:
            raise ValueError(verb)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._channel.sendall(f"{answer!r}\n".encode())


def main(arguments: list[str]) -> None:
    """CHANNEL (a descriptor), ROOT, PARENT, SCRATCH, KINDS (letters), VERSION of cgroups: serve the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(arguments[0]))
    root, parent, scratch, letters, version = arguments[1:]
    try:
        worker = CgroupWorker(channel, root, parent, scratch, letters, int(version))
        worker.prepare()
    except OSError as exc:
        channel.sendall(f"{ {'refused': str(exc.strerror or exc)}!r}\n".encode())
        return
    worker.serve()
