# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what it prints, where errors go, and with which code it ends."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kmemwatch import __version__
from kmemwatch.cli import events, options
from kmemwatch.cli.main import COMMANDS, cli, report
from kmemwatch.cli.options import scope_path
from kmemwatch.cli.process import Terminated
from kmemwatch.errors import KmemwatchError, UnsupportedError, UsageError
from kmemwatch.feeds.feed import Feed
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import Event
from tests.unit import fakes
from tests.unit.fakes import FakeFeed

KMEMWATCH = [sys.executable, "-m", "kmemwatch"]


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> FakeFeed:
    """What every command opens."""
    fake = FakeFeed([fakes.sample(), fakes.sample(3), fakes.sample(6)], fakes.EVENTS, ends=True)

    def opened(*args: object, **more: object) -> Feed:
        return fake

    monkeypatch.setattr(options, "open_feed", opened)
    monkeypatch.setattr(events, "open_feed", opened)
    return fake


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "sample.kmw"
    with RecordingWriter(str(path)) as writer:
        writer.begin(fakes.sample())
        for seconds in range(0, 300, 3):
            writer.write_snapshot(fakes.sample(seconds))
            for event in fakes.EVENTS:
                writer.write_event(event)
    return path


# Help and start-up


def test_help_fits_one_screen_and_lists_every_command() -> None:
    done = run("--help")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    assert [name for name in COMMANDS if f"\n  {name} " not in done.output] == []


@pytest.mark.parametrize("command", ["top", "events"])
def test_help_of_a_command_fits_one_screen(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) <= 24


def test_no_command_is_wrong_usage_with_the_help_on_stderr() -> None:
    done = run()
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


def test_version() -> None:
    assert run("--version").output == f"kmemwatch {__version__}\n"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_of_the_table_is_there_and_helps_in_80_columns(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert all(len(line) <= 80 for line in done.output.splitlines())


def test_no_arguments_is_help_and_wrong_usage() -> None:
    done = run()
    assert done.exit_code == 2
    assert "Usage: kmemwatch" in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["top", "--help"], ["--version"], ["top", "--replay", "demo", "--once"]])
def test_no_heavy_module_is_loaded(args: list[str]) -> None:
    code = "\n".join((
        "import sys",
        "from kmemwatch.cli.main import main",
        f"sys.argv = ['kmemwatch', *{args!r}]",
        "try: main()",
        "except SystemExit: pass",
        "heavy = {'textual', 'prometheus_client', 'bcc', 'rich', '_hashlib'}",
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)",
    ))  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


# Errors


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nope"], "no such command 'nope'"),
        (["top", "--nope"], "no such option"),
        (["top", "--delay", "0"], "0.0 is not in the range"),
        (["top", "--delay", "nan"], "nan is not a number of seconds"),
        (["events", "--duration", "inf"], "inf is not a number of seconds"),
        (["top", "-n", "0"], "0 is not in the range"),
        (["top", "--once", "-n", "5"], "--once and --iterations cannot be used together"),
        (["top", "--once", "--view", "zombie"], "'zombie' is not one of"),
        (["top", "--once", "--sort", "speed"], "view cgroups has no field 'speed'"),
        (["top", "--once", "--filter", "("], "'(' is not a regular expression"),
        (["top", "--once", "--output", "json", "--sort", "state"], "--output json prints whole snapshots"),
        (["top", "--connect", "http://x", "--replay", "f"], "--connect and --replay cannot be used together"),
        (["top", "--replay", "f", "--without", "fentry"], "--without has no meaning with --replay"),
        (["top", "--once", "--replay", "/does/not/exist"], "/does/not/exist"),
        (["events", "--duration", "0"], "--duration"),
        (["events", "--output", "json"], "'json' is not one of"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint_and_exits_2(args: list[str], said: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    first, *hints = done.stderr.splitlines()
    assert first.startswith("kmemwatch: ")
    assert said in first
    assert len(hints) <= 1
    assert all(hint.startswith("  hint: ") for hint in hints)
    assert done.stdout == ""


def test_an_unknown_cgroup_exits_2(feed: FakeFeed) -> None:
    done = run("top", "--once", "--cgroup", "/nope")
    assert done.exit_code == 2
    assert "no memory cgroup '/nope' on db1" in done.stderr
    assert feed.closed == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KmemwatchError("disk full", "make room"), 1, "kmemwatch: disk full\n  hint: make room\n"),
        (UsageError("no such file"), 2, "kmemwatch: no such file\n"),
        (UnsupportedError("not root", "sudo"), 3, "kmemwatch: not root\n  hint: sudo\n"),
        (KmemwatchError("two\nlines\tand tabs"), 1, "kmemwatch: two lines and tabs\n"),
        (click.ClickException("Odd."), 1, "kmemwatch: Odd.\n"),
        (KeyboardInterrupt(), 130, ""),
        (Terminated(signal.SIGTERM), 143, ""),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("text"), 1, ""),
    ],
)
def test_errors_become_text_and_codes(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    assert capsys.readouterr().err == said


def test_a_bug_is_one_line_and_a_traceback_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(ZeroDivisionError("division by zero")) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[0] == "kmemwatch: internal error: ZeroDivisionError: division by zero"
    assert "KMEMWATCH_DEBUG=1" in said
    monkeypatch.setenv("KMEMWATCH_DEBUG", "1")
    report(ZeroDivisionError("division by zero"))
    assert "ZeroDivisionError" in capsys.readouterr().err


# top


def test_top_once_prints_one_table(feed: FakeFeed) -> None:
    done = run("top", "--once")
    assert done.exit_code == 0
    assert done.stdout.count("CGROUP") == 1
    assert "/kubepods.slice" in done.stdout
    assert feed.delays == [0, 1.0]
    assert feed.closed == 1


def test_top_without_a_terminal_prints_tables_to_the_end_of_the_feed(feed: FakeFeed) -> None:
    done = run("top", "-d", "3")
    assert done.exit_code == 0
    assert done.stdout.count("CGROUP") == 2
    assert feed.delays == [0, 3.0, 3.0, 3.0]


def test_top_with_one_snapshot_shows_it_without_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off = FakeFeed([fakes.sample()], ends=True, notice="cut off")
    monkeypatch.setattr(options, "open_feed", lambda *args, **more: cut_off)
    done = run("top", "--once")
    assert done.exit_code == 0
    assert "?" in done.stdout
    assert done.stderr == "kmemwatch: note: cut off\n"


def test_top_of_a_feed_without_snapshots_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "open_feed", lambda *args, **more: FakeFeed([], ends=True))
    assert run("top", "--once").exit_code == 1


