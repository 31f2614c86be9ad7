# SPDX-License-Identifier: GPL-2.0-only
"""Standard input, output and error that are closed, full, or read by nobody; and other errors of the environment."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from kmemwatch.cli.main import COMMANDS, report
from kmemwatch.cli.process import OutputError
from kmemwatch.errors import shortage_number, shortage_of
from kmemwatch.feeds.recording import RecordingWriter
from tests.unit import fakes
from tests.unit.test_cli import Terminal

KMEMWATCH = f"{sys.executable} -m kmemwatch"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that what is printed of it fills every buffer on the way."""
    path = tmp_path_factory.mktemp("streams") / "sample.kmw"
    with RecordingWriter(str(path)) as writer:
        writer.begin(fakes.sample())
        for seconds in range(0, 300, 3):
            writer.write_snapshot(fakes.sample(seconds))
            for event in fakes.EVENTS:
                writer.write_event(event)
    return path


PRINTING = {
    "top": "top --batch --replay {recording}",
    "top json": "top --once --output json --replay {recording}",
    "snapshot": "snapshot --duration 0 --replay {recording}",
    "snapshot csv": "snapshot --duration 0 --output csv --view caches --replay {recording}",
    "events": "events --replay {recording}",
    "compare": "compare {recording} {recording}",
    "help": "--help",
    "version": "--version",
    **{f"help of {name}": f"{name} --help" for name in COMMANDS},
}
"""What prints on standard output, and needs no kernel."""


def shell(command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    arguments = ["bash", "-c", command]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, env=env)


@pytest.mark.parametrize("name", PRINTING)
@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
def test_output_that_cannot_be_written_is_one_line(recording: Path, name: str, to: str, why: str) -> None:
    done = shell(f"{KMEMWATCH} {PRINTING[name].format(recording=recording)} {to}")
    assert done.stderr == f"kmemwatch: cannot write to standard output: {why}\n"
    assert done.returncode == 1


