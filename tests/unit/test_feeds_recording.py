# SPDX-License-Identifier: GPL-2.0-only
"""Recordings: what was written is read; a cut loses the end only; any other damage is found and named."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kmemwatch.errors import UsageError
from kmemwatch.feeds.recording import EVENT, HEADER, SNAPSHOT, RecordingReader, RecordingWriter
from kmemwatch.model import Event, Host, Snapshot
from tests.unit import fakes, strategies

Item = Snapshot | Event
SUFFIXES = (".kmw", ".kmw.gz")

SMALL = replace(fakes.empty(), host=Host("db1", "6.1", "x86_64", "boot-1"))
EVENTS = (Event(5, "online", 7, "/a\\xff\\n", 1, "sh"), Event(6, "offline", 7))


def small(seconds: int) -> Snapshot:
    return replace(SMALL, monotonic_ns=seconds * 10**9, taken_at_ns=seconds * 10**9, duration_s=float(seconds))


def write(path: Path, items: list[Item]) -> None:
    with RecordingWriter(str(path)) as writer:
        writer.begin(next(item for item in items if isinstance(item, Snapshot)))
        for item in items:
            if isinstance(item, Snapshot):
                writer.write_snapshot(item)
            else:
                writer.write_event(item)


def read(path: Path) -> tuple[list[Item], str | None]:
    items: list[Item] = []
    with RecordingReader(str(path)) as reader:
        while record := reader.next():
            if record.type == SNAPSHOT:
                items.append(reader.parse(record.snapshot))
            elif record.type == EVENT:
                items.append(reader.parse(record.event))
        return items, reader.cut


REFUSED = "refused"


def read_or_refuse(path: Path) -> tuple[list[Item], str | None]:
    """`read`, or REFUSED for a file that is not read, which must be told in one line with the place."""
    try:
        return read(path)
    except UsageError as exc:
        message = str(exc)
    assert message.startswith(f"{path}:")
    assert "\n" not in message
    return [], REFUSED


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"test{request.param}"


ITEMS: list[Item] = [small(1), EVENTS[0], EVENTS[1], small(2)]


def test_what_was_written_is_read(path: Path) -> None:
    items: list[Item] = [fakes.sample(0), *EVENTS, fakes.sample(5), fakes.odd(10), fakes.patched(15)]
    write(path, [replace(i, host=SMALL.host) if isinstance(i, Snapshot) else i for i in items])
    got, cut = read(path)
    assert got == [replace(i, host=SMALL.host) if isinstance(i, Snapshot) else i for i in items]
    assert cut is None


@given(st.lists(strategies.snapshots | strategies.events, max_size=4), strategies.snapshots)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_can_be_recorded(tmp_path: Path, items: list[Item], first: Snapshot) -> None:
    path = tmp_path / "any.kmw"
    path.unlink(missing_ok=True)
    write(path, [first, *items])
    assert read(path) == ([first, *items], None)


def test_jq_and_zcat_can_read_it(path: Path) -> None:
    write(path, ITEMS)
    text = path.read_bytes()
    text = gzip.decompress(text) if path.suffix == ".gz" else text
    lines = [json.loads(line) for line in text.decode("utf-8").splitlines()]
    assert [line["type"] for line in lines] == [HEADER, SNAPSHOT, EVENT, EVENT, SNAPSHOT]
    assert [line["seq"] for line in lines] == list(range(5))
    assert {"format": "kmemwatch-recording", "version": 1, "kmemwatch": lines[0]["kmemwatch"]}.items() <= lines[
        0
    ].items()
    assert lines[0]["host"]["boot_id"] == "boot-1"


def test_a_cut_at_any_byte_gives_a_prefix(path: Path, tmp_path: Path) -> None:
    write(path, ITEMS)
    whole = path.read_bytes()
    cut_path = tmp_path / f"cut{path.suffix}"
    longest = 0
    for size in range(len(whole)):
        cut_path.write_bytes(whole[:size])
        items, notice = read_or_refuse(cut_path)
        if notice == REFUSED:
            assert longest == 0, "only a file without a whole first line may be refused"
            continue
        assert items == ITEMS[: len(items)]
        assert len(items) >= longest
        longest = len(items)
        if notice is None:  # between two records: nothing is missing that anybody could know of
            assert size in ends_of_records(whole, path.suffix == ".gz")
        else:
            assert notice.startswith(f"{cut_path}:")
            assert "cut off" in notice
    assert longest >= len(ITEMS) - 1


def ends_of_records(data: bytes, packed: bool) -> set[int]:
    mark = b"\x1f\x8b\x08\x00" if packed else b"\n"
    found, at = set(), data.find(mark)
    while at >= 0:
        found.add(at if packed else at + 1)
        at = data.find(mark, at + 1)
    return found


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_is_found(path: Path, tmp_path: Path, flip: int) -> None:
    write(path, ITEMS)
    whole = path.read_bytes()
    bad_path = tmp_path / f"bad{path.suffix}"
    for at in range(len(whole)):
        bad = bytearray(whole)
        bad[at] ^= flip
        bad_path.write_bytes(bad)
        items, notice = read_or_refuse(bad_path)
        # gzip's own header has bits that mean nothing for the data; nothing may be lost in silence.
        assert items == ITEMS[: len(items)]
        assert items == ITEMS or notice is not None, f"byte {at}"


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_garbage_never_crashes(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"good{suffix}"
    if not path.exists():
        write(path, ITEMS)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(at, len(whole)))
    bad_path = tmp_path / f"bad{suffix}"
    bad_path.write_bytes(whole[:at] + data.draw(st.binary(max_size=40)) + whole[end:])
    items, _ = read_or_refuse(bad_path)
    assert items == ITEMS[: len(items)]


def test_a_missing_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw"
    write(path, ITEMS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(UsageError, match=r"x\.kmw:3: expected record 2, found 3"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\n", ":1: not a kmemwatch recording"),
        (b"\x7fELF\x00\x01\n\n", ":1: not a kmemwatch recording"),
        (b'{"schema":1}\n', ":1: not a kmemwatch recording"),
        (b'{"format":"kmemwatch-recording","version":2,"what":"ever"}\n', ":1: recording of format 2"),
        (b'{"format":"kmemwatch-recording","version":1,"seq":0}\n', ":1: damaged record"),
        (b'{"format":"kmemwatch-rec', ":1: not a kmemwatch recording, or cut off"),
        (gzip.compress(b"hello\n", mtime=0), ":1: not a kmemwatch recording"),
        (gzip.compress(b"", mtime=0), ":1: not a kmemwatch recording"),
        (b"\x1f\x8b\x08\x00garbage that is not deflate", ":1: damaged record"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.kmw"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: " if message == "empty file" else f"{path}:1: ")
    assert message in str(caught.value)
    assert caught.value.hint
    if content:
        with pytest.raises(UsageError):
            RecordingWriter(str(path))
        assert path.read_bytes() == content


def test_missing_files_directories_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        RecordingReader(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"cannot open|not a regular file"):
        RecordingReader(str(tmp_path))
    with pytest.raises(UsageError, match="cannot open for writing: No such file or directory"):
        RecordingWriter(str(tmp_path / "none/x.kmw"))
    with pytest.raises(UsageError, match="Is a directory"):
        RecordingWriter(str(tmp_path))
    with pytest.raises(UsageError, match="not a regular file"):
        RecordingWriter("/dev/null")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for open_it in (RecordingReader, RecordingWriter):
        with pytest.raises(UsageError, match="not a regular file"):
            open_it(str(pipe))
    with pytest.raises(UsageError, match="/proc/self/mem: cannot read: Input/output error"):
        RecordingReader("/proc/self/mem")
    with pytest.raises(UsageError, match="File name too long"):
        RecordingWriter(str(tmp_path / ("x" * 300)))
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_to_nothing_is_recorded_to(tmp_path: Path) -> None:
    link, path = tmp_path / "link.kmw", tmp_path / "x.kmw"
    link.symlink_to(path)
    write(link, ITEMS)
    assert read(path) == (ITEMS, None)


def test_two_recorders_that_began_before_there_was_a_file(path: Path) -> None:
    with RecordingWriter(str(path)) as first, RecordingWriter(str(path)) as second:
        first.begin(small(1))
        with pytest.raises(UsageError, match="somebody has made this file meanwhile"):
            second.begin(small(2))
    assert read(path) == ([], None)


def test_appending_continues(path: Path) -> None:
    write(path, ITEMS)
    write(path, [small(9), EVENTS[0]])
    assert read(path) == ([*ITEMS, small(9), EVENTS[0]], None)


def test_the_content_decides_about_gzip_when_appending(tmp_path: Path) -> None:
    packed, plain = tmp_path / "a.gz", tmp_path / "b"
    write(packed, ITEMS)
    packed = packed.rename(tmp_path / "a")
    write(plain, ITEMS)
    plain = plain.rename(tmp_path / "b.gz")
    for path in (packed, plain):
        write(path, [small(9)])
        assert read(path) == ([*ITEMS, small(9)], None)


def test_a_file_that_gzip_made_is_read_and_appended_to(tmp_path: Path) -> None:
    plain = tmp_path / "a.kmw"
    write(plain, ITEMS)
    path = tmp_path / "a.kmw.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    write(path, [small(9)])
    assert read(path) == ([*ITEMS, small(9)], None)


def test_appending_to_a_cut_file_drops_the_unfinished_record_and_says_so(path: Path) -> None:
    write(path, ITEMS)
    path.write_bytes(path.read_bytes()[:-30])
    with RecordingWriter(str(path)) as writer:
        assert writer.notice is not None
        assert "unfinished record" in writer.notice
        writer.begin(small(9))
        writer.write_snapshot(small(9))
    assert read(path) == ([*ITEMS[:-1], small(9)], None)


def test_appending_keeps_a_record_that_lacks_only_the_end_of_its_gzip_member(tmp_path: Path) -> None:
    path = tmp_path / "x.kmw.gz"
    write(path, ITEMS)
    path.write_bytes(path.read_bytes()[:-7])
    write(path, [small(9)])
    assert read(path) == ([*ITEMS, small(9)], None)


def forms(tmp_path: Path) -> dict[str, bytes]:
    """One recording in every form in which its bytes may come; the last ends in mid-line though gzip has its end."""
    plain, packed = tmp_path / "form.kmw", tmp_path / "form.kmw.gz"
    write(plain, ITEMS)
    write(packed, ITEMS)
    text = plain.read_bytes()
    half = len(text) // 2
    return {
        "plain": text,
        "member a line": packed.read_bytes(),
        "one member": gzip.compress(text),
        "members that end in mid-line": gzip.compress(text[:half]) + gzip.compress(text[half:]),
    }


@pytest.mark.parametrize("form", ["plain", "member a line", "one member", "members that end in mid-line"])
def test_after_a_cut_at_any_byte_what_is_appended_can_be_read(tmp_path: Path, form: str) -> None:
    whole = forms(tmp_path)[form]
    for size in range(len(whole) + 1):
        _append_to_cut(tmp_path / "cut.kmw.gz", whole[:size])


def test_after_a_text_that_ends_in_mid_line_within_whole_gzip_what_is_appended_can_be_read(tmp_path: Path) -> None:
    text = forms(tmp_path)["plain"]
    for size in range(1, len(text), 7):
        _append_to_cut(tmp_path / "cut.kmw.gz", gzip.compress(text[:size]))


def _append_to_cut(path: Path, content: bytes) -> None:
    """All that could be read before and all that is new can be read; or the file is refused, and stays as it is."""
    path.write_bytes(content)
    before, notice = read_or_refuse(path)
    if notice == REFUSED and content:
        with pytest.raises(UsageError):
            write(path, [small(9)])
        assert path.read_bytes() == content
        return
    write(path, [small(9), EVENTS[0]])
    assert read(path) == ([*before, small(9), EVENTS[0]], None)
    assert sorted(found.name for found in path.parent.iterdir() if found.name.startswith(".")) == []


@pytest.mark.parametrize("form", ["plain", "member a line", "one member", "members that end in mid-line"])
def test_a_damaged_file_is_refused_and_stays_as_it_is(tmp_path: Path, form: str) -> None:
    whole, path = forms(tmp_path)[form], tmp_path / "bad.kmw.gz"
    middle = len(whole) // 2
    for at in range(middle - 40, middle + 40):
        bad = bytearray(whole)
        bad[at] ^= 0x10
        path.write_bytes(bad)
        before, notice = read_or_refuse(path)
        if notice == REFUSED:
            with pytest.raises(UsageError):
                RecordingWriter(str(path))
            assert path.read_bytes() == bad
        else:  # bits of gzip's own header; or its end was not found, which looks like a cut
            write(path, [small(9)])
            assert read(path) == ([*before, small(9)], None)


@pytest.mark.parametrize("form", ["plain", "member a line", "one member", "members that end in mid-line"])
@pytest.mark.parametrize("dropped", [0, 1, 9, 30])
def test_a_refused_file_stays_as_it_is(tmp_path: Path, form: str, dropped: int) -> None:
    path = tmp_path / "x.kmw.gz"
    path.write_bytes(forms(tmp_path)[form][: -dropped or None])
    os.utime(path, ns=(5, 5))
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    for change in ({"hostname": "db2"}, {"boot_id": "boot-2"}):
        with RecordingWriter(str(path)) as writer, pytest.raises(UsageError):
            writer.begin(replace(small(9), host=replace(SMALL.host, **change)))
    with RecordingWriter(str(path)):
        pass  # nothing came to be recorded, for want of privileges, for example
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before


@pytest.mark.parametrize("form", ["plain", "member a line", "members that end in mid-line"])
def test_zeros_at_the_end_are_a_cut(tmp_path: Path, form: str) -> None:
    """What a file system may leave after a power cut."""
    whole, path = forms(tmp_path)[form], tmp_path / "zeros.kmw"
    for size in (*range(len(whole) - 300, len(whole), 7), len(whole)):
        path.write_bytes(whole[:size] + bytes(5000))
        items, notice = read(path)
        assert items == ITEMS[: len(items)]
        assert notice is not None
        _append_to_cut(path, path.read_bytes())
    assert items == ITEMS


@pytest.mark.parametrize("whole_file", [False, True])
def test_records_of_many_pieces_are_told_from_their_cut_end(tmp_path: Path, whole_file: bool) -> None:
    """zlib gives what is longer than one piece in several, and what is shorter together with what follows."""
    path, large = tmp_path / "large.kmw.gz", fakes.sample()
    large = replace(large, pairs=tuple(replace(large.pairs[0], cgroup_id=i * 7919) for i in range(10_000)))
    items: list[Item] = []
    for seconds in range(1, 5):
        items += [replace(large, monotonic_ns=seconds), Event(seconds, "online", seconds), Event(seconds, "offline")]
    write(path, items)
    whole = gzip.compress(gzip.decompress(path.read_bytes())) if whole_file else path.read_bytes()
    assert len(whole) > 1 << 17
    path.write_bytes(whole)
    assert read(path) == (items, None)
    for dropped in (1, 9, 20, 70_000):
        _append_to_cut_of(path, whole[:-dropped], large)


def _append_to_cut_of(path: Path, content: bytes, large: Snapshot) -> None:
    path.write_bytes(content)
    before, notice = read(path)
    assert notice is not None
    assert before
    new: list[Item] = [replace(large, monotonic_ns=9)]
    write(path, new)
    assert read(path) == (before + new, None)


def test_packing_again_keeps_mode_and_owner_and_goes_through_links(tmp_path: Path) -> None:
    path, link = tmp_path / "x.kmw.gz", tmp_path / "link.kmw.gz"
    path.write_bytes(forms(tmp_path)["one member"][:-8])
    path.chmod(0o640)
    link.symlink_to(path)
    write(link, [small(9)])
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert read(path) == ([*ITEMS, small(9)], None)


def test_a_recorder_that_is_killed_while_it_appends_can_be_followed_by_another(path: Path) -> None:
    write(path, ITEMS)
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.unit.test_feeds_recording import *\n"
        "writer = RecordingWriter(sys.argv[1]); writer.begin(small(5)); writer.write_snapshot(small(5))\n"
        "real = os.write\n"
        "os.write = lambda fd, data: (real(fd, data[: len(data) // 2]), os.kill(os.getpid(), signal.SIGKILL))\n"
        "writer.write_snapshot(small(6))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path, Path(__file__).parents[2]], check=False)
    assert done.returncode == -9
    items, notice = read(path)
    assert items == [*ITEMS, small(5)]
    assert notice is not None
    write(path, [small(9)])
    assert read(path) == ([*ITEMS, small(5), small(9)], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hostname": "db2"}, "another host, db1"), ({"boot_id": "boot-2"}, "before this host was booted")],
)
def test_another_host_or_boot_is_not_appended(path: Path, change: dict[str, Any], message: str) -> None:
    write(path, ITEMS)
    before = path.read_bytes()
    with RecordingWriter(str(path)) as writer, pytest.raises(UsageError, match=message):
        writer.begin(replace(small(9), host=replace(SMALL.host, **change)))
    assert path.read_bytes() == before


def test_two_recorders_do_not_share_a_file(path: Path) -> None:
    with RecordingWriter(str(path)) as writer:
        writer.begin(small(1))
        with pytest.raises(UsageError, match="another kmemwatch is recording"):
            RecordingWriter(str(path))


def test_nothing_recorded_leaves_no_file(path: Path) -> None:
    with RecordingWriter(str(path)):
        assert not path.exists()
    assert not path.exists()
    path.touch()
    with RecordingWriter(str(path)):
        pass
    assert path.exists(), "it was there before"


FULL_DISK = """
import resource, sys; sys.path.insert(0, sys.argv[2])
from kmemwatch.errors import KmemwatchError
from tests.unit.test_feeds_recording import *
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
written = 0
with RecordingWriter(sys.argv[1]) as writer:
    writer.begin(small(0))
    try:
        while written < 100:
            writer.write_snapshot(small(written))
            written += 1
    except KmemwatchError as error:
        print(written, error.exit_code, error)
