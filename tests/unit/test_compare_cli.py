# SPDX-License-Identifier: GPL-2.0-only
"""The command: what it reads and writes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from kmemwatch.cli.main import cli
from kmemwatch.feeds.replay import DEMO
from tests.unit.compare_sides import recording, snapshot
from tests.unit.test_compare_output import SCHEMA
from tests.unit.test_feeds_remote import Answers


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)])


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return (
        recording(tmp_path / "a.kmw", (snapshot(t) for t in range(30))),
        recording(tmp_path / "b.kmw.gz", (snapshot(t, "B") for t in range(30))),
    )


def test_a_table_of_two_recordings(two: tuple[Path, Path]) -> None:
    done = run(*two)
    assert done.exit_code == 0, done.output
    assert "recording of host hostA" in done.output
    assert "3. Dead memcgs are let go sooner or later." in done.output


def test_json_is_valid_and_alone_on_stdout(two: tuple[Path, Path]) -> None:
    done = run(*two, "--output", "json")
    assert done.exit_code == 0
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


@pytest.mark.parametrize("output", ["table", "json", "html"])
def test_out_writes_a_file_and_says_so(two: tuple[Path, Path], tmp_path: Path, output: str) -> None:
    out = tmp_path / "report"
    done = run(*two, "--output", output, "--out", out)
    assert done.exit_code == 0
    assert done.stdout == ""
    assert f"report: written, {out.stat().st_size} bytes" in done.stderr


def test_the_demo_can_be_compared() -> None:
    done = run(DEMO, DEMO)
    assert done.exit_code == 0, done.output
    assert "both sides are the same" in done.output


def test_daemons_are_measured(two: tuple[Path, Path]) -> None:
    answers = Answers()
    try:
        answers.snapshot(snapshot(0))
        began = time.monotonic()
        done = run(answers.address, two[1], "--duration", "0.5", "--interval", "0.1")
        assert time.monotonic() - began >= 0.5
    finally:
        answers.stop()
    assert done.exit_code == 0, done.output
    assert f"A  http://{answers.address}" in done.output
    assert "there is only one sample" in " ".join(done.output.split())


WRONG = {
    "no such file": (("no.kmw", "B"), "no.kmw: no such file"),
    "not a recording": (("{text}", "B"), "not a kmemwatch recording"),
    "url with a password": (("http://u:p@h:1", "B"), "a URL with a password in it"),
    "prometheus with a password": (("prometheus:http://u:p@h:1?a='b'", "B"), "a URL with a password in it"),
    "ca of a file": (("A", "B", "--ca-a", "{text}"), "are for URLs, not for files"),
    "range of files": (("A", "B", "--range", "1h"), "are for prometheus: sides"),
    "from and range": (("prometheus:h:1", "B", "--range", "1h", "--from", "5"), "cannot be used together"),
    "backwards": (("prometheus:h:1", "B", "--from", "9", "--to", "5"), "--from is not before --to"),
    "no time": (("prometheus:h:1", "B", "--from", "soon"), "not a time like 2026"),
    "no span": (("prometheus:h:1", "B", "--range", "-1h"), "not a time like 90"),
    "no selector": (("prometheus:http://h:1?{{x", "B"), "not a selector"),
    "ca that is none": (("https://h:1", "B", "--ca-a", "{text}"), "cannot use it as CA file"),
    "ca that is missing": (("https://h:1", "B", "--ca-a", "/no/ca"), "/no/ca: cannot use it as CA file: No such"),
    "password without user": (("http://h:1", "B", "--password-file-a", "{text}"), "without --user-a"),
    "no password": (("http://h:1", "B", "--user-a", "u", "--password-file-a", "/no"), "cannot read the password"),
    "empty password": (("http://h:1", "B", "--user-a", "u", "--password-file-a", "/dev/null"), "no password in its"),
    "workload": (("A", "B", "--workload-a", "{text}"), "not JSON"),
    "workload missing": (("A", "B", "--workload-b", "/no.json"), "/no.json: cannot read"),
    "out in no directory": (("A", "B", "--out", "/no/where"), "no such directory"),
    "out is a directory": (("A", "B", "--out", "/"), "is a directory"),
    "output": (("A", "B", "--output", "pdf"), "pdf"),
    "one side": (("A",), "missing argument 'B'"),
    "duration": (("A", "B", "--duration", "0"), "--duration"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line_and_2(two: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    arguments, text = WRONG[name]
    (tmp_path / "text").write_text("hello\n")
    names = {"A": str(two[0]), "B": str(two[1])}
    done = run(*(names.get(one, one.format(text=tmp_path / "text")) for one in arguments))
    assert done.exit_code == 2, done.output
    assert text in done.output
    first, *rest = done.output.splitlines()
    assert first.startswith("kmemwatch: ")
    assert len(rest) <= 1
    assert done.stdout == ""


def test_nobody_at_the_url_is_1(two: tuple[Path, Path]) -> None:
    for source in ("http://127.0.0.1:1", "prometheus:http://127.0.0.1:1"):
        done = run(source, two[1])
        assert done.exit_code == 1
        assert "127.0.0.1:1: cannot" in done.output


def test_a_full_disk_is_1(two: tuple[Path, Path]) -> None:
    done = run(*two, "--out", "/dev/full")
    assert done.exit_code == 1
    assert "/dev/full: cannot write: No space left on device" in done.output
