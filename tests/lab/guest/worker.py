# SPDX-License-Identifier: GPL-2.0-only
"""A process that enters cgroups on command and allocates kernel memory there, as fast as it can.

Run as a script; reads one command a line from stdin, answers one line when it is done, ``done`` or ``done VALUE``:

    enter PATH          go to the cgroup with that directory
    pin CPU             run on that CPU only
    files N PREFIX      N regular files PREFIX0, PREFIX1..., without opening them
    pipes N             N pipes, kept open
    thin K              close all kept descriptors except every K-th, which stay open
    lives N PARENT NAME DIR PAUSE HOME
                        N times: make the cgroup PARENT/NAME-0, -1..., leave the last one for it, wait PAUSE ms for its
                        caches, allocate, free most of it and some of what the last one left, remove the last one;
                        in the end go to HOME
    unlink              remove the files that all lives have left
    resize MS           make the buffers of some pipes large and small again for so long; VALUE is how often
    insist              one pipe, as soon as the kernel has memory for it; VALUE is how often it had none

It is plain system calls through `os`, so that no library allocates anything else.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable

FIRST_PIPES = 3
PIPES = 64
FILES = 32
F_SETPIPE_SZ = 1031
PAGE = 4096
LARGE = 128 * PAGE
"""The array of this many buffers is one of four objects in its slab."""

_kept: list[int] = []
_left: list[str] = []


def _enter(path: str) -> None:
    fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY)
    os.write(fd, b"0")
    os.close(fd)


def _files(number: int, prefix: str) -> None:
    for serial in range(number):
        os.mknod(f"{prefix}{serial}")


def _pipes(number: int) -> None:
    for _ in range(number):
        _kept.extend(os.pipe())


def _thin(every: int) -> None:
    for place in range(0, len(_kept), 2):
        if place // 2 % every:
            os.close(_kept[place])
            os.close(_kept[place + 1])
    _kept.clear()


def _allocate(prefix: str) -> tuple[list[int], list[str]]:
    """What stays of it: a few pipes and a few files."""
    pipes: list[int] = []
    files: list[str] = []
    for serial in range(PIPES):
        ends = os.pipe()
        if serial % 7:
            os.close(ends[0])
            os.close(ends[1])
        else:
            pipes += ends
    for serial in range(FILES):
        path = f"{prefix}-{serial}"
        os.mknod(path)
        if serial % 5:
            os.unlink(path)  # noqa: PTH108 - a Path would allocate
        else:
            files.append(path)
    return pipes, files


def _lives(number: int, parent: str, name: str, directory: str, pause_ms: int, home: str) -> None:
    last = ""
    old_pipes: list[int] = []
    for life in range(number):
        path = f"{parent}/{name}-{life}"
        os.mkdir(path)  # noqa: PTH102
        _enter(path)
        if pause_ms:
            for end in [end for _ in range(FIRST_PIPES) for end in os.pipe()]:
                os.close(end)
            os.mknod(f"{directory}/{name}-{life}")
            os.unlink(f"{directory}/{name}-{life}")  # noqa: PTH108
            time.sleep(pause_ms / 1000)
        pipes, files = _allocate(f"{directory}/{name}-{life}")
        for end in old_pipes:
            os.close(end)
        old_pipes = pipes
        _left.extend(files)
        if last:
            os.rmdir(last)  # noqa: PTH106
        last = path
    _enter(home)
    for end in old_pipes:
        os.close(end)
    os.rmdir(last)  # noqa: PTH106


def _unlink() -> None:
    while _left:
        os.unlink(_left.pop())  # noqa: PTH108


def _resize(milliseconds: int) -> int:
    pipes = [os.pipe() for _ in range(60)]
    count, until = 0, time.monotonic() + milliseconds / 1000
    while time.monotonic() < until:
        for size in (LARGE, PAGE):
            for _, end in pipes:
                fcntl.fcntl(end, F_SETPIPE_SZ, size)
                count += 1
    for pipe in pipes:
        os.close(pipe[0])
        os.close(pipe[1])
    return count


def _insist() -> int:
    failures = 0
    while True:
        try:
            _kept.extend(os.pipe())
        except OSError:
            failures += 1
        else:
            return failures


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "enter": lambda words: _enter(words[0]),
    "pin": lambda words: os.sched_setaffinity(0, {int(words[0])}),
    "files": lambda words: _files(int(words[0]), words[1]),
    "pipes": lambda words: _pipes(int(words[0])),
    "thin": lambda words: _thin(int(words[0])),
    "lives": lambda words: _lives(int(words[0]), words[1], words[2], words[3], int(words[4]), words[5]),
    "unlink": lambda _: _unlink(),
    "resize": lambda words: _resize(int(words[0])),
    "insist": lambda _: _insist(),
}


def main() -> None:
    """Loop until stdin ends."""
    os.close(os.dup2(0, 1000))  # grows the table of descriptors, which is made of charged objects, once for all
    os.write(1, b"ready\n")
    line = b""
    while True:
        part = os.read(0, 4096)
        if not part:
            return
        line += part
        if line.endswith(b"\n"):
            command, *words = line.decode().split()
            value = COMMANDS[command](words)
            line = b""
            os.write(1, b"done\n" if value is None else b"done %d\n" % value)


if __name__ == "__main__":
    main()
