# SPDX-License-Identifier: GPL-2.0-only
"""Files of the user's: nothing half-written, nothing read without an end."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.user_files import check_place, read_bounded, replaced, write_whole


def test_what_is_written_takes_the_place_at_once(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text("old")
    path.chmod(0o640)
    with replaced(str(path)) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"w")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report"

    def break_off() -> None:
        with replaced(str(path)) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    for before in (None, "old"):
        if before is not None:
            path.write_text(before)
        with pytest.raises(KeyboardInterrupt):
            break_off()
        assert [found.read_text() for found in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_new_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(str(tmp_path / "new"), b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "report", tmp_path / "link"
    link.symlink_to("report")
    write_whole(str(link), b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    write_whole("/dev/null", b"x")
    assert not Path("/dev/null").is_file()
    with pytest.raises(KmemwatchError, match="/dev/full: cannot write: No space left"):
        write_whole("/dev/full", b"x")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_whole(str(pipe), b"x")
    reader.join(10)
    assert got == [b"x"]


@pytest.mark.parametrize("name", ["none/report", ".", "x" * 300, "file/report"])
def test_places_where_nothing_can_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):  # noqa: PT011 - whichever it is
        check_place(os.path.join(tmp_path, name))  # noqa: PTH118
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_looking_whether_a_place_is_good_writes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    os.utime(old, ns=(5, 5))
    os.utime(tmp_path, ns=(5, 5))
    for path in (old, tmp_path / "new", Path("/dev/null")):
        check_place(str(path))
    assert (old.read_text(), old.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns) == ("old", 5, 5)


def test_a_pipe_is_read_to_its_end_if_that_comes() -> None:
    """What `--password-file <(...)` of a shell is."""
    theirs, ours = os.pipe()
    path = f"/proc/self/fd/{theirs}"

    def fill() -> None:
        time.sleep(0.1)
        os.write(ours, b"12")
        time.sleep(0.1)
        os.write(ours, b"345")
        os.close(ours)

    writer = threading.Thread(target=fill)
    writer.start()
    assert read_bounded(path, 5) == b"12345"
    writer.join()
    os.close(theirs)


def test_a_pipe_that_drips_or_is_silent_ends_with_the_deadline() -> None:
    for drips in (False, True):
        theirs, ours = os.pipe()
        ended = threading.Event()

        def drip(ours: int = ours, ended: threading.Event = ended) -> None:
            while not ended.wait(0.02):
                os.write(ours, b"x")

        writer = threading.Thread(target=drip)
        if drips:
            writer.start()
        began = time.monotonic()
        with pytest.raises(UsageError, match=r"no end of it within 0\.3 s"):
            read_bounded(f"/proc/self/fd/{theirs}", 1000, deadline_s=0.3)
        assert time.monotonic() - began < 2
        ended.set()
        if drips:
            writer.join()
        os.close(ours)
        os.close(theirs)


def test_reading_ends(tmp_path: Path) -> None:
    path, pipe = tmp_path / "file", tmp_path / "pipe"
    path.write_bytes(b"12345")
    os.mkfifo(pipe)
    assert read_bounded(str(path), 5) == b"12345"
    with pytest.raises(UsageError, match=rf"{path}: larger than 4 bytes"):
        read_bounded(str(path), 4)
    assert read_bounded(str(pipe), 5) == b""
    assert read_bounded("/dev/null", 5) == b""
    with pytest.raises(UsageError, match="/dev/zero: larger than 5 bytes"):
        read_bounded("/dev/zero", 5)
    with pytest.raises(IsADirectoryError):
        read_bounded(str(tmp_path), 5)
    with pytest.raises(FileNotFoundError):
        read_bounded(str(tmp_path / "none"), 5)
