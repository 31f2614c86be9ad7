# SPDX-License-Identifier: GPL-2.0-only
"""The outsider that keeps pipes and sockets of dead cgroups open."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from typing import NoReturn

FDS_PER_MESSAGE = 250
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Holder:
    """The outsider: a child that keeps descriptors open that it was sent."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            die_with(parent)
            self.channel.close()
            close_all_but(theirs.fileno())
            _hold(theirs)
        theirs.close()

    def send(self, name: str, fds: list[int]) -> None:
        """From inside a cgroup."""
        for place in range(0, len(fds), FDS_PER_MESSAGE):
            socket.send_fds(self.channel, [f"+{name}".encode()], fds[place : place + FDS_PER_MESSAGE])

    def ask(self, verb: str, name: str) -> int:
        """``?``: how many it has of that name; ``-``: close them."""
        self.channel.send(f"{verb}{name}".encode())
        return int(self.channel.recv(64))

    def end(self) -> None:
        self.channel.close()
        os.waitpid(self.pid, 0)


def _hold(channel: socket.socket) -> NoReturn:
    graves: dict[bytes, list[int]] = {}
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 256, FDS_PER_MESSAGE)
        verb, name = message[:1], message[1:]
        if verb == b"+":
            graves.setdefault(name, []).extend(fds)
        elif verb == b"?":
            channel.send(b"%d" % len(graves.get(name, ())))
        elif verb == b"-":
            for fd in graves.pop(name, ()):
                os.close(fd)
            channel.send(b"0")
        else:
            os._exit(0)


def die_with(parent: int) -> None:
    """In a child that was forked and stays who it is: nobody may stay behind when the one that waits for us is killed.

    `parent`: its pid, asked for before the fork: it may have ended since.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def close_all_but(*spared: int) -> None:
    """Close all descriptors but these and the standard ones. Looks into /proc: not for use inside a cgroup."""
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if fd > 2 and fd not in spared:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)
