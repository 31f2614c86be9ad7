# SPDX-License-Identifier: GPL-2.0-only
"""The lowest versions that setup.cfg allows are tried: with them and nothing else, every command works.

A virtual environment has the wheel, the lowest versions of what it requires, and nothing of the distribution's.
"""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import every_command
from tests.every_command import (
    Installation,
    test_every_command_helps,
    test_no_command_is_wrong_usage,
    test_wrong_usage_is_one_line_and_2,
)
from tests.unit.test_packaging import built_wheel, copied_sources

__all__ = ["test_every_command_helps", "test_no_command_is_wrong_usage", "test_wrong_usage_is_one_line_and_2"]

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("a package index", "wheels of the lowest versions")

IMPORT_ALL = """
import importlib, pkgutil, kmemwatch
for module in pkgutil.walk_packages(kmemwatch.__path__, "kmemwatch."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""
VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({one.metadata["Name"]: one.version for one in m.distributions()}))
"""
SUITES = (
    "exporter_selection",
    "web_server",
    "web_access",
    "exporter_series",
    "web_protocol",
    "compare_output",
    "top",
)
"""Tests of what calls the libraries."""
# bcrypt before 4.1 makes no hash of a NUL, so that the test has none to ask with.
NO_HASH_OF_NUL = "tests/unit/test_web_access.py::test_passwords_of_all_kinds[nul\\x00byte]"


def lowest() -> dict[str, str]:
    """Name -> the version that setup.cfg has as the lowest."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    found: dict[str, str] = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        (least,) = requirement.specifier
        assert least.operator == ">=", f"{requirement}: the lowest version is not told"
        found[canonicalize_name(requirement.name)] = least.version
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the environment."""
    tmp = tmp_path_factory.mktemp("lowest")
    wheel = built_wheel(copied_sources(tmp / "source"), tmp, "wheel")
    constraints = tmp / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in lowest().items()))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp / "venv"], check=True)
    found = tmp / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", f"--python={found}", "install"]
    done = subprocess.run(
        [*pip, "--only-binary", ":all:", "-c", constraints, wheel], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return found


@pytest.fixture(scope="module")
def commands(python: Path) -> Installation:
    return Installation(lambda *args: [str(python.with_name("kmemwatch")), *args])


def output(python: Path, code: str) -> str:
    command = [str(python), "-I", "-W", "error::SyntaxWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_they_are_the_lowest(python: Path) -> None:
    there: dict[str, str] = {
        canonicalize_name(name): version for name, version in json.loads(output(python, VERSIONS)).items()
    }
    for name, version in lowest().items():
        assert Requirement(f"{name}=={version}").specifier.contains(there[name]), name
    assert not {"scipy", "numpy", "bcc", "pytest"} & there.keys()


def test_every_module_has_what_it_imports(python: Path) -> None:
    """bcc is the distribution's, and not here: it is loaded when probes are attached."""
    modules = output(python, IMPORT_ALL).split()
    assert {"kmemwatch.top.topapp", "kmemwatch.compare.html", "kmemwatch.attach.load"} <= set(modules)


def test_a_recording_is_played_and_compared(commands: Installation) -> None:
    every_command.check_playing(commands, "demo")
    every_command.check_comparing(commands, "demo", "demo")


def test_a_daemon_is_scraped_and_recorded(commands: Installation, tmp_path: Path) -> None:
    file = str(tmp_path / "daemon.kmw.gz")
    with every_command.serving(
        commands.command("serve", "--replay", "demo", "--web.listen-address", "127.0.0.1:0")
    ) as url:
        assert every_command.counted(url)
        address = url.removesuffix("/metrics")
        commands.works("record", file, "--connect", address, "--duration", "2", "--interval", "0.5")
        assert json.loads(commands.works("snapshot", "--connect", address))["cgroups"]
    every_command.check_playing(commands, file)
    every_command.check_comparing(commands, file, "demo")


def test_without_bcc_it_says_so(commands: Installation) -> None:
    done = commands.run("snapshot")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) <= 2


def test_what_calls_the_libraries_passes_its_own_tests(python: Path) -> None:
    """pytest and its like come after the lowest versions on the path, and so does nothing that is tested."""
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    of_the_tests = [path for path in sys.path if path.endswith("site-packages")]
    (site / "tests.pth").write_text("".join(f"{path}\n" for path in of_the_tests))
    try:
        files = [f"tests/unit/test_{name}.py" for name in SUITES]
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:textual-snapshot", "--deselect", NO_HASH_OF_NUL]
        done = subprocess.run(
            [python, "-m", "pytest", *options, *files], cwd=ROOT, capture_output=True, text=True, check=False
        )
    finally:
        (site / "tests.pth").unlink()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