def test_top_json_is_the_snapshot(feed: FakeFeed) -> None:
    done = run("top", "--once", "--output", "json")
    snapshot = json.loads(done.stdout)
    assert snapshot["schema"] == 1
    assert len(snapshot["cgroups"]) == len(fakes.CGROUPS)


def test_top_ndjson_rows_are_filtered_and_sorted(feed: FakeFeed) -> None:
    done = run("top", "-n", "2", "--output", "ndjson", "--view", "caches", "--filter", "inode", "--sort", "cache")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["ext4_inode_cache", "inode_cache", "proc_inode_cache", "shmem_inode_cache"]
    assert [row["cache"] for row in rows] == names * 2


def test_top_csv_has_one_header(feed: FakeFeed) -> None:
    done = run("top", "-n", "2", "--output", "csv", "--cgroup", "/system.slice")
    lines = done.stdout.splitlines()
    assert [line.startswith("taken_at,") for line in lines].count(True) == 1
    assert len(lines) == 1 + 2 * 6
    assert all("/system.slice" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (("top", "-n", "2", "--output", "csv"), 1),
        (("top", "-n", "2", "--output", "ndjson"), 0),
        (("snapshot", "--output", "csv"), 1),
    ],
)
def test_rows_that_this_kernel_cannot_have_are_told_once(
    feed: FakeFeed, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], lines: int
) -> None:
    monkeypatch.setattr("kmemwatch.cli.snapshot.open_feed", lambda *args, **more: feed)
    done = run(*command, "--view", "recharges")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == lines
    why = "recharges: no __memcg_kmem_recharge_slab: this kernel does not have the patch set"
    assert done.stderr == f"kmemwatch: note: {why}\n"


def test_no_rows_are_no_reason_for_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "open_feed", lambda *args, **more: FakeFeed([fakes.empty(), fakes.empty(3)]))
    done = run("top", "-n", "1", "--output", "csv", "--view", "zombies")
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (None, None), ("/", "/"), ("system.slice", "/system.slice"), ("/a//b/", "/a/b"), ("/sys/fs/cgroup", "/"),
        ("/sys/fs/cgroup/a/b", "/a/b"), ("/sys/fs/cgroup/memory/a", "/a"), ("/sys/fs/cgroups", "/sys/fs/cgroups"),
    ],
)  # fmt: skip
def test_scope_paths(text: str | None, path: str | None) -> None:
    assert scope_path(text) == path


# events


def test_events_as_text_and_ndjson(feed: FakeFeed) -> None:
    done = run("events")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == len(fakes.EVENTS)
    assert "online" in done.stdout.splitlines()[0]
    assert feed.closed == 1


