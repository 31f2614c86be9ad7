# SPDX-License-Identifier: GPL-2.0-only
"""Recharges, ids and child caches against the kernel's own counters, by fentry and by kprobes at the same time."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import pytest

from kmemwatch.feeds.live import LiveOptions, open_live
from tests.lab.guest.truth import (
    ELSEWHERE,
    FAIL_RECHARGES,
    MAX_SLAB_PAGES,
    Moment,
    Watched,
    at_rest,
    every_used_id,
    grown,
    kernel_counters,
    lost_between,
)
from tests.lab.guest.workers import Worker, do_all, workers
from tests.live.cgroups import OwnCgroup
from tests.live.fixtures import WITHOUT

pytestmark = pytest.mark.needs("root", "bcc", "fentry", "kprobes", "recharges")

P = ParamSpec("P")
TRIES = 3
FENTRY, KPROBE = "fentry", "kprobe"
SIGNALS = ("recharge", "ids", "caches", "lifecycle")
WORKERS = 4
MISSED = frozenset({"skipped_recharge", "recharge_unfollowed"})
"""Kprobes miss calls while another one is handled, and at the return of a call they do not see its object."""
LIVES, KPROBE_LIVES = 131, 53
"""Of each worker; kprobes cost more."""
CHECKS = 200_000
DIRECTORIES = 97
FAILURES = 23
RACERS = 8
MOVERS = 8


@pytest.fixture(scope="module")
def fentry(runner_in_root_cgroup: None, memory_root: Path) -> Iterator[Watched]:
    """Attached in the best way."""
    yield from attach(FENTRY, WITHOUT["best"], memory_root)


@pytest.fixture(scope="module")
def both(fentry: Watched, memory_root: Path) -> Iterator[list[Watched]]:
    """That one, and beside it one that is attached by kprobes."""
    for kprobe in attach(KPROBE, WITHOUT["kprobe"], memory_root):
        yield [fentry, kprobe]


def attach(name: str, without: tuple[str, ...], memory_root: Path) -> Iterator[Watched]:
    watched = Watched(name, open_live(LiveOptions(without)))
    with every_used_id(memory_root):
        attached = {probe.signal: probe.attachment or "" for probe in watched.look().probes}
    for signal in SIGNALS:
        assert attached[signal].startswith((FENTRY, "fexit") if name == FENTRY else (KPROBE, "kretprobe")), attached
    yield watched
    watched.feed.close()


class SomethingLost(Exception):
    """By the best way: an interrupt may hit while a program runs, and then nothing is proved."""


def until_nothing_is_lost(test: Callable[P, None]) -> Callable[P, None]:
    """A test that is run again, TRIES times in all, after SomethingLost."""

    @functools.wraps(test)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TRIES - 1):
            try:
                return test(*args, **kwargs)
            except SomethingLost:
                pass
        return test(*args, **kwargs)

    return repeated


def compare(watched: list[Watched], before: Moment) -> dict[str, int]:
    """All feeds with the kernel, since `before`; what the kernel counted. Raises SomethingLost."""
    until = time.monotonic() + 30
    while True:
        after = at_rest(watched)
        kernels = grown(before.kernels(), after.kernels())
        ours = {each.name: grown(before.ours(each.name), after.ours(each.name)) for each in watched}
        if all(found == kernels for found in ours.values()) or time.monotonic() > until:
            break
    if lost := lost_between(before.feeds[FENTRY], after.feeds[FENTRY]):
        raise SomethingLost(lost)
    for each in watched:
        lost = lost_between(before.feeds[each.name], after.feeds[each.name])
        missed = sum(count for reason, count in lost.items() if reason in MISSED)
        if each.name == KPROBE and missed:
            off_by_what_was_missed(ours[KPROBE], kernels, missed)
        else:
            assert ours[each.name] == kernels
        assert lost.keys() <= ELSEWHERE | MISSED
    return {name: value for name, value in kernels.items() if value is not None}


def off_by_what_was_missed(ours: dict[str, int | None], kernels: dict[str, int | None], missed: int) -> None:
    """What kprobes miss is counted, and a recharge may be missing for each."""
    for name, value in kernels.items():
        found = ours[name]
        assert value is not None
        assert found is not None
        most = missed * MAX_SLAB_PAGES if name == "recharged_pages" else missed if name.startswith("recharge") else 0
        assert value - most <= found <= value, name


def follow(watched: list[Watched], busy: Callable[[], bool]) -> None:
    """Take in the events of both while something goes on."""
    while busy():
        for each in watched:
            each.wait(0.2)


@until_nothing_is_lost
def test_peak_of_online_memcgs(fentry: Watched, memory_root: Path) -> None:
    before = at_rest([fentry])
    made = [memory_root / f"kmw-peak-{number}" for number in range(DIRECTORIES)]
    for path in made:
        path.mkdir()
    there = sum(1 for _ in os.walk(memory_root)) - 1
    for path in made:
        path.rmdir()
    kernels = compare([fentry], before)
    assert kernels["ids_allocated"] == DIRECTORIES
    assert fentry.look().ids.peak_online_memcgs == there


def live_and_die(watched: list[Watched], lives: int, memory_root: Path, tmpfs: Path) -> dict[str, int]:
    """Each of the workers goes through that many memcgs, and each takes over what others have left."""
    before = at_rest(watched)
    with workers(WORKERS) as those:
        for number, worker in enumerate(those):
            worker.start("lives", lives, memory_root, f"kmw-w{number}", tmpfs, 0, memory_root)
        follow(watched, lambda: not all(worker.answered() for worker in those))
        for worker in those:
            worker.finish()
        do_all(those, "unlink")
    kernels = compare(watched, before)
    assert kernels["css_online"] == kernels["css_offline"] == kernels["ids_allocated"] == lives * WORKERS
    assert kernels["recharges_from_dead"] > lives * WORKERS
    return kernels


@until_nothing_is_lost
def test_four_workers_on_two_processors(fentry: Watched, memory_root: Path, tmpfs: Path) -> None:
    kernels = live_and_die([fentry], LIVES, memory_root, tmpfs)
    assert kernels["recharge_checks"] >= CHECKS


@until_nothing_is_lost
def test_four_workers_seen_in_both_ways(both: list[Watched], memory_root: Path, tmpfs: Path) -> None:
    live_and_die(both, KPROBE_LIVES, memory_root, tmpfs)


@until_nothing_is_lost
def test_failures_are_those_that_were_forced(
    both: list[Watched], own_cgroup: Callable[..., OwnCgroup], tmpfs: Path
) -> None:
    for path in tmpfs.iterdir():
        path.unlink()
    old = own_cgroup()
    with workers(1) as (worker,):
        worker.do("pin", 0)
        worker.do("enter", old.path)
        for number in (11, 401):
            worker.do("files", number, f"{tmpfs}/{number}-")
            time.sleep(0.3)  # the first made the child caches known, which are created in the background
        worker.do("enter", old.path.parent)
        for path in list(tmpfs.iterdir())[::2]:
            path.unlink()
        time.sleep(0.5)
        old.path.rmdir()
        before = at_rest(both)
        worker.do("enter", own_cgroup().path)
        FAIL_RECHARGES.write_text(str(FAILURES))
        failed = 0
        while int(FAIL_RECHARGES.read_text()):
            failed += worker.do("insist")
        worker.do("enter", old.path.parent)
        kernels = compare(both, before)
    assert kernels["recharge_failures"] == failed == FAILURES


@until_nothing_is_lost
def test_races_for_a_slab_that_were_lost(both: list[Watched], own_cgroup: Callable[..., OwnCgroup]) -> None:
    """All want the same slabs of dying memcgs, on one CPU, while there is no memory to charge them to. Each of them
    looks for memory and lets the others run. Then there is memory for all."""
    with workers(1) as (holder,), workers(RACERS) as racers:
        do_all(racers, "pin", 0)
        for racer in racers:
            Path(f"/proc/{racer.pid}/oom_score_adj").write_text("-1000")  # a charge fails, but nobody is killed
        holder.do("pin", 0)
        before = at_rest(both)
        for attempt in range(5):
            race(holder, racers, own_cgroup, 0.1 + 0.03 * attempt)
            if kernel_counters()["recharge_lost_races"] > before.kernel["recharge_lost_races"]:
                break
        kernels = compare(both, before)
    assert kernels["recharge_lost_races"] > 0


def race(holder: Worker, racers: list[Worker], own_cgroup: Callable[..., OwnCgroup], hungry_s: float) -> None:
    old = own_cgroup()
    holder.do("enter", old.path)
    for _ in range(2):
        holder.do("pipes", 101)
        time.sleep(0.3)  # the first made the child caches known, which are created in the background
    holder.do("thin", 4)
    holder.do("enter", old.path.parent)
    old.path.rmdir()
    new = own_cgroup()
    do_all(racers, "enter", new.path)
    (new.path / "memory.max").write_text("0")
    for racer in racers:
        racer.start("insist")
    time.sleep(hungry_s)
    (new.path / "memory.max").write_text("max")
    for racer in racers:
        racer.finish()
    do_all(racers, "enter", new.path.parent)
    new.path.rmdir()


@until_nothing_is_lost
def test_slabs_of_nobody_and_of_the_living(both: list[Watched], own_cgroup: Callable[..., OwnCgroup]) -> None:
    """Tasks move in the middle of an allocation, to the root and to each other's cgroup."""
    places = [own_cgroup().path, own_cgroup().path]
    places.append(places[0].parent)
    before = at_rest(both)
    with workers(MOVERS) as movers:
        do_all(movers, "pin", 1)
        for _ in range(4):
            move_while_they_work(both, movers, places)
            do_all(movers, "enter", places[0])
            do_all(movers, "resize", 100)
            now = kernel_counters()
            if now["recharges_from_none"] > before.kernel["recharges_from_none"]:
                break
        kernels = compare(both, before)
    assert kernels["recharges_from_none"] > 0


def move_while_they_work(both: list[Watched], movers: list[Worker], places: list[Path]) -> None:
    """Each of them stays a while, so that it runs where it has been moved to."""
    for mover in movers:
        mover.start("resize", 4000)
    over = threading.Event()
    follower = threading.Thread(target=follow, args=(both, lambda: not over.is_set()))
    follower.start()
    try:
        for place in itertools.cycle(places):
            if all(mover.answered() for mover in movers):
                break
            for mover in movers:
                (place / "cgroup.procs").write_text(str(mover.pid))
    finally:
        over.set()
        follower.join()
    for mover in movers:
        mover.finish()
