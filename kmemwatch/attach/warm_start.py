# SPDX-License-Identifier: GPL-2.0-only
"""Starts that are kept for the next one, as files: maps, programs with their instructions, and the manifest.

`image_of` makes the data after a cold start, `save` and `load` keep it below /run, `start_from` attaches the same again
without compiler, BTF or symbols. The kernel runs what these files hold, loaded by root. So a start uses only files of
its own user, in a directory that no other user can enter, and refuses all others; a refusal costs one second.
docs/adr/0007-warm-start.md has the reasons.
"""

from __future__ import annotations

import binascii
import contextlib
import importlib
import json
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kmemwatch import __version__
from kmemwatch.errors import raise_if_shortage
from kmemwatch.kernel import bpf_calls, cgroupfs, libbpf

if TYPE_CHECKING:  # imports bcc, which a warm start does without
    from kmemwatch.attach.load import Loaded, LoadedProgram

DIRECTORY = Path("/run/kmemwatch")
"""Empty after a reboot: the files hold addresses of one boot."""

_MAGIC = b"kmemwatch start 2"
"""Files of format 1 could hold a start that was incomplete because of a shortage."""
_MAX_BYTES = 4 << 20
_START = "start"
_NEW = ".new"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_HOST_FILES = (
    _BOOT_ID,
    "/proc/sys/kernel/kptr_restrict",
    "/proc/sys/kernel/perf_event_paranoid",
    "/sys/kernel/security/lockdown",
    "/sys/devices/system/cpu/online",
)
"""They say which kernel it is, and what it lets kmemwatch see and load."""
_EVENTS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
_SOURCES = tuple(
    Path(importlib.import_module(package).__path__[0])
    for package in ("kmemwatch.bpf", "kmemwatch.kernel", "kmemwatch.maps", "kmemwatch.attach")
)
"""What is compiled, and what decides how."""

_LOAD_64 = 0x18
"""``BPF_LD | BPF_IMM | BPF_DW``: takes two instructions; its source register says what the number is."""
_MAP_FD = 1
"""``BPF_PSEUDO_MAP_FD``."""
_INSTRUCTION = struct.Struct("=BBhi")
_TRACING = ("fentry", "fexit")
_UNIX_MODULE = Path("/sys/module/unix/initstate")
"""Exists only when AF_UNIX is a module. Its cache, which `discover.first_cache` begins at, is then gone when the module
is unloaded."""


# The data


class Started(NamedTuple):
    """What the child sends to its parent."""

    manifest: Mapping[str, Any]
    descriptors: Sequence[int]


