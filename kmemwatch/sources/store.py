# SPDX-License-Identifier: GPL-2.0-only
"""Where images of a start are kept, and for which starts they hold.

The kernel is going to run what stands in these files, loaded by root. So only files of our own user count, in a
directory that is closed to everybody else; whatever is not exactly so is refused, which costs a second and nothing
more. docs/adr/0007-warm-start.md has the reasons.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kmemwatch import __version__
from kmemwatch.kernel import cgroupfs

DIRECTORY = Path("/run/kmemwatch")
"""Gone after a reboot, like everything that the files speak of."""

_MAGIC = b"kmemwatch start 1"
_MAX_BYTES = 4 << 20
_NEW = ".new"
_LOOK = (
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/kptr_restrict",
    "/proc/sys/kernel/perf_event_paranoid",
    "/sys/kernel/security/lockdown",
    "/sys/devices/system/cpu/online",
)
"""Which kernel it is, and what it lets us see and load."""
_EVENTS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
_SOURCES = tuple(
    Path(importlib.import_module(package).__path__[0])
    for package in ("kmemwatch.bpf", "kmemwatch.kernel", "kmemwatch.sources")
)
"""What is compiled, and what decides how."""


def key(without: tuple[str, ...], sources: tuple[Path, ...] = _SOURCES, latency: bool = False) -> dict[str, Any]:
    """Everything that an image depends on, for JSON: it holds for a start whose key is equal."""
    hierarchy = cgroupfs.find_memory()
    return {
        "version": __version__,
        "without": sorted(set(without)),
        "latency": latency,
        "host": {path: _text(Path(path)) for path in _LOOK},
        "tracefs": [os.path.isdir(path) for path in _EVENTS],  # noqa: PTH112 - says no where Path.is_dir raises
        "capabilities": _capabilities(),
        "hierarchy": None if hierarchy is None else [hierarchy.version, hierarchy.hierarchy_id, hierarchy.mount],
        "sources": {str(path): mark for directory in sources for path, mark in _marks(directory)},
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _capabilities(status: Path = Path("/proc/self/status")) -> str | None:
    lines = (_text(status) or "").splitlines()
    return next((line for line in lines if line.startswith("CapEff:")), None)


def _marks(directory: Path) -> Iterator[tuple[str, list[int]]]:
    """(path, [size, time of change in ns]) of each source below `directory`."""
    for top, _, names in os.walk(directory):
        for name in names:
            if name.endswith((".c", ".h", ".py")):
                path = os.path.join(top, name)  # noqa: PTH118 - a hundred files, and time matters
                status = os.stat(path)  # noqa: PTH116
                yield path, [status.st_size, status.st_mtime_ns]


def load(directory: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The image that was kept for the key `wanted`; None when there is none. Raises OSError or ValueError when what is
    there cannot be trusted or is damaged."""
    top = open_directory(directory)
    try:
        fd = os.open(_name(wanted), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    finally:
        os.close(top)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > _MAX_BYTES:
            raise PermissionError(f"{directory}: the file is not what we left there")
        check_ours(directory, status, 0o600)
        magic, crc, body = file.read().split(b"\n", 2)
    if magic != _MAGIC or int(crc, 16) != zlib.crc32(body):
        raise ValueError(f"{directory}: the file is damaged")
    kept = json.loads(body)
    image: dict[str, Any] | None = kept["image"] if kept["key"] == wanted else None
    return image


def save(directory: Path, made_with: dict[str, Any], image: dict[str, Any]) -> None:
    """Keep `image` for starts with the key `made_with`, in the place of what was kept for the same ``--without`` and
    ``--latency``.

    Raises OSError where that cannot be done safely.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    body = json.dumps({"key": made_with, "image": image}).encode()
    name = _name(made_with)
    top = open_directory(directory)
    try:
        try:
            os.unlink(name + _NEW, dir_fd=top)  # somebody was ended while writing, or is writing: one of us wins
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name + _NEW, flags, 0o600, dir_fd=top), "wb") as file:
            file.write(b"%s\n%08x\n%s" % (_MAGIC, zlib.crc32(body), body))
        os.rename(name + _NEW, name, src_dir_fd=top, dst_dir_fd=top)
    finally:
        os.close(top)


def _name(key: dict[str, Any]) -> str:
    """One file for each ``--without``, with ``--latency`` and without; words that would lead elsewhere are not ours."""
    without = key["without"]
    if not all(word.isidentifier() for word in without):
        raise ValueError(f"no such kind: {without}")
    return "-without-".join(["start-latency" if key["latency"] else "start", *without])


def open_directory(directory: Path) -> int:
    """A descriptor. Raises OSError when it is not ours alone."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_ours(directory, os.fstat(fd), 0o700)
    except OSError:
        os.close(fd)
        raise
    return fd


def check_ours(path: Path, status: os.stat_result, mode: int) -> None:
    """Raise PermissionError for what another user owns, or has a way in; `path` is what the message names."""
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != mode:
        raise PermissionError(f"{path}: not ours alone")
