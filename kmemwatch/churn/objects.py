# SPDX-License-Identifier: GPL-2.0-only
"""Makes objects inside a cgroup, one by one, with plain system calls; and the files that this takes."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator

LETTERS = {
    "d": "dentry", "i": "inode", "n": "negative", "f": "file", "s": "shmem", "p": "pipe", "k": "socket", "t": "thread",
}  # fmt: skip
"""Letters in the steps of a life: small for an object that is freed before its cgroup is removed, else capital."""

PAGE = 4096
_BLOCK = b"\x5a" * PAGE


def runs(steps: str) -> Iterator[tuple[str, int]]:
    """``D3p1`` -> (D, 3), (p, 1)."""
    place = 0
    while place < len(steps):
        end = place + 1
        while end < len(steps) and steps[end].isdigit():
            end += 1
        yield steps[place], int(steps[place + 1 : end])
        place = end


class ObjectFiles:
    """Files and directories of a life; made outside of its cgroup, so that only its objects are charged to it."""

    def __init__(self, tmpfs: str, disk: str, name: str) -> None:
        self.directory = f"{tmpfs}/{name}"
        self.source = f"{tmpfs}/{name}.src"
        self.shmem = f"{tmpfs}/{name}.mem"
        self.nothing = f"{disk}/{name}"
        self.page_cache = f"{disk}/{name}.pages"
        self.fds: dict[str, int] = {}

    def prepare(self, letters: str) -> None:
        if "d" in letters or "i" in letters:
            os.mkdir(self.directory)  # noqa: PTH102 - a Path would allocate
        if "d" in letters:
            os.mknod(self.source)
        if "n" in letters:
            os.mkdir(self.nothing)  # noqa: PTH102
            os.access(f"{self.nothing}/-", os.F_OK)  # reads the directory
        for letter, path in (("s", self.shmem), ("f", self.page_cache)):
            if letter in letters:
                self.fds[letter] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])

    def remove(self) -> None:
        """Remove what exists of them."""
        for directory in (self.directory, self.nothing):
            if os.path.isdir(directory):  # noqa: PTH112
                for entry in os.listdir(directory):  # noqa: PTH208
                    os.unlink(f"{directory}/{entry}")  # noqa: PTH108
                os.rmdir(directory)  # noqa: PTH106
        for path in (self.source, self.shmem, self.page_cache):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108


class ObjectMaker:
    """Makes objects one by one inside the cgroup, and counts them."""

    def __init__(self, files: ObjectFiles) -> None:
        self._files = files
        self._serial = 0
        self.made: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.failed: dict[tuple[str, int], int] = {}
        self.kept_fds: list[int] = []
        self._spare_fds: list[int] = []
        self._spare_paths: list[str] = []
        self._spare_threads: list[_thread.LockType] = []
        self._pages = {"f": 0, "s": 0}
        self._makers: dict[str, Callable[[bool], None]] = {
            "d": self._dentry, "i": self._inode, "n": self._negative, "p": self._pipe, "k": self._socket,
            "t": self._thread, "f": lambda _: self._page("f"), "s": lambda _: self._page("s"),
        }  # fmt: skip

    def make(self, steps: str) -> None:
        """All objects of a life, in order."""
        for sign, number in runs(steps):
            letter, stays = sign.lower(), sign.isupper()
            make, kind = self._makers[letter], LETTERS[letter]
            # Negative dentries cannot be freed from here: they stay until the kernel reclaims them.
            stays = stays or letter == "n"
            for _ in range(number):
                self._serial += 1
                try:
                    make(stays)
                except (OSError, RuntimeError) as exc:  # RuntimeError: no thread could be started
                    key = kind, (exc.errno if isinstance(exc, OSError) else None) or errno.EAGAIN
                    self.failed[key] = self.failed.get(key, 0) + 1
                else:
                    self.made[kind] = self.made.get(kind, 0) + 1
                    if stays:
                        self.left[kind] = self.left.get(kind, 0) + 1

    def free(self) -> None:
        """Free what does not outlive the cgroup: only after all is made, so that this leaves holes in slabs."""
        for path in self._spare_paths:
            os.unlink(path)  # noqa: PTH108
        for fd in self._spare_fds:
            os.close(fd)
        for lock in self._spare_threads:
            lock.release()
        for letter, fd in self._files.fds.items():
            os.ftruncate(fd, self.left.get(LETTERS[letter], 0) * PAGE)

    def _dentry(self, stays: bool) -> None:
        path = f"{self._files.directory}/{self._serial}"
        os.link(self._files.source, path)
        if not stays:
            self._spare_paths.append(path)

    def _inode(self, stays: bool) -> None:
        path = f"{self._files.directory}/{self._serial}"
        os.mknod(path)
        if not stays:
            self._spare_paths.append(path)

    def _negative(self, _stays: bool) -> None:
        os.access(f"{self._files.nothing}/{self._serial}", os.F_OK)

    def _page(self, letter: str) -> None:
        os.pwrite(self._files.fds[letter], _BLOCK, self._pages[letter] * PAGE)
        self._pages[letter] += 1

    def _pipe(self, stays: bool) -> None:
        (self.kept_fds if stays else self._spare_fds).extend(os.pipe())

    def _socket(self, stays: bool) -> None:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        (self.kept_fds if stays else self._spare_fds).append(made.detach())

    def _thread(self, stays: bool) -> None:
        lock = _thread.allocate_lock()
        lock.acquire()
        _thread.start_new_thread(lock.acquire, ())
        if not stays:
            self._spare_threads.append(lock)
