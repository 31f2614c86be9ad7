# SPDX-License-Identifier: GPL-2.0-only
"""What every installation of kmemwatch must do, whichever libraries it has: help, wrong usage, a run of each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from kmemwatch.cli.main import COMMANDS
from tests.daemon import Daemon
from tests.processes import children

PATIENCE_S = 120
WRONG: dict[str, tuple[str, ...]] = {
    "no such command": ("nosuch",),
    "no such option": ("--nosuch",),
    **{f"{name}: no such option": (name, "--nosuch") for name in COMMANDS},
    "top: no number": ("top", "--delay", "x"),
    "top: no such choice": ("top", "--output", "pdf"),
    "serve: out of range": ("serve", "--interval", "0"),
    "serve: no such address": ("serve", "--web.listen-address", "nowhere"),
    "snapshot: no number": ("snapshot", "--duration", "x"),
    "events: never": ("events", "--duration", "nan"),
    "record: no file": ("record",),
    "compare: one side": ("compare", "demo"),
    "compare: no time": ("compare", "demo", "demo", "--range", "soon"),
    "churn: out of range": ("churn", "--cgroups", "0"),
    "doctor: no such choice": ("doctor", "--output", "pdf"),
}
ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Installation:
    """`command` makes of arguments what runs `kmemwatch` with them there."""

    command: Callable[..., list[str]]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRON, cwd="/",
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def works(self, *args: str) -> str:
        """What it prints."""
        done = self.run(*args)
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
        return done.stdout


# Tests for each module that has a fixture `commands`, which gives an Installation.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(commands: Installation, name: str) -> None:
    assert commands.works(name, "--help").startswith(f"Usage: kmemwatch {name} ")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line_and_2(commands: Installation, name: str) -> None:
    """One line that says what is wrong, and a hint; 2, so that systemd does not try again for ever."""
    done = commands.run(*WRONG[name])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    message, *hint = done.stderr.splitlines()
    assert re.match(r"kmemwatch: \w", message)
    assert len(hint) <= 1
    assert all(line.startswith("  hint: ") for line in hint)


def test_no_command_is_wrong_usage(commands: Installation) -> None:
    done = commands.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: kmemwatch ")


def check_playing(one: Installation, recording: str) -> None:
    """What reads a recording."""
    assert "CGROUP" in one.works("top", "--replay", recording, "--once")
    assert json.loads(one.works("snapshot", "--replay", recording))["cgroups"]
    one.works("events", "--replay", recording)


def check_comparing(one: Installation, a: str, b: str) -> None:
    """In all forms."""
    assert "3. Dead memcgs are let go sooner or later." in one.works("compare", a, b)
    assert len(json.loads(one.works("compare", a, b, "--output", "json"))["claims"]) == 5
    assert one.works("compare", a, b, "--output", "html").rstrip().endswith("</html>")


@contextmanager
def serving(command: list[str], *, inside: bool = False) -> Iterator[str]:
    """The URL of a `kmemwatch serve`; `inside`: `command` starts it in a process of its own, which gets the signal."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRON, cwd="/") as process:
        try:
            daemon = Daemon(process, PATIENCE_S)
            assert len(daemon.told) == 1, daemon.told
            yield daemon.metrics_url
        finally:
            # unshare waits for what it has started, and lets no signal through.
            for pid in (children(process.pid) if inside else []) or [process.pid]:
                os.kill(pid, signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0


def metrics(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def counted(url: str) -> bool:
    """Whether it serves allocations that were counted."""
    return re.search(r"^kmemwatch_cache_allocations_total\{.*dentry.*\} [1-9]", metrics(url), re.MULTILINE) is not None
