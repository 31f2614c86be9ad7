# SPDX-License-Identifier: GPL-2.0-only
"""What others may choose (names of files, answers of servers, names of cgroups) never moves the cursor of a terminal,
makes a line of its own, or becomes a formula."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmemwatch.cli.process import say
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import Snapshot
from kmemwatch.units import one_line, printable
from kmemwatch.views.batch import csv_header, csv_rows
from kmemwatch.views.rows import frame
from kmemwatch.views.select import select
from tests.http_server import OwnServer, QuietHandler
from tests.unit import fakes

EVIL = "a\x1b]0;gone\x07\x1b[2J\x9b31m\u202eb\nkmemwatch: all is well\r\x7f\u2028\u200b"
KMEMWATCH = [sys.executable, "-m", "kmemwatch"]


def clean(text: str) -> None:
    """No control character but the ends of lines, nothing that turns or hides text."""
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
    assert "\nkmemwatch: all is well" not in text


def run(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KMEMWATCH, *args], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(env or {})}
    )


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A recording in a file of such a name, of a host and of cgroups with such names."""
    path = tmp_path / EVIL
    sample = fakes.sample()
    host = replace(sample.host, hostname=EVIL, kernel=EVIL, arch=EVIL)
    with RecordingWriter(str(path)) as writer:
        writer.begin(replace(sample, host=host))
        for seconds in (0, 5):
            later = fakes.sample(seconds)
            cgroups = tuple(replace(cgroup, path=f"{cgroup.path}{EVIL}") for cgroup in later.cgroups)
            probes = tuple(replace(probe, attachment=EVIL, why=EVIL) for probe in later.probes)
            kernel = replace(later.kernel, era=EVIL, lockdown=EVIL)
            caches = tuple(replace(cache, name=f"{cache.name}{EVIL}") for cache in later.caches)
            writer.write_snapshot(
                replace(later, host=host, kernel=kernel, cgroups=cgroups, probes=probes, caches=caches)
            )
            for event in fakes.EVENTS:
                writer.write_event(replace(event, path=EVIL, comm=EVIL, cache=EVIL))
    return path


