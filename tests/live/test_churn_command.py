# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch churn`: its report equals what the kernel and kmemwatch saw, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kmemwatch.churn import workspace
from kmemwatch.churn.lives import BY_NAME
from kmemwatch.feeds.live import LiveFeed
from kmemwatch.model import DYING, RELEASED, Event, Snapshot
from kmemwatch.units import printable
from tests.cgroup_mounts import MemoryMount
from tests.daemon import KMEMWATCH
from tests.live.helpers import empty_batches, empty_stocks, lost_lifecycle, pair_of, snapshot
from tests.processes import children
from tests.waiting import rested, settled, wait_for

SCHEMA = json.loads(resources.files("kmemwatch.churn").joinpath("report.schema.json").read_text())
HOLDS = re.compile(rb"(\d+) cgroups removed below (\S+); holding")
NAME = workspace.PREFIX
TRIES = 5
"""An interrupt that hits while a program runs may make kmemwatch lose a count, and say so."""


class Churn:
    """A running `kmemwatch churn`."""

    def __init__(self, disk: Path, *args: str) -> None:
        command = [*KMEMWATCH, "churn", "--directory", str(disk), *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.errors = b""

    def held(self, limit_s: float) -> str:
        """Wait until it holds what it made; the path of its parent."""
        assert self.process.stderr is not None
        until = time.monotonic() + limit_s
        while (told := HOLDS.search(self.errors)) is None:
            ready, _, _ = select.select([self.process.stderr], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self.process.stderr.fileno(), 4096) if ready else b""
            assert part, f"does not hold anything: {self.errors.decode()}"
            self.errors += part
        return told[2].decode()

    def end(self, limit_s: float, code: int = 0) -> dict[str, Any]:
        """Wait for its end; the report."""
        out, errors = self.process.communicate(timeout=limit_s)
        assert self.process.returncode == code, (self.errors + errors).decode()
        report: dict[str, Any] = json.loads(out)
        jsonschema.Draft202012Validator(SCHEMA).validate(report)
        return report


@pytest.fixture
def churn(disk_path: Path, memory: MemoryMount) -> Iterator[Callable[..., Churn]]:
    """Start one; at the end it must have left nothing."""
    started: list[Churn] = []

    def start(*args: str) -> Churn:
        started.append(Churn(disk_path, *args))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.communicate(timeout=120)
    assert remains(memory.path, disk_path) == []


def remains(root: Path, disk: Path) -> list[str]:
    """Directories, mounts in any mount namespace, and processes of a churn whose scratch is in `disk`."""
    found = [str(path) for path in (*disk.glob(f"{NAME}*"), *root.glob(f"{NAME}*"))]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mounts, command = (process / "mountinfo").read_text(), (process / "cmdline").read_text()
        except OSError:  # it ended
            continue
        if f"{disk}/{NAME}" in mounts or f"{disk}/{NAME}" in command:
            found.append(f"{process}: {command}")
    return found


def below(feed: LiveFeed, parent: str, state: str) -> set[int]:
    """Ids of the cgroups below `parent` in that state, as kmemwatch sees them now."""
    return {c.id for c in snapshot(feed).cgroups if c.state == state and f"{c.path}/".startswith(f"{parent}/")}


def others_dying(feed: LiveFeed, parent: str) -> int:
    """How many memcgs are dying that are not below `parent`: the kernel counts them too where it counts for the host.

    Read until it stays: the kernel counts a memcg from rmdir on, kmemwatch once a worker has taken it offline.
    """

    def others() -> int:
        seen = snapshot(feed).cgroups
        return sum(one.state == DYING and not f"{one.path}/".startswith(f"{parent}/") for one in seen)

    return rested(others, 60, every_s=0.5)


def ids(report: dict[str, Any]) -> set[int]:
    return {cgroup["id"] for cgroup in report["cgroups"]["list"]}


def test_kmemwatch_and_the_kernel_see_as_many_dead_as_were_made(
    churn: Callable[..., Churn], feed: LiveFeed, memory_root: Path,
    scale: Callable[[int], int], patience: Callable[[float], float],
) -> None:  # fmt: skip
    number = scale(37)
    empty_batches()
    empty_stocks(memory_root)
    others = others_dying(feed, "/none of them")
    running = churn(
        "--kind", "shmem=2,inode", "--cgroups", str(number), "--objects", "7", "--parallel", "2",
        "--hold", str(patience(600)), "--list",
    )  # fmt: skip
    parent = running.held(patience(60))
    seen = settled(lambda: len(below(feed, parent, DYING)), number, patience(30))
    seen_ids = below(feed, parent, DYING)
    changed = others_dying(feed, parent) - others
    running.process.send_signal(signal.SIGINT)
    report = running.end(patience(60))
    assert lost_lifecycle(feed) == 0
    assert report["cgroups"]["removed"] == seen == number
    assert seen_ids == ids(report)
    # With cgroup v1 the kernel counts those of the whole host, and what other tests left is released meanwhile.
    more = changed if report["dying"]["of"] == "host" else 0
    assert report["dying"]["after_hold"] - report["dying"]["before"] == number + more
    assert (report["ended_by"], report["signal"], report["cleaned"]) == ("done", "SIGINT", True)
    assert left_dying(feed, parent, 0, memory_root, patience(30)) == 0


def left_dying(feed: LiveFeed, parent: str, expected: int, memory_root: Path, limit_s: float) -> int:
    """How many below `parent` are still dying when others were let go; waits for the `expected` number."""

    def left() -> int:
        empty_batches()
        empty_stocks(memory_root)
        return len(below(feed, parent, DYING))

    return settled(left, expected, limit_s)


def allocations(seen: Snapshot, cache: str, cgroups: set[int]) -> int:
    """Objects of a cache that these cgroups made."""
    return sum(
        (pair.allocations_total or 0) for cgroup in cgroups if (pair := pair_of(seen, cache, cgroup)) is not None
    )


def lost_allocations(seen: Snapshot) -> dict[str, int | None]:
    """What was not counted and may have been an allocation, by reason; others do not matter here."""
    return {
        reason: number
        for reason, number in seen.lost.reasons.items()
        if reason not in ("skipped_charge", "skipped_free", "skipped_lifecycle", "charge_map_full")
    }


def kept_open(process: subprocess.Popen[bytes], kind: str) -> int:
    """Descriptors of a kind (``pipe``, ``socket``) that the children of the workers have open, by /proc."""
    targets: list[str] = []
    for worker in children(process.pid):
        for holder in children(worker):
            targets += [str(fd.readlink()) for fd in Path(f"/proc/{holder}/fd").iterdir()]
    return sum(target.startswith(f"{kind}:") for target in targets)


def look(running: Churn, feed: LiveFeed, number: int, patience: Callable[[float], float]) -> tuple[Snapshot, int, int]:
    """While it holds: all that kmemwatch sees, and how many pipes' ends and sockets are kept open."""
    parent = running.held(patience(60))
    assert settled(lambda: len(below(feed, parent, DYING)), number, patience(30)) == number
    return snapshot(feed), kept_open(running.process, "pipe"), kept_open(running.process, "socket")


def test_objects_are_those_that_kmemwatch_counts_in_the_cgroups(
    churn: Callable[..., Churn], feed: LiveFeed, scale: Callable[[int], int], patience: Callable[[float], float]
) -> None:
    """Pages pin the dying cgroups, so that every kernel keeps their counts readable."""
    number = scale(5)
    for _ in range(TRIES):
        lost = lost_allocations(snapshot(feed))
        running = churn(
            "--kind", "shmem,inode=3,pipe=2,socket", "--cgroups", str(number), "--objects", "211", "--leave", "60",
            "--hold", str(patience(600)), "--list", "--seed", "7",
        )  # fmt: skip
        seen, pipe_ends, sockets = look(running, feed, number, patience)
        running.process.send_signal(signal.SIGTERM)
        report = running.end(patience(60))
        if lost_allocations(seen) == lost:
            break
    else:
        pytest.fail(f"allocations were lost in each of {TRIES} runs: {lost_allocations(seen)}")
    made = {kind: counts["made"] for kind, counts in report["objects"].items()}
    left = {kind: counts["left"] for kind, counts in report["objects"].items()}
    cgroups = ids(report)
    assert sum(made.values()) == number * 211
    assert allocations(seen, "shmem_inode_cache", cgroups) == made["inode"]
    assert allocations(seen, "filp", cgroups) == 2 * made["pipe"] + made["socket"]
    assert allocations(seen, "sock_inode_cache", cgroups) == made["socket"]
    assert allocations(seen, "dentry", cgroups) == made["inode"] + made["pipe"] + made["socket"]
    assert 0 < left["pipe"] < made["pipe"]
    assert (pipe_ends, sockets) == (2 * left["pipe"], left["socket"] + 1)  # and the one through which they came


@pytest.mark.parametrize("kind", sorted(BY_NAME))
def test_every_kind_is_made_left_and_taken_away(
    churn: Callable[..., Churn], kind: str, patience: Callable[[float], float]
) -> None:
    report = churn("--kind", kind, "--cgroups", "3", "--objects", "11", "--leave", "50").end(patience(60))
    left = 33 if kind == "negative" else 18
    assert report["objects"] == {kind: {"planned": 33, "made": 33, "left": left, "failed": 0}}
    assert report["cgroups"] | {"plan_sha256": ""} == {
        "planned": 3, "made": 3, "removed": 3, "let_go_early": 0, "plan_sha256": "",
    }  # fmt: skip
    assert (report["failures"], report["cleaned"], report["ended_by"]) == ([], True, "done")


@pytest.mark.parametrize("kind", ["shmem", "file", "socket", "thread"])
def test_kinds_with_pages_or_references_keep_their_cgroups_dying(
    churn: Callable[..., Churn], feed: LiveFeed, memory_root: Path, kind: str, patience: Callable[[float], float]
) -> None:
    running = churn("--kind", kind, "--cgroups", "5", "--objects", "11", "--hold", str(patience(600)))
    parent = running.held(patience(60))
    time.sleep(patience(1))  # the kernel releases what nothing keeps in less
    assert settled(lambda: len(below(feed, parent, DYING)), 5, patience(30)) == 5
    running.process.terminate()
    running.end(patience(60))
    assert left_dying(feed, parent, 0, memory_root, patience(30)) == 0


def test_the_same_seed_does_the_same_whoever_does_it(
    churn: Callable[..., Churn], patience: Callable[[float], float]
) -> None:
    mix = ("--kind", "dentry=3,shmem,pipe=2", "--cgroups", "11", "--objects", "23", "--leave", "30", "--list")

    def did(*more: str) -> tuple[str, dict[str, Any]]:
        report = churn(*mix, *more).end(patience(60))
        made = {cgroup["name"]: (cgroup["made"], cgroup["left"]) for cgroup in report["cgroups"]["list"]}
        return report["cgroups"]["plan_sha256"], made

    one, parallel, other = did("--seed", "5"), did("--seed", "5", "--parallel", "3", "--dead", "2"), did("--seed", "6")
    assert one == parallel
    assert other[0] != one[0]
    assert other[1] != one[1]


def test_the_oldest_dead_are_let_go_when_there_are_too_many(
    churn: Callable[..., Churn], feed: LiveFeed, memory_root: Path, patience: Callable[[float], float]
) -> None:
    running = churn(
        "--kind", "shmem,pipe", "--cgroups", "31", "--dead", "7", "--hold", str(patience(600)), "--list",
        "--objects", "13",
    )  # fmt: skip
    parent = running.held(patience(60))
    assert left_dying(feed, parent, 7, memory_root, patience(30)) == 7
    kept = below(feed, parent, DYING)
    running.process.terminate()
    report = running.end(patience(60))
    assert kept == {cgroup["id"] for cgroup in report["cgroups"]["list"][-7:]}
    assert report["cgroups"]["let_go_early"] == 31 - 7


def test_a_rate_and_a_duration_are_kept(churn: Callable[..., Churn], patience: Callable[[float], float]) -> None:
    report = churn("--kind", "inode", "--objects", "2", "--rate", "5", "--duration", "2").end(patience(60))
    assert report["ended_by"] == "duration"
    assert 1 <= report["cgroups"]["made"] <= 11
    assert report["work_s"] >= 2
    assert report["rate"] <= 5.5


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_work_and_leaves_nothing(
    churn: Callable[..., Churn], signum: signal.Signals, code: int, memory_root: Path, disk_path: Path,
    patience: Callable[[float], float],
) -> None:  # fmt: skip
    running = churn("--kind", ",".join(BY_NAME), "--cgroups", "100000", "--dead", "20", "--parallel", "3")
    wait_for(lambda: list(memory_root.glob(f"{NAME}{running.process.pid}-*/c1?")), patience(60), every_s=0.01)
    assert remains(memory_root, disk_path) != []
    running.process.send_signal(signum)
    running.process.send_signal(signum)  # people press it twice
    report = running.end(patience(60), code)
    assert (report["ended_by"], report["signal"]) == ("signal", signum.name)
    assert report["cgroups"]["made"] == report["cgroups"]["removed"] == report["cgroups"]["planned"] > 0
    assert report["cleaned"]
    assert remains(memory_root, disk_path) == []


def test_a_worker_that_is_killed_is_said_and_leaves_nothing(
    churn: Callable[..., Churn], memory_root: Path, disk_path: Path, patience: Callable[[float], float]
) -> None:
    running = churn("--kind", "thread,pipe,inode", "--cgroups", "100000", "--dead", "20", "--parallel", "2")
    wait_for(lambda: list(memory_root.glob(f"{NAME}{running.process.pid}-*/c1?")), patience(60), every_s=0.01)
    os.kill(children(running.process.pid)[0], signal.SIGKILL)
    report = running.end(patience(60), 1)
    assert report["ended_by"] == "failures"
    assert "worker" in {failure["what"] for failure in report["failures"]}
    assert report["cleaned"]
    assert remains(memory_root, disk_path) == []


def test_what_a_killed_run_leaves_ends_with_it_or_is_swept_by_the_next(
    churn: Callable[..., Churn], memory_root: Path, disk_path: Path, monkeypatch: pytest.MonkeyPatch,
    patience: Callable[[float], float],
) -> None:  # fmt: skip
    running = churn("--kind", "thread,shmem,pipe", "--cgroups", "5", "--hold", str(patience(600)))
    running.held(patience(60))
    workspace.sweep(memory_root, str(disk_path))
    monkeypatch.setattr(workspace, "STALE_S", -1.0)
    workspace.sweep(memory_root, str(disk_path))  # it is alive
    assert len(list(memory_root.glob(f"{NAME}{running.process.pid}-*"))) == 1
    workers = children(running.process.pid)
    running.process.kill()
    running.process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), patience(30))
    wait_for(lambda: not any("/proc/" in one for one in remains(memory_root, disk_path)), patience(30))
    assert remains(memory_root, disk_path) != []  # directories, and nothing else
    workspace.sweep(memory_root, str(disk_path))
    assert remains(memory_root, disk_path) == []


def test_every_life_and_death_is_told(
    churn: Callable[..., Churn], feed: LiveFeed, memory_root: Path, patience: Callable[[float], float]
) -> None:
    report = churn("--kind", "inode", "--objects", "3", "--cgroups", "53", "--parallel", "2", "--list").end(
        patience(60)
    )
    told: list[Event] = []

    def released() -> int:
        empty_batches()
        empty_stocks(memory_root)
        snapshot(feed)
        told.extend(event for event in feed.take_events() if event.cgroup_id in ids(report))
        return sum(event.kind == RELEASED for event in told)

    assert settled(released, 53, patience(30)) == 53
    assert lost_lifecycle(feed) == 0
    paths = {printable(f"{report['parent']['path']}/{cgroup['name']}") for cgroup in report["cgroups"]["list"]}
    assert {event.path for event in told} == paths
