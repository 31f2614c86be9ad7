# SPDX-License-Identifier: GPL-2.0-only
"""What is kept for the next start: only what is ours alone and whole is believed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.attach import store
from kmemwatch.kernel import cgroupfs

KEY: dict[str, Any] = {"without": [], "latency": False, "host": {"boot_id": "a"}}
IMAGE = {"maps": [[1, "lost", 4, 8, 5, 0]], "programs": [], "manifest": {"page_base": 2**64 - 4096}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With one image in it."""
    path = tmp_path / "kmemwatch"
    store.save(path, KEY, IMAGE)
    return path


def test_what_is_kept_comes_back_and_is_closed_to_others(directory: Path) -> None:
    assert store.load(directory, KEY) == IMAGE
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()} == {"start": 0o600}


def test_a_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store.save(tmp_path / "new", KEY, IMAGE)
    finally:
        os.umask(before)
    assert store.load(tmp_path / "new", KEY) == IMAGE


def test_another_key_finds_nothing_and_replaces(directory: Path) -> None:
    other = {**KEY, "host": {"boot_id": "b"}}
    assert store.load(directory, other) is None
    store.save(directory, other, {"maps": []})
    assert store.load(directory, other) == {"maps": []}
    assert store.load(directory, KEY) is None


def test_each_without_has_its_own(directory: Path) -> None:
    other = {**KEY, "without": ["fentry", "raw_tp"]}
    store.save(directory, other, {"maps": []})
    assert store.load(directory, other) == {"maps": []}
    assert store.load(directory, KEY) == IMAGE


def test_a_writer_that_was_killed_is_in_nobodys_way(directory: Path) -> None:
    (directory / "start.new").write_bytes(b"half")
    store.save(directory, KEY, {"maps": []})
    assert store.load(directory, KEY) == {"maps": []}
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
        store.load(directory, KEY)
    store.save(directory, KEY, IMAGE)
    assert store.load(directory, KEY) == IMAGE


@pytest.mark.needs("root")
@pytest.mark.parametrize("which", [".", "start"])
def test_another_owner_is_refused(directory: Path, which: str) -> None:
    os.chown(directory / which, 65534, -1)
    with pytest.raises(PermissionError):
        store.load(directory, KEY)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o1700])
def test_a_directory_that_is_open_is_neither_read_nor_written(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(PermissionError):
        store.load(directory, KEY)
    with pytest.raises(PermissionError):
        store.save(directory, KEY, IMAGE)


def test_a_link_to_a_directory_is_neither_read_nor_written(directory: Path) -> None:
    link = directory.with_name("link")
    link.symlink_to(directory)
    with pytest.raises(OSError, match="link"):
        store.load(link, KEY)
    with pytest.raises(OSError, match="link"):
        store.save(link, KEY, IMAGE)


@pytest.mark.parametrize("word", ["../../etc/passwd", "a/b", "", "."])
def test_a_word_that_leads_elsewhere(directory: Path, word: str) -> None:
    with pytest.raises(ValueError, match="no such kind"):
        store.save(directory, {**KEY, "without": [word]}, IMAGE)


def test_nowhere_to_write_is_an_error_for_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - whatever the file system says
        store.save(tmp_path / "not there" / "kmemwatch", KEY, IMAGE)


# The key


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    path = tmp_path / "sources"
    (path / "include").mkdir(parents=True)
    (path / "alloc.bpf.c").write_text("int a;")
    (path / "include" / "page.h").write_text("#define A")
    return path


def test_the_key_is_the_same_while_nothing_changes(sources: Path) -> None:
    assert store.key(("fentry", "raw_tp"), (sources,)) == store.key(("raw_tp", "fentry", "raw_tp"), (sources,))


@pytest.mark.parametrize("name", ["alloc.bpf.c", "include/page.h"])
def test_the_key_changes_with_each_source(sources: Path, name: str) -> None:
    before = store.key((), (sources,))
    (sources / name).write_text("another length")
    longer = store.key((), (sources,))
    os.utime(sources / name, ns=(1, 1))
    later = store.key((), (sources,))
    (sources / name).unlink()
    keys = [before, longer, later, store.key((), (sources,))]
    assert all(a != b for index, a in enumerate(keys) for b in keys[:index])


def test_the_key_covers_what_is_compiled_and_what_decides() -> None:
    named = {Path(path).name for path in store.key(())["sources"]}
    assert {"alloc.bpf.c", "compat.h", "ptrace.h", "plan.py", "btf.py", "loader.py", "discover.py"} <= named


@pytest.mark.parametrize(
    "part", ["version", "without", "latency", "host", "tracefs", "symbols", "capabilities", "hierarchy"]
)
def test_the_key_changes_with_the_host(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = store.key(())
    assert part in before
    changes: dict[str, Callable[[], object]] = {
        "version": lambda: monkeypatch.setattr(store, "__version__", "0"),
        "without": lambda: None,
        "latency": lambda: None,
        "host": lambda: monkeypatch.setattr(store, "_text", lambda path: "another"),
        "tracefs": lambda: monkeypatch.setattr(store, "_EVENTS", ("/dev",)),
        "symbols": lambda: monkeypatch.setattr(store._has_symbols, "__defaults__", (Path(os.devnull),)),
        "capabilities": lambda: monkeypatch.setattr(store, "_capabilities", lambda: "CapEff: 0"),
        "hierarchy": lambda: monkeypatch.setattr(
            cgroupfs, "find_memory", lambda: cgroupfs.Hierarchy(2, 0, "/elsewhere")
        ),
    }
    changes[part]()
    after = store.key(("raw_tp",) if part == "without" else (), latency=part == "latency")
    assert {name for name in before if before[name] != after[name]} >= {part}


def test_a_start_with_latency_is_kept_beside_one_without(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    keys = [store.key((), latency=latency) for latency in (False, True)]
    for key in keys:
        store.save(tmp_path, key, {"latency": key["latency"]})
    assert [store.load(tmp_path, key) for key in keys] == [{"latency": False}, {"latency": True}]
