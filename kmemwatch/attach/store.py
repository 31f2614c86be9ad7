# SPDX-License-Identifier: GPL-2.0-only
"""Where images of a start are kept, and for which starts they hold.

The kernel is going to run what stands in these files, loaded by root. So only files of our own user count, in a
directory that is closed to everybody else; whatever is not exactly so is refused, which costs a second and nothing
more. docs/adr/0007-warm-start.md has the reasons.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from kmemwatch import __version__
from kmemwatch.errors import raise_if_shortage
from kmemwatch.kernel import cgroupfs

DIRECTORY = Path("/run/kmemwatch")
"""Gone after a reboot, like everything that the files speak of."""

_MAGIC = b"kmemwatch start 2"
"""1 could hold a start that was incomplete for want of descriptors or memory."""
_MAX_BYTES = 4 << 20
_START = "start"
_NEW = ".new"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LOOK = (
    _BOOT_ID,
    "/proc/sys/kernel/kptr_restrict",
    "/proc/sys/kernel/perf_event_paranoid",
    "/sys/kernel/security/lockdown",
    "/sys/devices/system/cpu/online",
)
"""Which kernel it is, and what it lets us see and load."""
_EVENTS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
_SOURCES = tuple(
    Path(importlib.import_module(package).__path__[0])
    for package in ("kmemwatch.bpf", "kmemwatch.kernel", "kmemwatch.maps", "kmemwatch.attach")
)
"""What is compiled, and what decides how."""


def key(without: tuple[str, ...], sources: tuple[Path, ...] = _SOURCES, latency: bool = False) -> dict[str, Any]:
    """Everything that an image depends on, for JSON: it holds for a start whose key is equal.

    Raises OSError, ShortageError or ValueError when that cannot be told.
    """
    hierarchy = cgroupfs.find_memory()
    host = {path: _text(Path(path)) for path in _LOOK}
    if host[_BOOT_ID] is None:
        raise ValueError(f"{_BOOT_ID}: what is kept must not outlive the boot, and which one this is is not known")
    return {
        "version": __version__,
        "without": sorted(set(without)),
        "latency": latency,
        "host": host,
        "tracefs": [os.path.isdir(path) for path in _EVENTS],  # noqa: PTH112 - says no where Path.is_dir raises
        "symbols": _has_symbols(),
        "capabilities": _capabilities(),
        "hierarchy": None if hierarchy is None else list(astuple(hierarchy)),
        "sources": {str(path): mark for directory in sources for path, mark in _marks(directory)},
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError as error:
        raise_if_shortage(error)
        return None


def _has_symbols(path: Path = Path("/proc/kallsyms")) -> bool:
    """Whether kallsyms has anything in it: a container may see an empty one."""
    try:
        with path.open("rb") as file:
            return file.read(1) != b""
    except OSError as error:
        raise_if_shortage(error, str(path))
        return False


def _capabilities(status: Path = Path("/proc/self/status")) -> str | None:
    lines = (_text(status) or "").splitlines()
    return next((line for line in lines if line.startswith("CapEff:")), None)


def _marks(directory: Path) -> Iterator[tuple[str, list[int]]]:
    """(path, [size, time of change in ns]) of each source below `directory`."""
    for top, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            if name.endswith((".c", ".h", ".py")):
                path = os.path.join(top, name)  # noqa: PTH118 - a hundred files, and time matters
                status = os.stat(path)  # noqa: PTH116
                yield path, [status.st_size, status.st_mtime_ns]


def _raise(error: OSError) -> None:
    raise error


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
        # No name at all: another start has just put its own in the place of this one.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > _MAX_BYTES:
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
    # Of two that write at the same time, each has its own, and the last wins.
    new = f"{name}.{os.getpid()}{_NEW}"
    top = open_directory(directory)
    try:
        _remove_unfinished(top)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(new, flags, 0o600, dir_fd=top), "wb") as file:
                file.write(b"%s\n%08x\n%s" % (_MAGIC, zlib.crc32(body), body))
            os.rename(new, name, src_dir_fd=top, dst_dir_fd=top)
        except OSError:
            with contextlib.suppress(OSError):  # no room, for example
                os.unlink(new, dir_fd=top)
            raise
    finally:
        os.close(top)


def _remove_unfinished(top: int) -> None:
    """What somebody left who was ended while writing."""
    for name in os.listdir(top):
        if name.startswith(_START) and name.endswith(_NEW) and not _is_being_written(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=top)


def _is_being_written(name: str) -> bool:
    pid = name.removesuffix(_NEW).rpartition(".")[2]
    return pid.isdigit() and int(pid) != os.getpid() and os.path.exists(f"/proc/{pid}")  # noqa: PTH110


def _name(key: dict[str, Any]) -> str:
    """One file for each ``--without``, with ``--latency`` and without; words that would lead elsewhere are not ours."""
    without = key["without"]
    if not all(word.isidentifier() for word in without):
        raise ValueError(f"no such kind: {without}")
    return "-without-".join([f"{_START}-latency" if key["latency"] else _START, *without])


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
