# SPDX-License-Identifier: GPL-2.0-only
"""`compare` against the truth: the report of churn says what it did on this host while `record` ran."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.feeds.recording import SNAPSHOT, RecordingReader
from kmemwatch.units import parse_rfc3339
from tests.cgroup_mounts import MemoryMount
from tests.daemon import KMEMWATCH
from tests.e2e.servers import START_S, Program
from tests.e2e.test_compare import compare, figure
from tests.live.cgroups import directories, kernels_count
from tests.live.helpers import empty_batches, empty_stocks
from tests.waiting import rested, wait_for

pytestmark = pytest.mark.needs("root", "bcc", "a memory controller", "no lab")

CGROUPS, RATE, HOLD_S, AFTER_S = 47, 5, 10, 12
OTHERS = 15
"""Cgroups of this machine that may come and go meanwhile and are not ours."""


def kmemwatch(*arguments: str | Path) -> list[str | Path]:
    return [*KMEMWATCH, *arguments]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, memory: MemoryMount) -> dict[str, Any]:
    """A recording of churn and of the time after it, the same up to the end of the holding, and churn's report."""
    # What other tests left is not to be released while dying memcgs are counted.
    release_what_batches_keep(memory.path)
    rested(lambda: kernels_count(memory) - directories(memory), 30, every_s=1)
    directory = tmp_path_factory.mktemp("churn")
    whole, held, report = directory / "whole.kmw", directory / "held.kmw", directory / "churn.json"
    program = Program(kmemwatch("record", whole, "--interval", "0.5"), directory / "record.log")
    try:
        wait_for(lambda: program.runs() and whole.exists() and whole.stat().st_size > 1000, START_S, "recording")
        churn = kmemwatch("churn", "--cgroups", str(CGROUPS), "--rate", str(RATE), "--objects", "5", "--seed", "11",
                          "--kind", "shmem,pipe", "--hold", str(HOLD_S))  # fmt: skip
        done = subprocess.run(churn, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        report.write_text(done.stdout)
        ended_ns = parse_rfc3339(json.loads(done.stdout)["ended_at"])
        assert ended_ns is not None
        release_what_batches_keep(memory.path)
        wait_for(lambda: _latest_ns(whole) > ended_ns + AFTER_S * 10**9, 120, "time after it")
    finally:
        program._process.send_signal(signal.SIGINT)
        program._process.wait(30)
    _cut(whole, held, ended_ns - HOLD_S * 10**9 // 4)
    return {"whole": whole, "held": held, "report": report, "truth": json.loads(report.read_text())}


def release_what_batches_keep(root: Path) -> None:
    """Freed pages and charges in stock keep memcgs dying until others push them out, which nobody does at rest."""
    empty_batches()
    empty_stocks(root)


def _latest_ns(path: Path) -> int:
    found = re.findall(rb'"taken_at":"([^"]+)"', path.read_bytes())
    return parse_rfc3339(found[-1].decode()) or 0


def _cut(whole: Path, part: Path, end_ns: int) -> None:
    """The records up to a time; a recording is whole wherever it ends."""
    with RecordingReader(str(whole)) as reader, part.open("wb") as out:
        while (record := reader.next()) is not None:
            if record.type == SNAPSHOT and record.snapshot().taken_at_ns > end_ns:
                return
            out.write(record.line)


def test_the_figures_are_those_of_churn(story: dict[str, Any]) -> None:
    document = compare(story["held"], story["whole"], "--workload-a", story["report"], "--workload-b", story["report"])
    truth = story["truth"]
    made = truth["cgroups"]["removed"]
    assert made == CGROUPS
    held, whole = document["sides"]
    assert made <= figure(document, 3, 0, "removed") <= made + OTHERS
    assert held["workload"]["report"] == truth
    # While churn held on to what they left, all of them were dying, and the kernel's own count agrees.
    at_end = held["series"]["dying"][-1][1]
    at_begin = held["series"]["dying"][0][1]
    if truth["dying"]["of"] == "host":
        assert abs(at_end - truth["dying"]["after_work"]) <= OTHERS
    assert made - OTHERS <= at_end - at_begin <= made + OTHERS
    # Afterwards none of them was.
    assert abs(whole["series"]["dying"][-1][1] - at_begin) <= OTHERS
    assert figure(document, 3, 1, "released") >= made
    assert whole["delays"]["released"] >= made
    assert held["delays"]["still_dying"] >= made - 2


def test_what_is_held_is_not_let_go_and_what_is_released_is(story: dict[str, Any]) -> None:
    document = compare(story["held"], story["whole"])
    verdicts = [side["verdict"] for side in document["claims"][2]["sides"]]
    assert verdicts == ["does not hold", "holds"], document["claims"][2]
    assert any("one host at the same time" in note for note in document["notes"])


def test_delays_are_at_least_as_long_as_they_were_held(story: dict[str, Any]) -> None:
    """All were let go at the end: the first after it had waited for all others, the last after the holding."""
    document = compare(story["whole"], story["whole"])
    median = document["claims"][2]["sides"][0]["figures"]["delay_median"]
    work_s = story["truth"]["work_s"]
    assert HOLD_S <= median["value"] <= work_s + HOLD_S + AFTER_S
    assert document["notes"][0].startswith("both sides are the same")