@pytest.mark.parametrize("name", ["top", "snapshot", "events", "compare"])
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_input_and_error_are_not_needed(recording: Path, name: str, closed: str) -> None:
    command = f"{KMEMWATCH} {PRINTING[name].format(recording=recording)}"
    as_ever, done = shell(command), shell(f"{command} {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (0, as_ever.stdout, "")


@pytest.mark.parametrize("name", ["top", "snapshot", "events", "compare", "help"])
def test_a_reader_that_goes_away_is_no_error(recording: Path, name: str) -> None:
    command = f"{KMEMWATCH} {PRINTING[name].format(recording=recording)}"
    done = shell(f"{command} | head -c 1; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout[1:], done.stderr) == ("0\n", "")


@pytest.mark.parametrize("to", ["2>/dev/full", "2>&-"])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(to: str) -> None:
    assert shell(f"{KMEMWATCH} top --once --replay /none {to}").returncode == 2


def test_a_note_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cut.kmw"
    with RecordingWriter(str(path)) as writer:
        writer.begin(fakes.sample())
        writer.write_snapshot(fakes.sample())
    path.write_bytes(path.read_bytes() + b'{"seq":2,')
    done = shell(f"{KMEMWATCH} snapshot --replay {path} 2>/dev/full")
    assert done.returncode == 0
    assert done.stdout.startswith("{")


def test_output_that_does_not_block_gets_everything(recording: Path) -> None:
    command = f"{KMEMWATCH} snapshot --duration 0 --indent 4 --replay {recording}"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen(shlex.split(command), cwd=ROOT, stdout=writer) as process:
        os.close(writer)
        time.sleep(1)
        with open(reader, encoding="utf-8") as file:
            text = file.read()
    assert process.returncode == 0
    assert text == shell(command).stdout


@pytest.mark.parametrize("encoding", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                      {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "ascii:strict"}])  # fmt: skip
@pytest.mark.parametrize("arguments", ["top --once", "snapshot --output csv", "snapshot", "events"])
def test_a_terminal_that_knows_ascii_only(tmp_path: Path, encoding: dict[str, str], arguments: str) -> None:
    path = tmp_path / "Aufnahme-字幕.kmw"
    sample = fakes.sample()
    odd = replace(sample, cgroups=(replace(sample.cgroups[0], path="/字幕"), *sample.cgroups[1:]))
    with RecordingWriter(str(path)) as writer:
        writer.begin(odd)
        writer.write_snapshot(odd)
        writer.write_event(replace(fakes.EVENTS[0], path="/字幕"))
    done = shell(f"{KMEMWATCH} {arguments} --replay {shlex.quote(str(path))}", env={**os.environ, **encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u5b57\u5e55" in done.stdout
    done = shell(f"{KMEMWATCH} {arguments} --replay /字幕", env={**os.environ, **encoding})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) <= 2
    assert "internal error" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_serve_serves_whatever_is_closed(recording: Path, tmp_path: Path, closed: str) -> None:
    address = f"unix:{tmp_path}/s"
    arguments = f"serve --replay {recording} --web.listen-address {address}"
    with subprocess.Popen(
        ["bash", "-c", f"exec {KMEMWATCH} {arguments} {closed}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for _ in range(300):
                got = shell(f"curl -s --max-time 5 --unix-socket {tmp_path}/s http://localhost/metrics").stdout
                if "kmemwatch_" in got or process.poll() is not None:
                    break
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert "kmemwatch_" in got
    assert process.returncode == 0
    assert "Traceback" not in said


def test_what_was_closed_is_open_in_our_children_too() -> None:
    program = """
import os, subprocess, sys
from kmemwatch.cli import process
os.dup2(1, 9)
for fd in range(3):
    os.close(fd)
process.prepare()
child = "import os; os.write(9, str([os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)]).encode())"
subprocess.run([sys.executable, "-c", child], pass_fds=[9], check=True)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == str(["/dev/null"] * 3)


@pytest.mark.parametrize("redirected", ["2>/dev/null", "</dev/null", "2>&-"])
def test_top_draws_only_where_a_terminal_is_at_both_ends(recording: Path, redirected: str) -> None:
    command = f"{KMEMWATCH} top -n 1 --replay {recording} {redirected}"
    code = f"import os; os.execv('/bin/bash', ['bash', '-c', {command!r}])"
    terminal = Terminal(code=code)
    assert terminal.wait() == 0
    os.close(terminal.fd)
    assert b"CGROUP" in terminal.output
    assert b"\x1b[?1049h" not in terminal.output


# Words


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), r"out of file descriptors \(the limit is \d+\)"),
        (OSError(errno.ENFILE, "x"), "this machine has too many files open"),
        (OSError(errno.ENOMEM, "x"), "out of memory"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOSPC, "x", "/var/x.kmw"), "/var/x.kmw: no space left on device"),
        (OSError(errno.EDQUOT, "x"), "disk quota exceeded"),
        (OSError(errno.EFBIG, "x"), "the file would be too large"),
        (BlockingIOError(errno.EAGAIN, "fork"), "out of processes or threads.*"),
        (RuntimeError("can't start new thread"), "out of processes or threads.*"),
        (ImportError("_ssl.so: failed to map segment from shared object"), "out of memory"),
        (ImportError("libz.so.1: cannot open shared object file: Error 24"), r"out of file descriptors.*"),
        (RecursionError("maximum recursion depth exceeded"), "the input is nested too deeply to be read"),
        (OutputError(errno.ENOSPC, "No space left on device"), "cannot write to standard output: No space left.*"),
        (OutputError(errno.EBADF, "Bad file descriptor"), "cannot write to standard output: it is closed"),
    ],
)
def test_errors_of_the_environment_are_in_plain_words(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == 1
    first, *hints = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"kmemwatch: {said}", first)
    assert all(hint.startswith("  hint: ") and "report" not in hint for hint in hints)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.EIO])
def test_other_errors_are_no_shortage(number: int) -> None:
    assert shortage_number(OSError(number, os.strerror(number))) is None
    assert shortage_number(os.strerror(number)) is None


@pytest.mark.parametrize(
    ("names", "locked", "is_shortage"),
    [(b"\0bpf_map_charge_memlock\0", 65536, True), (b"\0bpf_map_charge_init\0", 65536, True),
     (b"\0bpf_map_charge_init\0", -1, False), (b"\0bpf_map_area_alloc\0", 65536, False), (None, 65536, False)],
    ids=["4.18", "5.10", "5.10 without a limit", "5.11", "no BTF"],
)  # fmt: skip
def test_a_map_that_is_not_permitted_on_a_kernel_that_counts_it_as_locked_is_one_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: bytes | None, locked: int, is_shortage: bool
) -> None:
    btf = tmp_path / "vmlinux"
    if names is not None:
        btf.write_bytes(names)
    monkeypatch.setattr("kmemwatch.errors._BTF", btf)
    monkeypatch.setattr("resource.getrlimit", lambda which: (locked, locked))
    error = PermissionError(errno.EPERM, "Operation not permitted")
    for told in (error, "could not open bpf map: lost, error: Operation not permitted"):
        found = shortage_of(told, "the probes cannot be attached", bpf=True)
        assert (found is not None) == is_shortage
        assert found is None or str(found) == (
            f"the probes cannot be attached: out of locked memory (the limit is {locked})"
        )
    assert shortage_of(error) is None, "of a file it means what it says"


def test_words_are_kept_when_a_shortage_is_the_cause() -> None:
    error = ImportError("cannot import bcc")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert shortage_number(error) == errno.EMFILE


# Before there is anything that could report it


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("KeyboardInterrupt()", 130, ""),
        ("OSError(24, 'Too many open files')", 1, "kmemwatch: cannot start: [Errno 24] Too many open files\n"),
        ("MemoryError()", 1, "kmemwatch: cannot start: MemoryError\n"),
        ("ImportError('no click here')", 1, "kmemwatch: cannot start: no click here\n"),
    ],
)
def test_what_ends_it_while_it_is_read(error: str, code: int, said: str) -> None:
    program = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise {error}
sys.meta_path.insert(0, Finder())
sys.argv = ["kmemwatch", "--version"]
from kmemwatch.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
