# SPDX-License-Identifier: GPL-2.0-only
"""The units: what they ask of systemd is known to it, and as hardened as the docs say."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kmemwatch.attach.warm_start import DIRECTORY
from kmemwatch.cli import serve
from kmemwatch.errors import UnsupportedError, UsageError
from kmemwatch.web.listening import DEFAULT_ADDRESS, OPTION
from kmemwatch.web.privileges import CAP_BPF, CAP_SETGID, CAP_SETPCAP, CAP_SETUID

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging/systemd"
SERVICE = (UNITS / "kmemwatch.service").read_text()
SOCKET = (UNITS / "kmemwatch.socket").read_text()
DEFAULT = (UNITS / "kmemwatch.default").read_text()
DOCS = (ROOT / "docs/running.md").read_text()


def value(setting: str, unit: str = SERVICE) -> str:
    (found,) = re.findall(rf"^{setting}=(.*)$", unit, re.MULTILINE)
    return str(found)


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.needs("systemd-analyze")
def test_its_exposure_is_the_one_of_the_docs() -> None:
    (score,) = re.findall(r"exposure level for kmemwatch.service: ([0-9.]+)", analyze(
        "security", "--offline=true", UNITS / "kmemwatch.service"))  # fmt: skip
    (stated,) = re.findall(r"exposure level of \*\*([0-9.]+)\*\*", DOCS)
    assert score == stated


@pytest.mark.needs("systemd-analyze")
def test_systemd_knows_every_setting() -> None:
    told = analyze("verify", UNITS / "kmemwatch.service", UNITS / "kmemwatch.socket")
    ours = [line for line in told.splitlines() if "kmemwatch" in line]
    # It is not installed here.
    assert [line for line in ours if "Command /usr/bin/kmemwatch is not executable" not in line] == []


@pytest.mark.needs("systemd-analyze")
def test_a_setting_that_systemd_does_not_know_is_told(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    broken = tmp_path / "kmemwatch.service"
    broken.write_text(SERVICE.replace("ProtectSystem=", "ProtectSistem="))
    assert "ProtectSistem" in analyze("verify", broken)


def test_what_does_not_get_better_is_not_tried_again() -> None:
    codes = {str(error.exit_code) for error in (UsageError, UnsupportedError)}
    assert set(value("RestartPreventExitStatus").split()) == codes


def test_its_directory_is_where_programs_are_kept() -> None:
    assert Path("/run", value("RuntimeDirectory")) == DIRECTORY
    assert value("RuntimeDirectoryMode") == "0700"


def test_it_can_give_up_what_it_has() -> None:
    numbers = {"CAP_SETGID": CAP_SETGID, "CAP_SETUID": CAP_SETUID, "CAP_SETPCAP": CAP_SETPCAP, "CAP_BPF": CAP_BPF}
    assert set(numbers) <= set(value("CapabilityBoundingSet").split())


def test_every_capability_is_in_the_docs() -> None:
    for capability in value("CapabilityBoundingSet").split():
        assert f"`{capability}`" in DOCS


def test_the_socket_is_the_default_address() -> None:
    assert value("ListenStream", SOCKET) == DEFAULT_ADDRESS


def examples() -> list[str]:
    return re.findall(r'ARGS="([^"]*)"', DEFAULT)


def test_there_are_examples() -> None:
    assert len(examples()) == 3
    assert value("EnvironmentFile") == "-/etc/default/kmemwatch"
    assert value("ExecStart") == "/usr/bin/kmemwatch serve $ARGS"


@pytest.mark.parametrize("arguments", examples())
def test_the_options_of_the_examples_exist(arguments: str) -> None:
    result = CliRunner().invoke(serve.command, [*shlex.split(arguments), "--help"])
    assert result.exit_code == 0
    known = set(re.findall(r"--[a-z.-]+", result.output))
    assert OPTION in known
    assert {word for word in shlex.split(arguments) if word.startswith("--")} <= known
