# SPDX-License-Identifier: GPL-2.0-only
"""A start that is short of something is complete or says so, and makes no later start incomplete."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bpf_objects import loaded
from tests.daemon import KMEMWATCH
from tests.live.cgroups import OwnCgroup
from tests.processes import children
from tests.waiting import wait_for

SNAPSHOT = [*KMEMWATCH, "snapshot", "--duration", "0", "--indent", "0"]
ROOT = Path(__file__).parents[2]
NOT_OURS = ("Fatal Python error", "error while loading shared libraries", "Error processing line")
"""Python itself could not start."""
DESCRIPTORS = (6, 8, 9, 10, 12, 17, 21, 25, 29, 33, 37, 41, 46, 51, 80)
OTHERS = ("--as=60M", "--as=150M", "--as=300M", "--data=20M", "--data=100M", "--fsize=0", "--memlock=0", "--nproc=1")
KILLS = 4
SEED = 5

pytestmark = pytest.mark.needs("no lab")


class Elsewhere:
    """A mount namespace with a /run/kmemwatch of its own."""

    def __init__(self) -> None:
        script = "mkdir -p /run/kmemwatch && mount -t tmpfs -o mode=700 kmw-test /run/kmemwatch && echo ready && read _"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.kept = Path(f"/proc/{self._holder.pid}/root/run/kmemwatch")
        self._enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def forget(self) -> None:
        """The next start is cold."""
        for file in self.kept.iterdir():
            file.unlink()

    def start(self, *before: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [*self._enter, *before, *SNAPSHOT]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)

    def run(self, *before: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        with self.start(*before, env=env) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess([*before], process.returncode, out, err)

    def close(self) -> None:
        self._holder.communicate("\n", timeout=20)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    one = Elsewhere()
    yield one
    one.close()


@pytest.fixture(scope="module")
def complete(elsewhere: Elsewhere) -> dict[str, Any]:
    """What a start finds if nothing is short."""
    done = elsewhere.run()
    assert (done.returncode, done.stderr) == (0, "")
    return found(done)


def found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    snapshot = json.loads(done.stdout)
    parts = {name: snapshot[name] is None for name in ("cgroups", "caches", "pairs", "lost")}
    return {
        "probes": [(probe["signal"], probe["status"], probe["why"]) for probe in snapshot["probes"]],
        "unknown": [name for name, is_unknown in parts.items() if is_unknown],
        "known caches": len(snapshot["caches"] or ()) > 50,
        "known cgroups": len(snapshot["cgroups"] or ()) > 0,
        "boot": snapshot["host"]["boot_id"],
    }


def check(done: subprocess.CompletedProcess[str], complete: dict[str, Any]) -> None:
    """It is complete, or one line says why not."""
    if done.returncode == 0:
        assert found(done) == complete, done.args
        return
    assert done.stdout == "", done.args
    if any(words in done.stderr for words in NOT_OURS):
        return
    first, *hints = done.stderr.splitlines()
    assert re.match(r"kmemwatch: .*(out of|ended: SIG|too large|cannot be started)", first), (done.args, done.stderr)
    assert "internal error" not in first
    assert [hint[:8] for hint in hints] in ([], ["  hint: "]), done.stderr
    assert done.returncode == 1


def check_afterwards(elsewhere: Elsewhere, complete: dict[str, Any], tmp_path: Path) -> None:
    """An ordinary start is complete, and the next one does without the compiler."""
    done = elsewhere.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert found(done) == complete
    assert not [file for file in elsewhere.kept.iterdir() if file.name.endswith(".new")]
    (tmp_path / "bcc.py").write_text("raise ImportError('not here')")
    warm = elsewhere.run(env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (warm.returncode, warm.stderr) == (0, "")
    assert found(warm) == complete


def test_few_descriptors(elsewhere: Elsewhere, complete: dict[str, Any], tmp_path: Path) -> None:
    codes = set()
    for number in DESCRIPTORS:
        elsewhere.forget()
        done = elsewhere.run("prlimit", f"--nofile={number}")
        check(done, complete)
        codes.add(done.returncode)
        if done.returncode == 0 or (elsewhere.kept / "start").exists():
            check(elsewhere.run(), complete)
    assert codes == {0, 1}
    check_afterwards(elsewhere, complete, tmp_path)


def test_a_warm_start_with_few_descriptors(elsewhere: Elsewhere, complete: dict[str, Any], tmp_path: Path) -> None:
    before = elsewhere.run()
    assert before.returncode == 0
    for number in DESCRIPTORS[::3]:
        check(elsewhere.run("prlimit", f"--nofile={number}"), complete)
    check_afterwards(elsewhere, complete, tmp_path)


def test_other_limits(elsewhere: Elsewhere, complete: dict[str, Any], tmp_path: Path) -> None:
    for limit in OTHERS:
        elsewhere.forget()
        check(elsewhere.run("prlimit", limit.replace("M", "000000")), complete)
    check_afterwards(elsewhere, complete, tmp_path)


def has_started(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or bool(children(process.pid))


def test_a_compiling_process_that_is_killed(elsewhere: Elsewhere, complete: dict[str, Any], tmp_path: Path) -> None:
    at_random = random.Random(SEED)
    before = loaded("prog")
    for _ in range(KILLS):
        elsewhere.forget()
        with elsewhere.start() as process:
            wait_for(partial(has_started, process), 30)
            time.sleep(at_random.uniform(0, 1.5))
            for child in children(process.pid) if process.poll() is None else ():
                os.kill(child, signal.SIGKILL)
            out, err = process.communicate(timeout=60)
        check(subprocess.CompletedProcess(["killed"], process.returncode, out, err), complete)
    wait_for(lambda: not loaded("prog") - before, 30)
    check_afterwards(elsewhere, complete, tmp_path)


def test_a_cgroup_with_little_memory(
    elsewhere: Elsewhere, complete: dict[str, Any], own_cgroup: Callable[..., OwnCgroup], tmp_path: Path
) -> None:
    for most in (8 << 20, 40 << 20):
        cgroup = own_cgroup()
        limit = next(cgroup.path / name for name in ("memory.max", "memory.limit_in_bytes")
                     if (cgroup.path / name).exists())  # fmt: skip
        limit.write_text(str(most))
        elsewhere.forget()
        enter = ["sh", "-c", f'echo $$ > {cgroup.path}/cgroup.procs; exec "$@"', "sh"]
        done = elsewhere.run(*enter)
        if done.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):  # then no process can say anything
            check(done, complete)
    check_afterwards(elsewhere, complete, tmp_path)