"""


def test_a_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    """In a process of its own: the limit on the size of files would end a test run that writes to a file as well."""
    path, limit = tmp_path / "x.kmw", 5000
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, Path(__file__).parents[2], str(limit)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    written, exit_code, message = done.stdout.split(" ", 2)
    assert (exit_code, message) == ("1", f"{path}: cannot write: File too large\n")
    assert read(path) == ([small(seconds) for seconds in range(int(written))], None)
    assert 0 < int(written) < 100
    assert path.stat().st_size <= limit


def test_a_killed_recorder_leaves_whole_records(path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from tests.unit.test_feeds_recording import *\n"
        "w = RecordingWriter(sys.argv[1]); w.begin(small(0)); w.write_snapshot(small(0)); w.write_event(EVENTS[0])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path, Path(__file__).parents[2]], check=False)
    assert done.returncode == -9
    assert read(path) == ([small(0), EVENTS[0]], None)


def test_reading_does_not_hold_the_file_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "zeros.kmw"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # a hole
    code = (
        "import sys, resource; from kmemwatch.feeds.recording import RecordingReader\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 29,) * 2)\n"
        "try: RecordingReader(sys.argv[1]).next()\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.startswith("UsageError")


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_new_recording_is_its_owners_alone_whatever_the_umask(tmp_path: Path, suffix: str, umask: int) -> None:
    path = tmp_path / f"x{suffix}"
    before = os.umask(umask)
    try:
        write(path, ITEMS[:1])
        write(path, ITEMS[:1])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644, 0o666])
def test_appending_leaves_the_mode_and_says_who_may_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.kmw"
    for content in (b"", None):
        if content is None:
            write(path, ITEMS[:1])
        else:
            path.write_bytes(content)
        path.chmod(mode)
        if not os.access(path, os.W_OK):
            continue
        with RecordingWriter(str(path)) as writer:
            open_to_others = writer.notice is not None and f"stays open to others, mode {mode:04o}" in writer.notice
            assert open_to_others == bool(mode & 0o077)
            writer.begin(SMALL)
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o600)
