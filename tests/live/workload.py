# SPDX-License-Identifier: GPL-2.0-only
"""A process that does exactly what it is told, N times, and nothing else that could be counted in between.

Run as a script inside a cgroup of its own; reads one command a line from stdin and answers one line when it is done:

    eventfd N        N times: make an eventfd and close it
    files N DIR      N regular files in DIR, without opening them; `unlink N DIR` removes them
    pipes N          N pipes (two files each), kept open; `close` closes all that is kept
    write PATH BYTES a file of BYTES bytes; `read PATH` reads a file to its end
    inotify          an inotify instance, sent to the other end of descriptor 3
    receive BYTES    a TCP connection from the other end with BYTES unread, sent to descriptor 3

It is plain system calls through `os`, so that no library opens files behind our back.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat

_BLOCK = b"\x5a" * 65536
_kept: list[int] = []


def _eventfd(count: int) -> None:
    libc = ctypes.CDLL(None)
    make, close = libc.eventfd, libc.close
    for _ in range(count):
        close(make(0, 0))


def _write(path: str, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    left = size
    while left:
        left -= os.write(fd, _BLOCK[: min(left, len(_BLOCK))])
    os.close(fd)


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, len(_BLOCK)):
        pass
    os.close(fd)


def _receive(size: int) -> None:
    with socket.socket(fileno=os.dup(3)) as channel, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        channel.sendall(f"{listener.getsockname()[1]}\n".encode())
        accepted, _ = listener.accept()
        received = 0
        while received < size:  # look, but leave it in the queue
            received = len(accepted.recv(size, socket.MSG_PEEK))
        socket.send_fds(channel, [b"s"], [accepted.fileno()])
        accepted.close()


def _inotify() -> None:
    with socket.socket(fileno=os.dup(3)) as channel:
        fd = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
        socket.send_fds(channel, [b"i"], [fd])
        os.close(fd)


def _run(words: list[str]) -> None:
    command, args = words[0], words[1:]
    if command == "eventfd":
        _eventfd(int(args[0]))
    elif command in ("files", "unlink"):
        for number in range(int(args[0])):
            path = f"{args[1]}/{number}"
            if command == "files":
                os.mknod(path, stat.S_IFREG | 0o600)
            else:
                os.unlink(path)  # noqa: PTH108 - a Path would allocate
    elif command == "pipes":
        for _ in range(int(args[0])):
            _kept.extend(os.pipe())
    elif command == "close":
        while _kept:
            os.close(_kept.pop())
    elif command == "write":
        _write(args[0], int(args[1]))
    elif command == "read":
        _read(args[0])
    elif command == "receive":
        _receive(int(args[0]))
    elif command == "inotify":
        _inotify()
    else:
        raise ValueError(command)


def main() -> None:
    """Loop until stdin ends."""
    _eventfd(1)  # loads what ctypes loads on first use
    os.close(os.dup2(0, 1000))  # grows the table of descriptors, which is made of charged kmalloc objects, once for all
    os.write(1, b"ready\n")
    line = b""
    while True:
        part = os.read(0, 4096)
        if not part:
            return
        line += part
        if line.endswith(b"\n"):
            _run(line.decode().split())
            line = b""
            os.write(1, b"done\n")


if __name__ == "__main__":
    main()
