# SPDX-License-Identifier: GPL-2.0-only
"""The secret behind the ids of caches: one for a boot, closed to everybody else, and never a reason not to start."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kmemwatch.attach import secret, warm_start

BOOT = "9b2c6a3e-0000-4000-8000-000000000001"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "kmemwatch"


def test_it_stays_the_same_for_a_boot(directory: Path) -> None:
    first = secret.of_boot(BOOT, directory)
    assert len(first) == 32
    assert secret.of_boot(BOOT, directory) == first
    later = secret.of_boot("another", directory)
    assert later != first
    assert secret.of_boot("another", directory) == later


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_it_is_closed_to_others(directory: Path, umask: int) -> None:
    directory.mkdir(0o700)
    before = os.umask(umask)
    try:
        first = secret.of_boot(BOOT, directory)
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {"cache-ids": 0o600}
    assert secret.of_boot(BOOT, directory) == first


def test_it_is_beside_the_images_of_a_start(directory: Path) -> None:
    warm_start.save(directory, {"without": [], "latency": False}, {"maps": []})
    first = secret.of_boot(BOOT, directory)
    assert secret.of_boot(BOOT, directory) == first
    assert warm_start.load(directory, {"without": [], "latency": False}) == {"maps": []}


def _open_to_others(path: Path) -> None:
    path.chmod(0o640)


def _of_another(path: Path) -> None:
    if os.geteuid():
        pytest.skip("changing the owner takes root")
    os.chown(path, 65534, 65534)


def _linked(path: Path) -> None:
    os.link(path, path.with_name("second"))


def _symbolic(path: Path) -> None:
    path.rename(path.with_name("second"))
    path.symlink_to("second")


def _directory_open(path: Path) -> None:
    path.parent.chmod(0o750)


@pytest.mark.parametrize("spoil", [_open_to_others, _of_another, _linked, _symbolic, _directory_open])
def test_what_is_not_ours_alone_is_not_believed_and_stays(directory: Path, spoil: Callable[[Path], None]) -> None:
    first = secret.of_boot(BOOT, directory)
    path = directory / "cache-ids"
    spoil(path)
    content = path.read_bytes()
    found = {secret.of_boot(BOOT, directory) for _ in range(2)}
    assert first not in found
    assert len(found) == 2, "one for each process"
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"half", b"kmemwatch cache ids 1\n", b"\0" * 10_000])
def test_what_is_damaged_is_made_anew(directory: Path, content: bytes) -> None:
    secret.of_boot(BOOT, directory)
    (directory / "cache-ids").write_bytes(content)
    (directory / "cache-ids.new").write_bytes(b"half")
    assert secret.of_boot(BOOT, directory) == secret.of_boot(BOOT, directory)


def test_every_cut_of_the_file_is_noticed(directory: Path) -> None:
    path = directory / "cache-ids"
    whole = secret.of_boot(BOOT, directory)
    text = path.read_bytes()
    for size in range(len(text)):
        path.write_bytes(text[:size])
        found = secret.of_boot(BOOT, directory)
        assert len(found) == 32
        assert found != whole


def test_where_it_cannot_be_kept_each_start_has_its_own(tmp_path: Path) -> None:
    for place in (tmp_path / "no" / "such", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        assert secret.of_boot(BOOT, place) != secret.of_boot(BOOT, place)
    assert secret.of_boot(None, tmp_path / "new") != secret.of_boot(None, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_who_holds_the_lock_for_ever_keeps_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = secret.of_boot(BOOT, directory)
    monkeypatch.setattr(secret, "_LOCK_S", 0.05)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert secret.of_boot(BOOT, directory) != first
    finally:
        os.close(fd)
    assert secret.of_boot(BOOT, directory) == first


def test_of_many_that_start_at_once_all_have_the_same(directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kmemwatch.attach import secret;"
        "sys.stdin.read(); print(secret.of_boot(sys.argv[1], Path(sys.argv[2])).hex())"
    )
    command = [sys.executable, "-c", code, BOOT, str(directory)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    found = {process.communicate()[0] for process in started}
    assert len(found) == 1
    assert found == {secret.of_boot(BOOT, directory).hex() + "\n"}
