# SPDX-License-Identifier: GPL-2.0-only
"""What ships: the BPF sources, headers and data files, in a wheel and in an editable install alike.

Offline: nothing is downloaded; the build back end is the one of the environment that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("kmemwatch", "bpf")
LIST_BPF = """
from importlib.resources import files
def walk(directory, prefix=""):
    for entry in directory.iterdir():
        if entry.is_dir():
            walk(entry, f"{prefix}{entry.name}/")
        else:
            print(prefix + entry.name)
walk(files("kmemwatch.bpf"))
"""


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_sources(tmp_path_factory.mktemp("source"))


def copied_sources(tree: Path) -> Path:
    """A copy of what a build reads, as builds leave files behind."""
    tree.mkdir(exist_ok=True)
    for name in SHIPPED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def install(venv: Path, wheel: Path) -> Path:
    """A throwaway environment with `wheel` in it and nothing else; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", f"--python={python}"]
    done = subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", wheel], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def output(python: Path, code: str) -> set[str]:
    # From a directory without the sources, so that only what is installed can be found.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=python.parent, env=env, check=True)
    return set(done.stdout.splitlines())


def files_below(directory: Path) -> set[str]:
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment that has kmemwatch from a wheel, or from an editable install."""
    tmp = tmp_path_factory.mktemp(request.param)
    return install(tmp / "venv", built_wheel(source_tree, tmp, request.param))


def built_wheel(source_tree: Path, directory: Path, kind: str) -> Path:
    """`kind`: wheel or editable."""
    # What `pip install` and `pip install -e` call; pip itself would run it in the throwaway environment,
    # which has no setuptools.
    code = f"from setuptools.build_meta import build_{kind} as build; build({str(directory)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source_tree, capture_output=True, text=True, check=True)
    (wheel,) = directory.glob("kmemwatch-*.whl")
    return wheel


def test_every_bpf_source_is_found(installed: Path) -> None:
    found = output(installed, LIST_BPF)
    expected = files_below(ROOT / "bpf")
    assert [name for name in expected if name.endswith(".c")], "bpf/ has no C program"
    assert "include/include/linux/kconfig.h" in expected
    assert sorted(expected - found) == []


def test_every_file_of_the_package_is_there(installed: Path) -> None:
    package = output(installed, "import kmemwatch; print(kmemwatch.__path__[0])").pop()
    assert not package.startswith(str(ROOT))
    assert sorted(files_below(ROOT / "kmemwatch") - files_below(Path(package))) == []


def test_version_is_the_one_of_the_code(installed: Path) -> None:
    code = "import kmemwatch, importlib.metadata as m; print(m.version('kmemwatch') == kmemwatch.__version__)"
    assert output(installed, code) == {"True"}
