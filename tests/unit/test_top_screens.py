# SPDX-License-Identifier: GPL-2.0-only
"""Screens of `top` compared with stored pictures.

After a wanted change look at the report that the failing test names, then store the new pictures:
``.venv/bin/python -m pytest tests/unit/test_top_screens.py --snapshot-update``
"""

from __future__ import annotations

from typing import Protocol

import pytest

from kmemwatch.top.poller import Ended
from kmemwatch.top.topapp import TopApp
from tests.unit import fakes
from tests.unit.screens import app_of, refreshed

# Another version of Textual draws differently; setup.cfg pins this one for development.
pytestmark = pytest.mark.needs("Textual 8.2.8")


class Compare(Protocol):
    def __call__(
        self, app: TopApp, *, press: tuple[str, ...] = (), terminal_size: tuple[int, int] = (80, 24)
    ) -> bool: ...


@pytest.mark.parametrize("view", ["cgroups", "caches", "zombies", "ids", "recharges"])
def test_view(snap_compare: Compare, view: str) -> None:
    assert snap_compare(app_of(refreshed(fakes.sample), view=view))


@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("view", ["caches", "ids", "recharges"])
def test_view_of_a_patched_kernel(snap_compare: Compare, view: str, width: int) -> None:
    assert snap_compare(app_of(refreshed(fakes.patched), view=view), terminal_size=(width, 12))


def test_ids_of_a_kernel_whose_dead_keep_them(snap_compare: Compare) -> None:
    assert snap_compare(app_of(refreshed(fakes.private), view="ids"), terminal_size=(80, 12))


@pytest.mark.parametrize(
    "keys", [("i", "down", "enter"), ("z", "down", "enter"), ("r", "enter")], ids=["id", "dying", "recharge"]
)
def test_details_on_a_patched_kernel(snap_compare: Compare, keys: tuple[str, ...]) -> None:
    assert snap_compare(app_of(refreshed(fakes.patched)), press=keys)


@pytest.mark.parametrize("view", ["cgroups", "caches", "zombies"])
def test_wide(snap_compare: Compare, view: str) -> None:
    assert snap_compare(app_of(refreshed(fakes.sample), view=view), terminal_size=(140, 40))


@pytest.mark.parametrize("size", [(50, 12), (30, 6)])
def test_narrow(snap_compare: Compare, size: tuple[int, int]) -> None:
    assert snap_compare(app_of(refreshed(fakes.sample)), terminal_size=size)


@pytest.mark.parametrize("view", ["cgroups", "zombies"])
def test_unknown_is_a_question_mark(snap_compare: Compare, view: str) -> None:
    assert snap_compare(app_of(refreshed(fakes.unknown), view=view), terminal_size=(80, 12))


def test_lost_events_are_red(snap_compare: Compare) -> None:
    assert snap_compare(app_of(refreshed(fakes.lossy)), terminal_size=(80, 12))


@pytest.mark.parametrize("view", ["cgroups", "caches", "zombies"])
def test_empty(snap_compare: Compare, view: str) -> None:
    assert snap_compare(app_of(refreshed(fakes.empty), view=view), terminal_size=(80, 12))


def test_odd_names(snap_compare: Compare) -> None:
    assert snap_compare(app_of(refreshed(fakes.odd)), terminal_size=(100, 16))


def test_help(snap_compare: Compare) -> None:
    assert snap_compare(app_of(refreshed(fakes.sample)), press=("question_mark",))


@pytest.mark.parametrize("typed", ["cri", "cri["])
def test_filter(snap_compare: Compare, typed: str) -> None:
    assert snap_compare(app_of(refreshed(fakes.sample)), press=("slash", *typed))


@pytest.mark.parametrize("keys", [("enter",), ("z", "down", "enter"), ("c", "enter")], ids=["cgroup", "dying", "cache"])
def test_details(snap_compare: Compare, keys: tuple[str, ...]) -> None:
    assert snap_compare(app_of(refreshed(fakes.sample)), press=keys)


def test_attaching(snap_compare: Compare) -> None:
    assert snap_compare(app_of(opening="attaching to the kernel…"), terminal_size=(80, 12))


def test_end_of_a_recording(snap_compare: Compare) -> None:
    app = app_of(refreshed(fakes.sample), Ended("demo.kmw: cut off at record 7; everything before it was shown"))
    assert snap_compare(app, press=("space",), terminal_size=(80, 14))