COMMANDS = {
    "top": ("top", "--once", "--replay", "{}"),
    "zombies": ("top", "--once", "--view", "zombies", "--replay", "{}"),
    "csv": ("top", "--once", "--output", "csv", "--replay", "{}"),
    "ndjson": ("top", "--once", "--output", "ndjson", "--replay", "{}"),
    "json": ("top", "--once", "--output", "json", "--replay", "{}"),
    "snapshot": ("snapshot", "--replay", "{}"),
    "snapshot table": ("snapshot", "--output", "table", "--replay", "{}"),
    "events": ("events", "--replay", "{}"),
    "events ndjson": ("events", "--output", "ndjson", "--replay", "{}"),
    "compare": ("compare", "{}", "{}"),
    "compare json": ("compare", "{}", "{}", "--output", "json"),
    "compare html": ("compare", "{}", "{}", "--output", "html", "--out", "{}.html"),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("cut", [0, 9])
def test_commands_that_play_a_recording(evil: Path, name: str, cut: int) -> None:
    evil.write_bytes(evil.read_bytes()[: -cut or None])
    done = run(*(arg.format(evil) for arg in COMMANDS[name]))
    assert done.returncode == 0, done.stderr
    clean(done.stdout)
    clean(done.stderr)


WRONG = {
    "no command": (EVIL,),
    "no option": ("top", f"--{EVIL}"),
    "option value": ("top", "--view", EVIL),
    "number": ("top", "-n", EVIL),
    "sort": ("top", "--once", "--replay", "demo", "--sort", EVIL),
    "filter": ("top", "--once", "--replay", "demo", "--filter", f"({EVIL}"),
    "cgroup": ("top", "--once", "--replay", "demo", "--cgroup", EVIL),
    "replay": ("top", "--once", "--replay", f"/none/{EVIL}"),
    "record": ("record", f"/none/{EVIL}"),
    "record elsewhere": ("record", "{}", "--connect", f"http://127.0.0.1:1/{EVIL}"),
    "connect": ("snapshot", "--connect", EVIL),
    "compare": ("compare", f"/none/{EVIL}", "demo"),
    "compare prometheus": ("compare", f"prometheus:{EVIL}", "demo"),
    "out": ("compare", "demo", "demo", "--out", f"/none/{EVIL}"),
    "password": ("compare", "http://127.0.0.1:1", "demo", "--user-a", "x", "--password-file-a", f"/none/{EVIL}"),
    "ca": ("compare", "http://127.0.0.1:1", "demo", "--ca-a", f"/none/{EVIL}"),
    "workload": ("compare", "demo", "demo", "--workload-a", f"/none/{EVIL}"),
    "churn": ("churn", "--mix", EVIL),
    "churn parent": ("churn", "--parent", f"/none/{EVIL}"),
    "doctor": ("doctor", "--without", EVIL),
    "web config": ("serve", "--replay", "demo", "--web.config.file", f"/none/{EVIL}"),
    "listen": ("serve", "--replay", "demo", "--web.listen-address", EVIL),
    "serve": ("serve", "--replay", f"/none/{EVIL}"),
    "include": ("serve", "--replay", "demo", "--cgroup.include", f"({EVIL}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str, tmp_path: Path) -> None:
    done = run(*(arg.replace("{}", str(tmp_path / "new")) for arg in WRONG[name]))
    assert done.returncode in (1, 2, 3), done.stderr
    clean(done.stderr)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("kmemwatch: ")
    assert [line for line in lines[1:] if not line.startswith("  hint: ")] == []
    assert len(lines) <= 2


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:
            code = int(self.path.split("/")[1])
            phrase = "\x1b]0;gone\x07\x1b[2J\x9b31m\x7f"
            self.wfile.write(f"HTTP/1.0 {code} {phrase}\r\n".encode("latin-1"))
            kind = "text/\x1b[31m\x9b" if code == 200 else "text/plain"
            self.wfile.write(f"Content-Type: {kind}\r\nLocation: http://\x1b[31m/\r\n\r\n".encode("latin-1"))
            self.wfile.write(b'{"error": "\\u001b[31m\\u202e\\nkmemwatch: all is well"}')

        do_POST = do_GET

    server = OwnServer(Handler)
    yield server.url
    server.stop()


@pytest.mark.parametrize("code", [200, 302, 400, 401, 404, 500, 503])
@pytest.mark.parametrize("command", ["snapshot", "top", "record", "compare", "prometheus"])
def test_what_servers_say(server: str, code: int, command: str, tmp_path: Path) -> None:
    url = f"{server}/{code}"
    args = {
        "snapshot": ("snapshot", "--connect", url),
        "top": ("top", "--once", "--connect", url),
        "record": ("record", str(tmp_path / "new"), "--connect", url),
        "compare": ("compare", url, "demo", "--duration", "1"),
        "prometheus": ("compare", f"prometheus:{url}", "demo"),
    }[command]
    done = run(*args)
    assert done.returncode in (1, 2), done.stderr
    clean(done.stderr)
    assert len(done.stderr.splitlines()) <= (3 if command == "record" else 2)


def test_lines_that_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    say("kmemwatch: plain \\x80 é 日本", EVIL)
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "kmemwatch: plain \\x80 é 日本"
    assert len(err.splitlines()) == 2
    clean(err)
    assert one_line("a\tb\nc\x1b\x9b\udc80") == r"a\tb\nc\x1b\u009b\x80"


# CSV


FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "=cmd|' /C calc'!A0",
    "'quoted",
    "\t=1",
    "\r=1",
    "\uff1d1",
    "-",
    "plain",
    "a=b",
)


def named(names: tuple[str, ...]) -> Snapshot:
    sample = fakes.sample()
    caches = tuple(replace(cache, name=printable(name)) for cache, name in zip(sample.caches * 9, names, strict=False))
    return replace(sample, caches=caches, pairs=())


def test_csv_cells_that_would_be_formulas_are_quoted() -> None:
    selection = select("caches")
    text = csv_header(selection.view) + csv_rows(frame(None, named(FORMULAS)), selection)
    cells = {row["cache"] for row in csv.DictReader(io.StringIO(text))}
    assert all(cell == "-" or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d")) for cell in cells)
    # What a program takes for the name: one quote less.
    back = {cell.removeprefix("'") for cell in cells}
    assert back == {name.replace("\t", "\\t").replace("\r", "\\r") for name in FORMULAS}
    assert len(cells) == len(FORMULAS)


def test_numbers_of_csv_stay_numbers() -> None:
    selection = select("cgroups")
    shown = frame(None, fakes.sample())
    (first, *_) = csv.DictReader(io.StringIO(csv_header(selection.view) + csv_rows(shown, selection)))
    assert float(first["kernel_bytes"]) > 0
    from kmemwatch.views.batch import _cell

    assert [_cell(value) for value in (-5, -0.5, None, 3)] == [-5, -0.5, None, 3]
