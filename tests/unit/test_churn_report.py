# SPDX-License-Identifier: GPL-2.0-only
"""The report of churn, its command line, and what it makes, as far as that goes without root."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from kmemwatch.churn import limits, runner, workspace
from kmemwatch.churn.limits import Free, Needs
from kmemwatch.churn.lives import ChurnOptions, lives, parse_mix
from kmemwatch.churn.objects import PAGE, ObjectFiles, ObjectMaker
from kmemwatch.churn.results import DONE, MEMORY, SIGNAL, ChurnReport, Course, Tally
from kmemwatch.churn.runner import StopSignals
from kmemwatch.churn.workspace import Workspace, remove_cgroups, sweep
from kmemwatch.cli import churn as churn_command
from kmemwatch.cli.main import cli
from kmemwatch.errors import UnsupportedError
from kmemwatch.kernel.cgroupfs import Hierarchy

SCHEMA = json.loads(resources.files("kmemwatch.churn").joinpath("report.schema.json").read_text())
NEEDS = Needs(memory_bytes=5, disk_bytes=0, processes=3, descriptors=64, memcg_ids=8)
OPTIONS = ChurnOptions(
    mix=parse_mix("inode=2,pipe"), cgroups=3, objects=7, leave_percent=50, dead=None, parallel=2, rate=9.5,
    seed=4, duration_s=None, hold_s=0, directory="/var/tmp",
)  # fmt: skip


def answer(serial: int, **changes: Any) -> dict[str, Any]:
    """What a worker says of a life that went well."""
    made: dict[str, Any] = {
        "name": f"c{serial}", "id": 700 + serial, "made_at_ns": 10**18, "removed_at_ns": 10**18 + 1,
        "made": {"inode": 5, "pipe": 2}, "left": {"inode": 3, "pipe": 1}, "failed": {}, "errors": [], "held_fds": 2,
    }  # fmt: skip
    return {**made, **changes}


def report(*answers: dict[str, Any], lists: bool = True, options: ChurnOptions = OPTIONS, **course: Any) -> ChurnReport:
    tally = Tally(options.mix, lists)
    for life, told in zip(lives(options), answers, strict=False):
        tally.give(life)
        tally.add(told)
    went = Course(started_at_ns=10**18, work_s=0.5, ended_at_ns=2 * 10**18)
    for name, value in course.items():
        setattr(went, name, value)
    return ChurnReport(options, NEEDS, 2, "/kmemwatch-churn-1-x", 77, tally, went)


# Report


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("cgroups", [None, 3])
def test_a_report_is_as_its_schema_says(lists: bool, cgroups: int | None) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    failing = answer(2, id=None, made_at_ns=None, removed_at_ns=None, errors=[("mkdir", errno.ENOSPC)], made={})
    told = report(
        answer(0), answer(1), failing, lists=lists, options=replace(OPTIONS, cgroups=cgroups, duration_s=2.5),
        ended_by=SIGNAL, signum=signal.SIGTERM, remains=["/x: busy"],
    )  # fmt: skip
    document = json.loads(json.dumps(told.to_dict()))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert ("list" in document["cgroups"]) is lists
    assert (document["signal"], document["cleaned"]) == ("SIGTERM", False)


def test_a_report_adds_up_what_workers_say() -> None:
    told = report(answer(0), answer(1)).to_dict()
    assert told["objects"] == {
        "inode": {"planned": 10, "made": 10, "left": 6, "failed": 0},
        "pipe": {"planned": 4, "made": 4, "left": 2, "failed": 0},
    }
    assert {key: told["cgroups"][key] for key in ("planned", "made", "removed")} == {
        "planned": 2, "made": 2, "removed": 2,
    }  # fmt: skip
    assert (told["rate"], told["failures"], told["dying"]["before"]) == (4.0, [], None)


def test_failures_are_named_and_counted() -> None:
    told = report(
        answer(0, failed={("pipe", errno.EMFILE): 2}),
        answer(1, errors=[("rmdir", errno.EBUSY)], removed_at_ns=None),
        answer(2, held_fds=0),
    )
    assert told.failed == 5
    assert told.to_dict()["failures"] == [
        {"what": "held open", "why": "lost on the way to the one that holds them", "count": 2},
        {"what": "pipe", "why": os.strerror(errno.EMFILE), "count": 2},
        {"what": "rmdir", "why": os.strerror(errno.EBUSY), "count": 1},
    ]
    assert told.to_dict()["objects"]["pipe"]["failed"] == 2
    assert told.to_dict()["cgroups"]["removed"] == 2


# Command line


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, ["churn", *args])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--kind", "zombie"], "there is no kind 'zombie'"),
        (["--cgroups", "0"], "0 is not in the range"),
        (["--objects", "x"], "'x' is not a valid integer"),
        (["--leave", "101"], "101 is not in the range"),
        (["--rate", "0"], "0.0 is not in the range"),
        (["--rate", "inf"], "inf"),
        (["--duration", "nan"], "nan is not a number of seconds"),
        (["--hold", "-1"], "-1.0 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--directory", "tmp"], "does not begin with /"),
    ],
)
def test_wrong_usage_exits_2(args: list[str], said: str) -> None:
    done = invoke(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("uid", "hierarchy", "said", "hint"),
    [
        (1000, Hierarchy(2, 0, "/sys/fs/cgroup"), "only root can make cgroups", "sudo kmemwatch churn"),
        (0, None, "no enabled memory controller", "cgroup_enable=memory"),
        (0, Hierarchy(2, 0, None), "not mounted here", "on the host"),
        (0, Hierarchy(2, 0, "/proc/self"), "no cgroup can be made", "privileged"),
    ],
)
def test_what_cannot_be_here_exits_3_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, hierarchy: Hierarchy | None, said: str, hint: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(workspace, "find_memory", lambda: hierarchy)
    done = invoke("--directory", str(tmp_path))
    assert (done.exit_code, done.stdout) == (3, "")
    assert said in done.stderr.splitlines()[0]
    assert hint in done.stderr.splitlines()[1]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def possible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host on which everything looks right; its directory of cgroups."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(runner, "memory_hierarchy", lambda: (Hierarchy(2, 0, str(root)), root))
    return root


def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, possible: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "available", lambda *_: Free(1 << 30, 1 << 30, 1000, 1000, 1000))
    done = invoke("--cgroups", "100000", "--directory", str(tmp_path))
    assert (done.exit_code, done.stdout) == (3, "")
    assert "may need" in done.stderr
    assert "to spare" in done.stderr
    assert list(possible.iterdir()) == []


def test_a_directory_that_is_not_there_exits_3(possible: Path) -> None:
    done = invoke("--directory", "/does/not/exist")
    assert done.exit_code == 3
    assert "/does/not/exist: no such directory" in done.stderr


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        (report(answer(0)), 0, None),
        (report(answer(0), ended_by=SIGNAL, signum=signal.SIGINT), 130, None),
        (report(answer(0), ended_by=SIGNAL, signum=signal.SIGTERM), 143, None),
        (report(answer(0), ended_by=DONE, signum=signal.SIGTERM), 0, None),
        (report(answer(0), ended_by=MEMORY), 1, "short of memory"),
        (report(answer(0), remains=["/x: busy"]), 1, "not all could be taken away: /x: busy"),
        (report(answer(0, failed={("pipe", errno.EMFILE): 3})), 1, "3 things failed, first pipe"),
    ],
)
def test_the_report_is_printed_however_it_ended(
    monkeypatch: pytest.MonkeyPatch, told: ChurnReport, code: int, said: str | None
) -> None:
    asked: list[ChurnOptions] = []

    def churn(options: ChurnOptions, *_: object, **__: object) -> ChurnReport:
        asked.append(options)
        return told

    monkeypatch.setattr(churn_command, "churn", churn)
    done = invoke("--seed", "11")
    assert done.exit_code == code
    assert json.loads(done.stdout) == json.loads(json.dumps(told.to_dict()))
    assert (said or "") in done.stderr
    assert bool(done.stderr.strip()) == bool(said)
    assert (asked[0].seed, asked[0].cgroups, asked[0].dead) == (11, 100, None)


def test_a_duration_alone_bounds_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ChurnOptions] = []

    def churn(options: ChurnOptions, *_: object, **__: object) -> ChurnReport:
        asked.append(options)
        return report(answer(0))

    monkeypatch.setattr(churn_command, "churn", churn)
    for args in (["--duration", "5"], ["--duration", "5", "--dead", "7"], ["--duration", "5", "--cgroups", "9"]):
        assert invoke(*args).exit_code == 0
    assert [(options.cgroups, options.dead) for options in asked] == [(None, 1000), (None, 7), (9, None)]
    assert asked[0].seed != asked[1].seed


# What is made


@pytest.fixture
def files(tmp_path: Path) -> ObjectFiles:
    for name in ("tmpfs", "disk"):
        (tmp_path / name).mkdir()
    return ObjectFiles(str(tmp_path / "tmpfs"), str(tmp_path / "disk"), "c0")


def entries(directory: Path | str) -> int:
    return sum(1 for _ in Path(directory).iterdir())


def test_objects_are_made_and_freed_as_told(files: ObjectFiles, tmp_path: Path) -> None:
    files.prepare("dinfspk")
    opened = entries("/proc/self/fd")
    maker = ObjectMaker(files)
    maker.make("D3d2I2i4N5n1F3f2s1S2P2p3k1K1")
    everything = {"dentry": 5, "inode": 6, "negative": 6, "file": 5, "shmem": 3, "pipe": 5, "socket": 2}
    assert (maker.made, maker.failed) == (everything, {})
    assert entries("/proc/self/fd") == opened + 2 * 5 + 2
    assert entries(files.directory) == 5 + 6
    maker.free()
    assert maker.left == {"dentry": 3, "inode": 2, "negative": 6, "file": 3, "shmem": 2, "pipe": 2, "socket": 1}
    assert entries(files.directory) == 3 + 2
    assert Path(files.source).stat().st_nlink == 1 + 3
    assert Path(files.page_cache).stat().st_size == 3 * PAGE
    assert Path(files.shmem).stat().st_size == 2 * PAGE
    assert entries("/proc/self/fd") == opened + 2 * 2 + 1
    for fd in maker.kept_fds:
        os.close(fd)
    files.close()
    files.remove()
    assert entries(tmp_path / "tmpfs") == entries(tmp_path / "disk") == 0


def test_what_cannot_be_made_is_counted(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "no")

    monkeypatch.setattr(os, "pipe", refuse)
    maker = ObjectMaker(files)
    maker.make("P3")
    assert (maker.made, maker.left, maker.failed) == ({}, {}, {("pipe", errno.EMFILE): 3})


def test_threads_that_are_not_to_stay_end(files: ObjectFiles) -> None:
    before = entries("/proc/self/task")
    maker = ObjectMaker(files)
    maker.make("t5")
    assert entries("/proc/self/task") == before + 5
    maker.free()
    until = time.monotonic() + 10
    while entries("/proc/self/task") > before and time.monotonic() < until:
        time.sleep(0.01)
    assert entries("/proc/self/task") == before


# Where


def v2(root: Path) -> Hierarchy:
    """A directory that takes writes to the files of a cgroup."""
    (root / "cgroup.subtree_control").write_text("cpu memory\n")
    return Hierarchy(2, 0, str(root))


def test_a_workspace_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    root, scratch = tmp_path / "cgroup", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    with pytest.raises(UnsupportedError, match="no cgroup can be made"):
        Workspace(v2(root), root, str(scratch))  # the parent has no cgroup.subtree_control here
    assert [path.name for path in root.iterdir()] == ["cgroup.subtree_control"]
    assert list(scratch.iterdir()) == []


def test_remains_of_killed_runs_are_swept_but_not_those_of_live_ones(tmp_path: Path) -> None:
    root, scratch = tmp_path / "cgroup", tmp_path / "scratch"
    old = time.time() - 2 * workspace.STALE_S
    for above in (root, scratch):
        for name in ("dead", "alive", "young"):
            (above / f"{workspace.PREFIX}{name}" / "c1").mkdir(parents=True)
            if name != "young":
                os.utime(above / f"{workspace.PREFIX}{name}", (old, old))
        (above / "other").mkdir()
    locks = [workspace._locked(above / f"{workspace.PREFIX}alive") for above in (root, scratch)]
    sweep(root, str(scratch))
    for lock in locks:
        os.close(lock)
    for above in (root, scratch):
        stay = [f"{workspace.PREFIX}alive", f"{workspace.PREFIX}young", "other"]
        assert sorted(path.name for path in above.iterdir()) == stay


def test_a_cgroup_that_is_still_used_stays_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "p/c0").mkdir(parents=True)
    (tmp_path / "p/c1/process").mkdir(parents=True)  # a cgroup with processes cannot be removed, as this cannot
    with pytest.raises(OSError, match="c1"):
        remove_cgroups(tmp_path / "p", 0)
    assert (tmp_path / "p/c1").exists()


# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_set_a_flag_and_interrupt_nothing(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with StopSignals() as stop:
        for _ in range(100_000):  # more than a pipe takes
            stop._remember(signum, None)
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        assert os.read(stop.fd, 1)
    assert signal.getsignal(signum) == before
