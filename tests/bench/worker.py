# SPDX-License-Identifier: GPL-2.0-only
"""A process in a cgroup of its own that does known work and says how long it took.

Run as a script; reads one command a line from stdin, answers ``NANOSECONDS`` when it is done:

    spin N           count to N, so that what was freed through RCU meanwhile is freed at this command's expense
    eventfd N        N times: make an eventfd and close it
    file N DIR       N regular files in DIR, made without opening them; then removes them
    pipe N           N pipes, a hundred opened and then closed at a time
    run ARGV...      a program, waited for

It is plain system calls, so that no library opens files behind our back.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time


def _spin(count: int) -> None:
    for _ in range(count):
        pass


def _eventfd(count: int) -> None:
    libc = ctypes.CDLL(None)
    make, close = libc.eventfd, libc.close
    for _ in range(count):
        close(make(0, 0))


def _file(count: int, directory: str) -> None:
    paths = [f"{directory}/{number}" for number in range(count)]
    for path in paths:
        os.mknod(path, stat.S_IFREG | 0o600)
    for path in paths:
        os.unlink(path)  # noqa: PTH108 - a Path would allocate


def _pipe(count: int) -> None:
    for start in range(0, count, 100):
        for fd in [fd for _ in range(min(100, count - start)) for fd in os.pipe()]:
            os.close(fd)


def _run(argv: list[str]) -> None:
    pid = os.posix_spawn(argv[0], argv, {"PATH": "/bin"})
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{argv} failed")


def _do(words: list[str]) -> None:
    command, args = words[0], words[1:]
    if command == "spin":
        _spin(int(args[0]))
    elif command == "eventfd":
        _eventfd(int(args[0]))
    elif command == "file":
        _file(int(args[0]), args[1])
    elif command == "pipe":
        _pipe(int(args[0]))
    elif command == "run":
        _run(args)
    else:
        raise ValueError(command)


def main() -> None:
    """Loop until stdin ends."""
    _eventfd(1)  # loads what ctypes loads on first use
    os.close(os.dup2(0, 1000))  # grows the table of descriptors once for all
    while line := os.read(0, 4096):
        began = time.monotonic_ns()
        # Several commands, so that nobody else runs in between.
        for command in line.decode().strip().split(";"):
            _do(command.split())
        os.write(1, f"{time.monotonic_ns() - began}\n".encode())


if __name__ == "__main__":
    main()