def test_events_ndjson(feed: FakeFeed) -> None:
    rows = [json.loads(line) for line in run("events", "--output", "ndjson").stdout.splitlines()]
    assert [row["kind"] for row in rows] == [event.kind for event in fakes.EVENTS]


def test_events_name_the_cgroups_of_the_first_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Event(fakes.START_NS, "recharge", 2101, None, cache="dentry(3)", other_cgroup_id=4003, bytes=4096)
    monkeypatch.setattr(
        events, "open_feed", lambda *args, **more: FakeFeed([fakes.patched()], [moved], ends=True)
    )  # fmt: skip
    done = run("events")
    assert "/pod3f9c/cri-ctr-0b71 id=2101 " in done.stdout
    assert "from=/system.slice/run-u981.service from_id=4003 bytes=4.0K" in done.stdout


def test_events_end_after_their_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = FakeFeed([])
    monkeypatch.setattr(events, "open_feed", lambda *args, **more: quiet)
    started = time.monotonic()
    assert run("events", "--duration", "0.2").exit_code == 0
    assert 0.15 < time.monotonic() - started < 5
    assert quiet.closed == 1


# The feed


def test_open_feed_opens_a_recording(recording: Path) -> None:
    opened = options.open_feed(None, str(recording))
    assert opened.title == "sample.kmw"
    opened.close()


# Processes: pipes, signals, terminals


def test_a_reader_that_goes_away_is_no_error(recording: Path) -> None:
    script = f"{sys.executable} -m kmemwatch top -b --replay {recording} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("kmemwatch db1")
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_the_normal_end_of_a_running_command(recording: Path, signum: signal.Signals) -> None:
    command = [*KMEMWATCH, "events", "--duration", "60", "--replay", str(recording)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signum)
        _, said = process.communicate(timeout=20)
    assert said == ""
    assert process.returncode == 0


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *args: str, code: str | None = None) -> None:
        """`kmemwatch ARGS`; or a Python program that ends in it."""
        start = KMEMWATCH if code is None else [sys.executable, "-c", code]
        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
            os.execv(sys.executable, [*start, *args])

    def read_until(self, wanted: bytes, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while wanted not in self.output:
            assert time.monotonic() < end, self.output[-2000:]
            if not self._read():
                break
        assert wanted in self.output, self.output[-2000:]

    def _read(self) -> bool:
        ready, _, _ = select.select([self.fd], [], [], 0.1)
        try:
            part = os.read(self.fd, 65536) if ready else b" "
        except OSError:  # the other side has ended
            return False
        self.output += part if ready else b""
        return bool(part)

    def wait(self) -> int:
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(recording: Path) -> Iterator[Terminal]:
    one = Terminal("top", "--replay", str(recording))
    yield one
    os.close(one.fd)


@pytest.mark.parametrize("how", ["q", "ctrl+c", "SIGTERM", "SIGINT", "SIGHUP"])
def test_the_terminal_is_restored_however_top_ends(terminal: Terminal, how: str) -> None:
    terminal.read_until(b"memcgs 217 online")
    if how.startswith("SIG"):
        os.kill(terminal.pid, signal.Signals[how])
    else:
        os.write(terminal.fd, b"q" if how == "q" else b"\x03")
    code = terminal.wait()
    assert code == 0
    assert b"Traceback" not in terminal.output
    assert terminal.output.rindex(b"\x1b[?1049l") > terminal.output.rindex(b"\x1b[?1049h")
    assert terminal.output.rindex(b"\x1b[?25h") > terminal.output.rindex(b"\x1b[?25l")


def test_a_recording_that_breaks_while_it_plays_ends_the_screen_with_one_line(recording: Path) -> None:
    lines = recording.read_bytes().splitlines(keepends=True)
    lines[4] = b"not a record\n"
    recording.write_bytes(b"".join(lines))
    terminal = Terminal("top", "--replay", str(recording), "-d", "0.1")
    code = terminal.wait()
    os.close(terminal.fd)
    assert code == 2
    last = terminal.output.rpartition(b"\x1b[?1049l")[2]
    assert b"kmemwatch: " in last
    assert b"sample.kmw" in last
    assert b"Traceback" not in terminal.output


def test_a_bug_in_the_screen_restores_the_terminal_and_is_one_line(recording: Path) -> None:
    code = """
from kmemwatch.top.rowtable import RowTable
def render_line(self, y):
    raise ZeroDivisionError("boom")
RowTable.render_line = render_line
from kmemwatch.cli.main import main
main()
"""
    terminal = Terminal("top", "--replay", str(recording), code=code)
    assert terminal.wait() == 1
    os.close(terminal.fd)
    last = terminal.output.rpartition(b"\x1b[?1049l")[2]
    assert b"kmemwatch: internal error: ZeroDivisionError: boom" in last
    assert b"Traceback" not in terminal.output
