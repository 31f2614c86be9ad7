# SPDX-License-Identifier: GPL-2.0-only
"""Little that would become much: what it costs to read it has a bound, in memory and in time."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmemwatch.codec import from_builtins, from_json, parse_json, snapshot_to_json
from kmemwatch.errors import UsageError
from kmemwatch.feeds.recording import SNAPSHOT, RecordingReader
from kmemwatch.feeds.recording.format import header_line, snapshot_line
from kmemwatch.model import Snapshot
from tests.unit import fakes

MOST_KIB = 200 << 10
"""What reading a file of less than 1 MB may take, with all of Python."""
MOST_S = 10.0
READ = """
import sys, time; sys.path.insert(0, sys.argv[1])
from kmemwatch.errors import UsageError
from kmemwatch.feeds.recording import RecordingReader
began = time.process_time()
try:
    with RecordingReader(sys.argv[2]) as reader:
        while record := reader.next():
            reader.parse(getattr(record, record.type))
    print("read")
except UsageError as exc:
    print(str(exc)[:300])
print(round(time.process_time() - began, 3))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def reading(path: Path) -> tuple[str, float, int]:
    """(what was said, seconds, KiB at most) of a process that reads the file."""
    done = subprocess.run(
        [sys.executable, "-c", READ, Path(__file__).parents[2], path], capture_output=True, text=True, check=True
    )
    said, seconds, peak = done.stdout.splitlines()
    return said, float(seconds), int(peak)


def line(inside: bytes, seq: int = 0) -> bytes:
    """A record whose check sum is right and whose snapshot is something else."""
    start = b'{"format":"kmemwatch-recording","version":1,' if seq == 0 else b"{"
    body = start + b'"seq":%d,"type":"header","x":[' % seq + inside + b"]"
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def times(part: bytes, size: int) -> bytes:
    return b",".join([part] * (size // (len(part) + 1)))


BOMBS = {
    "members of nothing": lambda: gzip.compress(b"") * 45_000,
    "members of one letter": lambda: gzip.compress(b"x") * 45_000,
    "members of one line": lambda: gzip.compress(line(b"")) + gzip.compress(b"\n") * 40_000,
    "a line of zeros": lambda: zeros(900),
    "zeros behind a record": lambda: gzip.compress(line(b"")) + zeros(900),
    "objects": lambda: gzip.compress(line(times(b"{}", 20_000_000))),
    "arrays": lambda: gzip.compress(line(times(b"[]", 20_000_000))),
    "arrays in arrays": lambda: gzip.compress(line(b"[" * 10_000_000 + b"]" * 10_000_000)),
    "small numbers": lambda: gzip.compress(line(times(b"0", 20_000_000))),
    "numbers": lambda: gzip.compress(line(times(b"1000", 20_000_000))),
    "fractions": lambda: gzip.compress(line(times(b"1e1", 20_000_000))),
    "a long number": lambda: gzip.compress(line(b"9" * 20_000_000)),
    "strings": lambda: gzip.compress(line(times(b'"ab"', 20_000_000))),
    "one string": lambda: gzip.compress(line(b'"' + b"x" * 30_000_000 + b'"')),
    "a wide string": lambda: gzip.compress(line(b'"' + "\U0001f600".encode() + b"x" * 30_000_000 + b'"')),
    "escapes": lambda: gzip.compress(line(b'"' + b'\\"' * 10_000_000 + b'"')),
    "open escapes": lambda: gzip.compress(line(b'"' + b'\\"' * 10_000_000)),
    "keys": lambda: gzip.compress(line(b"{" + b",".join(b'"%x":0' % i for i in range(300_000)) + b"}")),
    "just not too much, again and again": lambda: b"".join(
        gzip.compress(line(times(b"{}", 900_000), seq)) for seq in range(40)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory_and_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.kmw.gz"
    path.write_bytes(BOMBS[name]())
    assert path.stat().st_size < 1_100_000
    said, seconds, peak_kib = reading(path)
    assert peak_kib < MOST_KIB, said
    assert seconds < MOST_S
    assert said == "read" or said.startswith(f"{path}:")


def test_time_grows_with_the_size_of_the_file_only(tmp_path: Path) -> None:
    path = tmp_path / "members.kmw.gz"
    took = []
    for count in (50_000, 400_000):
        path.write_bytes(gzip.compress(b"x") * count)
        took.append(reading(path)[1])
    assert took[1] < 24 * took[0]


def test_the_largest_host_is_read(tmp_path: Path) -> None:
    """65,536 cgroups and as many pairs, in both forms, also with names made to look like much."""
    sample = fakes.sample()
    cgroups = tuple(
        replace(
            sample.cgroups[0],
            id=i,
            path=f"/kubepods/{i * 7919:032x}/{'{[,' * 20}",
            memory_bytes=i * 7919 * 4096 % 10**9,
            kernel_bytes=i * 104_729 * 64 % 10**8,
            slab_bytes=i * 1_299_709 * 8 % 10**7,
        )
        for i in range(65_536)
    )
    pairs = tuple(replace(sample.pairs[0], cgroup_id=i, allocations_total=i * i, frees_total=i) for i in range(65_536))
    large = replace(sample, cgroups=cgroups, pairs=pairs)
    text = header_line(0, large) + snapshot_line(1, large)
    for content in (text, gzip.compress(text, 6)):
        path = tmp_path / "large.kmw"
        path.write_bytes(content)
        with RecordingReader(str(path)) as reader:
            reader.next()
            record = reader.next()
            assert record is not None
            assert record.type == SNAPSHOT
            assert reader.parse(record.snapshot) == large
    body = snapshot_to_json(large)
    assert from_json(Snapshot, body, len(gzip.compress(body, 1))) == large


@pytest.mark.parametrize(
    "number", ["1" + "0" * 4000, "1e999", "-1e999", "1" + "0" * 400, str(2**64), "NaN", "-1", "1.5"]
)
def test_numbers_that_no_counter_holds(number: str) -> None:
    doc = snapshot_to_json(fakes.sample()).decode()
    for key in ("memory_bytes", "monotonic_ns", "duration_s"):
        before, mark, after = doc.partition(f'"{key}":')
        assert mark
        _, rest = after[: after.index(",")], after[after.index(",") :]
        text = f"{before}{mark}{number}{rest}"
        if (key, number) in {("duration_s", "1.5"), ("memory_bytes", "-1")}:
            continue
        with pytest.raises(UsageError):
            from_json(Snapshot, text.encode())


def test_numbers_in_objects_and_arrays() -> None:
    data = fakes.as_dict(fakes.sample())
    data["lost"]["reasons"] = {"ringbuf_full": 10**400}
    with pytest.raises(UsageError, match=r"lost\.reasons\.ringbuf_full"):
        from_builtins(Snapshot, data)


def test_what_is_refused_for_its_size_says_so() -> None:
    with pytest.raises(UsageError, match=r"it would take more than \d+ MiB of memory") as caught:
        parse_json(b"[" + times(b"{}", 20_000_000) + b"]", 1000)
    assert caught.value.hint
