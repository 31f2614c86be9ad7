# SPDX-License-Identifier: GPL-2.0-only
"""A process that does exactly what a command says, N times, and nothing in between that could be counted.

Run as a script inside a cgroup of its own; reads one command a line from stdin and answers one line when it is done:

    eventfd N        N times: make an eventfd and close it
    files N DIR      N regular files in DIR, without opening them; `unlink N DIR` removes them
    pipes N          N pipes (two files each), kept open; `close` closes all that is kept
    write PATH BYTES a file of BYTES bytes; `read PATH` reads a file to its end
    inotify          an inotify instance, sent to the other end of descriptor 3
    epoll N          N times: have epoll watch an eventfd, and no longer
    trie N           N times: put an entry of TRIE_VALUE_BYTES into a BPF trie and take it out again
    submit N         N requests of io_uring that wait for ever; `close` ends them
    fail N LIMIT USAGE   open files until memory for N of them was missing, with the file LIMIT set to what USAGE says
    receive BYTES    a TCP connection from the other end with BYTES unread, sent to descriptor 3

It is plain system calls through `os`, so that no library opens further files.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import select
import socket
import stat
import struct

_BLOCK = b"\x5a" * 65536
_kept: list[int] = []

TRIE_VALUE_BYTES = 200
_BPF, _IO_URING_SETUP, _IO_URING_ENTER = 321, 425, 426
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _LPM_TRIE, _NO_PREALLOC = 0, 2, 3, 11, 1
_MOST_FILES = 32768
_POLL_ADD, _RING_PARAMS_BYTES, _SQE_BYTES, _SQES_AT = 6, 120, 64, 0x10000000


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


def _epoll(count: int) -> None:
    watched = ctypes.CDLL(None).eventfd(0, 0)
    with select.epoll() as epoll:
        for _ in range(count):
            epoll.register(watched, select.EPOLLIN)
            epoll.unregister(watched)
    os.close(watched)


def _syscall(number: int, *args: object) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, *args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _trie(count: int) -> None:
    key = ctypes.create_string_buffer(struct.pack("=I4s", 32, b"abcd"), 8)
    value = ctypes.create_string_buffer(TRIE_VALUE_BYTES)
    create = struct.pack("=5I", _LPM_TRIE, len(key), TRIE_VALUE_BYTES, 1, _NO_PREALLOC)
    trie = _syscall(_BPF, _MAP_CREATE, create, len(create))
    entry = struct.pack("=I4xQQQ", trie, ctypes.addressof(key), ctypes.addressof(value), 0)
    for _ in range(count):
        _syscall(_BPF, _MAP_UPDATE, entry, len(entry))
        _syscall(_BPF, _MAP_DELETE, entry, 16)  # without the value, which it does not take
    os.close(trie)


def _submit(count: int) -> None:
    watched = ctypes.CDLL(None).eventfd(0, 0)
    params = ctypes.create_string_buffer(_RING_PARAMS_BYTES)
    ring = _syscall(_IO_URING_SETUP, count, params)
    _kept.extend((watched, ring))
    entries = struct.unpack_from("=I", params.raw)[0]
    _, tail, _, _, _, _, array = struct.unpack_from("=7I", params.raw, 40)
    with mmap.mmap(ring, array + 4 * entries) as queue, mmap.mmap(ring, entries * _SQE_BYTES, offset=_SQES_AT) as sqes:
        for at in range(count):
            struct.pack_into("=BxxxiQQII", sqes, at * _SQE_BYTES, _POLL_ADD, watched, 0, 0, 0, select.POLLIN)
            struct.pack_into("=I", queue, array + 4 * at, at)
        struct.pack_into("=I", queue, tail, count)
        assert _syscall(_IO_URING_ENTER, ring, count, 0, 0, None, 0) == count


def _fail(count: int, limit: str, usage: str) -> None:
    """While no kernel memory is left, nothing else is done here: output, or a page fault, would wait for ever."""
    _, limit_of_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_of_files, limit_of_files))
    first = os.dup(0)
    os.close(os.dup2(0, min(limit_of_files, _MOST_FILES) - 1))  # grows the table of descriptors
    libc = ctypes.CDLL(None, use_errno=True)
    open_, failures, most = libc.open, 0, first
    for _ in range(100):  # whatever is made on first use
        os.close(open_(b"/dev/null", os.O_RDONLY))
    limit_fd = os.open(limit, os.O_WRONLY)
    with open(usage, "rb") as file:
        full = file.read()
    os.write(limit_fd, full)
    while failures < count:
        fd = open_(b"/dev/null", os.O_RDONLY)
        if fd < 0:
            failures += 1
        else:
            most = fd
    error = ctypes.get_errno()
    os.write(limit_fd, b"-1" if limit.endswith("limit_in_bytes") else b"max")
    os.close(limit_fd)
    os.closerange(first, most + 1)
    assert error == errno.ENOMEM, os.strerror(error)


_COUNTED = {"eventfd": _eventfd, "epoll": _epoll, "trie": _trie, "submit": _submit}


def _run(words: list[str]) -> None:
    command, args = words[0], words[1:]
    if command in ("files", "unlink"):
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
    elif command == "fail":
        _fail(int(args[0]), args[1], args[2])
    elif command in _COUNTED:
        _COUNTED[command](int(args[0]))
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