def image_of(loaded: Loaded, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The start as data for JSON; None when another start might find more than this one did.

    Raises OSError when the kernel does not describe its maps, ValueError and KeyError for unknown instructions.
    """
    found = loaded.manifest
    if found.facts.shortage or found.learn_error or loaded.may_do_better:
        return None
    if _UNIX_MODULE.exists():
        return None
    places = {handle.fd: index for index, handle in enumerate(found.maps)}
    return {
        "maps": [bpf_calls.map_definition(handle.fd) for handle in found.maps],
        "programs": list(_programs(loaded.programs, places)),
        "manifest": manifest,
    }


def map_references(code: bytes) -> Iterator[tuple[int, int]]:
    """(offset in bytes, descriptor) of every instruction that refers to a map.

    Raises ValueError for other references, which the compiler never makes from bpf/.
    """
    offset = 0
    while offset < len(code):
        opcode, registers, _, value = _INSTRUCTION.unpack_from(code, offset)
        source = registers >> 4 if sys.byteorder == "little" else registers & 15
        if opcode == _LOAD_64 and source == _MAP_FD:
            yield offset, value
        elif opcode == _LOAD_64 and source:
            raise ValueError(f"instruction {offset // 8}: a reference of kind {source}")
        offset += 16 if opcode == _LOAD_64 else 8


def translate(code: bytes, values: Mapping[int, int]) -> bytes:
    """The same instructions with other descriptors. Raises KeyError when `values` lacks one."""
    translated = bytearray(code)
    for offset, value in map_references(code):
        struct.pack_into("=i", translated, offset + 4, values[value])
    return bytes(translated)


def _programs(programs: Sequence[LoadedProgram], places: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    ids = _function_ids([program.target for program in programs if program.kind in _TRACING])
    for program in programs:
        yield {
            "kind": program.kind,
            "target": program.target,
            "name": bpf_calls.program_info(program.fd).name,
            "function_id": ids[program.target] if program.kind in _TRACING else 0,
            # The index of a map replaces its descriptor.
            "code": binascii.b2a_base64(translate(program.code, places), newline=False).decode(),
        }


def _function_ids(functions: Sequence[str]) -> dict[str, int]:
    if not functions:
        return {}
    from kmemwatch.kernel.btf import Btf

    with Btf() as btf:
        return {name: btf.function_id(name) or 0 for name in functions}


def start_from(image: Mapping[str, Any]) -> Started:
    """Make the maps, load the programs, attach them. Raises OSError when the kernel rejects one, and other errors for a
    damaged image; nothing stays attached then."""
    manifest = image["manifest"]
    hierarchy = manifest["facts"]["hierarchy"]
    if hierarchy is not None:
        # As on a cold start: the kernel charges maps to the memcg of the process that makes them, but not to the root.
        cgroupfs.join_root(cgroupfs.Hierarchy(**hierarchy))
    made: list[int] = []
    try:
        maps = [_keep(made, bpf_calls.create_map(*definition)) for definition in image["maps"]]
        _set_page_base(manifest, maps)
        programs = [_keep(made, _load_program(program, maps)) for program in image["programs"]]
        links = [
            _keep(made, bpf_calls.attach(fd, program["kind"], program["target"]))
            for program, fd in zip(image["programs"], programs, strict=True)
            if program["kind"] != "test_run"
        ]
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return Started(manifest, [*programs, *maps, *links])


def _keep(made: list[int], fd: int) -> int:
    made.append(fd)
    return fd


def _set_page_base(manifest: Mapping[str, Any], maps: Sequence[int]) -> None:
    """Programs find objects through their pages, so this comes before the first one is attached."""
    base = manifest["page_base"]
    for handle, fd in zip(manifest["maps"], maps, strict=True):
        if handle["name"] == "page_base" and base:
            value = base.to_bytes(8, sys.byteorder)
            failed = libbpf.library().bpf_map_update_elem(fd, bytes(4), value, 0)
            if failed < 0:
                raise OSError(-failed, "page_base")


def _load_program(program: Mapping[str, Any], maps: Sequence[int]) -> int:
    kind, attach_type = bpf_calls.LOADS[program["kind"]]
    code = translate(binascii.a2b_base64(program["code"]), dict(enumerate(maps)))
    return bpf_calls.load_program(kind, program["name"], code, attach_type, program["function_id"])


# The files


def key(without: tuple[str, ...], sources: tuple[Path, ...] = _SOURCES, latency: bool = False) -> dict[str, Any]:
    """Everything that an image depends on, for JSON: a start may use an image whose key is equal to its own.

    Raises OSError, ShortageError or ValueError when the key cannot be found out.
    """
    hierarchy = cgroupfs.find_memory()
    host = {path: _text(Path(path)) for path in _HOST_FILES}
    if host[_BOOT_ID] is None:
        raise ValueError(f"{_BOOT_ID}: cannot be read, so an image could outlive this boot")
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
    """(path, [size, time of change in ns]) of each source file below `directory`."""
    for top, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            if name.endswith((".c", ".h", ".py")):
                path = os.path.join(top, name)  # noqa: PTH118 - a hundred files, and time matters
                status = os.stat(path)  # noqa: PTH116
                yield path, [status.st_size, status.st_mtime_ns]


def _raise(error: OSError) -> None:
    raise error


def load(directory: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The image that was kept for the key `wanted`; None when there is none. Raises OSError or ValueError for a file
    that is damaged or cannot be trusted."""
    top = open_directory(directory)
    try:
        fd = os.open(_name(wanted), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top)
    finally:
        os.close(top)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        # A file with no name is fine: another start has just replaced it.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > _MAX_BYTES:
            raise PermissionError(f"{directory}: the file is not one that kmemwatch wrote")
        check_ours(directory, status, 0o600)
        magic, crc, body = file.read().split(b"\n", 2)
    if magic != _MAGIC or int(crc, 16) != zlib.crc32(body):
        raise ValueError(f"{directory}: the file is damaged")
    kept = json.loads(body)
    image: dict[str, Any] | None = kept["image"] if kept["key"] == wanted else None
    return image


def save(directory: Path, made_with: dict[str, Any], image: dict[str, Any]) -> None:
    """Keep `image` for starts with the key `made_with`, replacing that of the same ``--without`` and ``--latency``.

    Raises OSError where that cannot be done safely.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    body = json.dumps({"key": made_with, "image": image}).encode()
    name = _name(made_with)
    # Each of two processes that write at the same time has a file of its own; the last rename wins.
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
            with contextlib.suppress(OSError):  # it may not have been made
                os.unlink(new, dir_fd=top)
            raise
    finally:
        os.close(top)


def _remove_unfinished(top: int) -> None:
    """Remove the files of processes that ended while they were writing."""
    for name in os.listdir(top):
        if name.startswith(_START) and name.endswith(_NEW) and not _is_being_written(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=top)


def _is_being_written(name: str) -> bool:
    pid = name.removesuffix(_NEW).rpartition(".")[2]
    return pid.isdigit() and int(pid) != os.getpid() and os.path.exists(f"/proc/{pid}")  # noqa: PTH110


def _name(key: dict[str, Any]) -> str:
    """One file for each ``--without``, with and without ``--latency``. Raises ValueError for words that are no kind,
    as they could name another directory."""
    without = key["without"]
    if not all(word.isidentifier() for word in without):
        raise ValueError(f"no such kind: {without}")
    return "-without-".join([f"{_START}-latency" if key["latency"] else _START, *without])


def open_directory(directory: Path) -> int:
    """A descriptor. Raises OSError when another user has access to the directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_ours(directory, os.fstat(fd), 0o700)
    except OSError:
        os.close(fd)
        raise
    return fd


def check_ours(path: Path, status: os.stat_result, mode: int) -> None:
    """Raise PermissionError for a file or directory that another user owns or may use; the message names `path`."""
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != mode:
        raise PermissionError(f"{path}: not ours alone")
