# SPDX-License-Identifier: GPL-2.0-only
"""The scan for slabs after a daemon has given up the privilege to open /proc/kcore."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemwatch.source import scan
from tests.unit.test_scan import FakeKernel, kernel, new_scan

__all__ = ["kernel"]

ZONES = """Node 0, zone      DMA
  pages free     1
        present  {}
        managed  {}
"""


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "zoneinfo"
    path.write_text(ZONES.format(1000, 900))
    monkeypatch.setattr(scan, "ZONEINFO", path)
    return path


def refuse() -> bytes:
    raise PermissionError(1, "Operation not permitted")


def test_it_goes_on_with_what_it_read_before(kernel: FakeKernel, zones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slabs = new_scan()
    monkeypatch.setattr(scan, "_kcore", refuse)
    kernel.slabs = {(0xC, 5): 3}
    assert slabs.read([5]) == {5: {0xC: 6}}
    zones.write_text(ZONES.format(1000, 800))  # a balloon takes memory, and none is unplugged
    assert slabs.read([5]) == {5: {0xC: 6}}


def test_it_knows_nothing_once_memory_was_plugged(
    kernel: FakeKernel, zones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = new_scan()
    kernel.slabs = {(0xC, 5): 3}
    assert slabs.read([5]) == {5: {0xC: 6}}
    monkeypatch.setattr(scan, "_kcore", refuse)
    zones.write_text(ZONES.format(2000, 1900))
    assert slabs.read([5]) is None
    zones.write_text(ZONES.format(1000, 900))
    assert slabs.read([5]) is None, "what came and went may have been another memory"


def test_where_it_may_it_reads_anew(kernel: FakeKernel, zones: Path) -> None:
    slabs = new_scan()
    kernel.slabs = {(0xC, 5): 3}
    zones.write_text(ZONES.format(2000, 1900))
    assert slabs.read([5]) == {5: {0xC: 6}}
