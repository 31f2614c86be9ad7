# SPDX-License-Identifier: GPL-2.0-only
"""What the README shows of the recording that ships with kmemwatch is what the commands print, 110 columns wide."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from kmemwatch.cli.main import cli

README = (Path(__file__).parents[2] / "README.md").read_text()
SAMPLES = [part.partition("\n") for part in README.split("$ kmemwatch ")[1:] if part.startswith("top --replay demo")]


@pytest.mark.parametrize(("command", "printed"), [(line, after.split("```")[0].strip()) for line, _, after in SAMPLES])
def test_samples_are_what_the_command_prints(command: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    result = CliRunner().invoke(cli, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert f"{printed}\n" in result.output, "or the README is older than the screen"


def test_both_views_are_shown() -> None:
    assert len(SAMPLES) == 2
