# SPDX-License-Identifier: GPL-2.0-only
"""Starts that are kept: only whole files that no other user can write are used; and references of bytecode to maps."""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.attach import warm_start
from kmemwatch.kernel import cgroupfs

MOV_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0)
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
KEY: dict[str, Any] = {"without": [], "latency": False, "host": {"boot_id": "a"}}
IMAGE = {"maps": [[1, "lost", 4, 8, 5, 0]], "programs": [], "manifest": {"page_base": 2**64 - 4096}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With one image in it."""
    path = tmp_path / "kmemwatch"
    warm_start.save(path, KEY, IMAGE)
    return path


def test_what_is_kept_comes_back_and_is_closed_to_others(directory: Path) -> None:
    assert warm_start.load(directory, KEY) == IMAGE
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()} == {"start": 0o600}


def test_a_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        warm_start.save(tmp_path / "new", KEY, IMAGE)
    finally:
        os.umask(before)
    assert warm_start.load(tmp_path / "new", KEY) == IMAGE


def test_another_key_finds_nothing_and_replaces(directory: Path) -> None:
    other = {**KEY, "host": {"boot_id": "b"}}
    assert warm_start.load(directory, other) is None
    warm_start.save(directory, other, {"maps": []})
    assert warm_start.load(directory, other) == {"maps": []}
    assert warm_start.load(directory, KEY) is None


def test_each_without_has_its_own(directory: Path) -> None:
    other = {**KEY, "without": ["fentry", "raw_tp"]}
    warm_start.save(directory, other, {"maps": []})
    assert warm_start.load(directory, other) == {"maps": []}
    assert warm_start.load(directory, KEY) == IMAGE


def test_a_writer_that_was_killed_is_in_nobodys_way(directory: Path) -> None:
    (directory / "start.new").write_bytes(b"half")
    warm_start.save(directory, KEY, {"maps": []})
    assert warm_start.load(directory, KEY) == {"maps": []}
    assert [entry.name for entry in directory.iterdir()] == ["start"]


def replaced_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)


SPOILED: dict[str, Callable[[Path], object]] = {
    "readable by others": lambda path: path.chmod(0o644),
    "writable by its group": lambda path: path.chmod(0o620),
    "set-user-ID": lambda path: path.chmod(0o4600),
    "a symbolic link": replaced_by_link,
    "a second name": lambda path: path.with_name("second").hardlink_to(path),
    "a pipe": replaced_by_pipe,
    "gone": Path.unlink,
    "empty": cut(0),
    "cut in the head": cut(10),
    "cut after the head": cut(40),
    "cut in the middle": cut(100),
    "one bit": flipped,
    "another format": lambda path: path.write_bytes(b"kmemwatch start 0" + path.read_bytes()[17:]),
    "too long": cut(5 << 20),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_file_that_is_not_as_we_left_it_is_refused_and_replaced(directory: Path, how: str) -> None:
    SPOILED[how](directory / "start")
    with pytest.raises((OSError, ValueError)):
        warm_start.load(directory, KEY)
    warm_start.save(directory, KEY, IMAGE)
    assert warm_start.load(directory, KEY) == IMAGE


@pytest.mark.needs("root")
@pytest.mark.parametrize("which", [".", "start"])
def test_another_owner_is_refused(directory: Path, which: str) -> None:
    os.chown(directory / which, 65534, -1)
    with pytest.raises(PermissionError):
        warm_start.load(directory, KEY)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o1700])
def test_a_directory_that_is_open_is_neither_read_nor_written(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(PermissionError):
        warm_start.load(directory, KEY)
    with pytest.raises(PermissionError):
        warm_start.save(directory, KEY, IMAGE)


def test_a_link_to_a_directory_is_neither_read_nor_written(directory: Path) -> None:
    link = directory.with_name("link")
    link.symlink_to(directory)
    with pytest.raises(OSError, match="link"):
        warm_start.load(link, KEY)
    with pytest.raises(OSError, match="link"):
        warm_start.save(link, KEY, IMAGE)


@pytest.mark.parametrize("word", ["../../etc/passwd", "a/b", "", "."])
def test_a_word_that_leads_elsewhere(directory: Path, word: str) -> None:
    with pytest.raises(ValueError, match="no such kind"):
        warm_start.save(directory, {**KEY, "without": [word]}, IMAGE)


def test_nowhere_to_write_is_an_error_for_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - whatever the file system says
        warm_start.save(tmp_path / "not there" / "kmemwatch", KEY, IMAGE)


# The key


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    path = tmp_path / "sources"
    (path / "include").mkdir(parents=True)
    (path / "alloc.bpf.c").write_text("int a;")
    (path / "include" / "page.h").write_text("#define A")
    return path


def test_the_key_is_the_same_while_nothing_changes(sources: Path) -> None:
    assert warm_start.key(("fentry", "raw_tp"), (sources,)) == warm_start.key(
        ("raw_tp", "fentry", "raw_tp"), (sources,)
    )


@pytest.mark.parametrize("name", ["alloc.bpf.c", "include/page.h"])
def test_the_key_changes_with_each_source(sources: Path, name: str) -> None:
    before = warm_start.key((), (sources,))
    (sources / name).write_text("another length")
    longer = warm_start.key((), (sources,))
    os.utime(sources / name, ns=(1, 1))
    later = warm_start.key((), (sources,))
    (sources / name).unlink()
    keys = [before, longer, later, warm_start.key((), (sources,))]
    assert all(a != b for index, a in enumerate(keys) for b in keys[:index])


def test_the_key_covers_what_is_compiled_and_what_decides() -> None:
    named = {Path(path).name for path in warm_start.key(())["sources"]}
    assert {"alloc.bpf.c", "compat.h", "ptrace.h", "plan.py", "btf.py", "load.py", "discover.py"} <= named


@pytest.mark.parametrize(
    "part", ["version", "without", "latency", "host", "tracefs", "symbols", "capabilities", "hierarchy"]
)
def test_the_key_changes_with_the_host(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = warm_start.key(())
    assert part in before
    changes: dict[str, Callable[[], object]] = {
        "version": lambda: monkeypatch.setattr(warm_start, "__version__", "0"),
        "without": lambda: None,
        "latency": lambda: None,
        "host": lambda: monkeypatch.setattr(warm_start, "_text", lambda path: "another"),
        "tracefs": lambda: monkeypatch.setattr(warm_start, "_EVENTS", ("/dev",)),
        "symbols": lambda: monkeypatch.setattr(warm_start._has_symbols, "__defaults__", (Path(os.devnull),)),
        "capabilities": lambda: monkeypatch.setattr(warm_start, "_capabilities", lambda: "CapEff: 0"),
        "hierarchy": lambda: monkeypatch.setattr(
            cgroupfs, "find_memory", lambda: cgroupfs.Hierarchy(2, 0, "/elsewhere")
        ),
    }
    changes[part]()
    after = warm_start.key(("raw_tp",) if part == "without" else (), latency=part == "latency")
    assert {name for name in before if before[name] != after[name]} >= {part}


def test_a_start_with_latency_is_kept_beside_one_without(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    keys = [warm_start.key((), latency=latency) for latency in (False, True)]
    for key in keys:
        warm_start.save(tmp_path, key, {"latency": key["latency"]})
    assert [warm_start.load(tmp_path, key) for key in keys] == [{"latency": False}, {"latency": True}]


def load_64(value: int, source: int, upper: int = 0) -> bytes:
    """``r1 = value``, two instructions long."""
    registers = 1 | source << 4 if sys.byteorder == "little" else 1 << 4 | source
    return struct.pack("=BBhi", 0x18, registers, 0, value) + struct.pack("=BBhi", 0, 0, 0, upper)


def test_only_maps_are_found() -> None:
    code = MOV_0 + load_64(7, 1) + load_64(8, 0) + load_64(9, 1) + EXIT
    assert list(warm_start.map_references(code)) == [(8, 7), (40, 9)]


def test_the_upper_half_of_a_constant_is_no_instruction() -> None:
    # Its second half looks like the first half of a reference to map 5.
    constant = struct.pack("=BBhi", 0x18, 1, 0, 1) + load_64(5, 1)[:8]
    assert list(warm_start.map_references(constant + EXIT)) == []


def test_translated_there_and_back_nothing_has_changed() -> None:
    code = MOV_0 + load_64(7, 1) + load_64(7, 0) + load_64(9, 1) + load_64(7, 1) + EXIT
    numbered = warm_start.translate(code, {7: 0, 9: 1})
    assert list(warm_start.map_references(numbered)) == [(8, 0), (40, 1), (56, 0)]
    assert numbered != code
    assert warm_start.translate(numbered, {0: 7, 1: 9}) == code


def test_a_descriptor_of_no_map_of_ours() -> None:
    with pytest.raises(KeyError):
        warm_start.translate(load_64(7, 1) + EXIT, {8: 0})


@pytest.mark.parametrize("source", [2, 3, 4, 6])
def test_references_to_anything_but_maps_are_not_understood(source: int) -> None:
    """BPF_PSEUDO_MAP_VALUE, BTF_ID, FUNC, MAP_IDX_VALUE."""
    with pytest.raises(ValueError, match="instruction 1: a reference"):
        warm_start.translate(MOV_0 + load_64(7, source) + EXIT, {7: 0})


def test_a_program_that_ends_in_the_middle_of_an_instruction() -> None:
    with pytest.raises(struct.error):
        warm_start.translate(EXIT + b"\x18\x11", {})
