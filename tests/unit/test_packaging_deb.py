# SPDX-License-Identifier: GPL-2.0-only
"""What the Debian package declares, beside setup.cfg. tests/live/test_package.py builds and runs it."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "packaging/debian"
AT_DEBIAN = {"python3-yaml": "pyyaml"}
"""Package -> distribution, where the name does not tell."""


def bundled() -> dict[str, str]:
    """Name -> version."""
    texts = [(DEBIAN / name).read_text().replace("\\\n", "") for name in ("bundled.txt", "compiled.txt")]
    lines = (line.split() for text in texts for line in text.splitlines() if not line.startswith("#"))
    return {name: version for name, _, version, *_ in lines}


def depends() -> dict[str, str]:
    """Distribution -> least version, of what Debian gives."""
    (line,) = re.findall(r"^Depends: (.*)$", (DEBIAN / "control").read_text(), re.MULTILINE)
    found = re.findall(r"(python3-[a-z0-9-]+) \(>= ([0-9.]+)\)", line)
    return {AT_DEBIAN.get(name, name.removeprefix("python3-")): version for name, version in found}


def required() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("requirement", required(), ids=lambda requirement: requirement.name)
def test_every_requirement_is_bundled_or_debians(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    inside, outside = bundled(), depends()
    assert (name in inside) != (name in outside), "from exactly one of them"
    if name in inside:
        assert inside[name] in requirement.specifier
    else:
        (least,) = (one.version for one in requirement.specifier)
        assert outside[name] == least


def test_every_bundled_file_has_one_hash() -> None:
    lines = [line for line in (DEBIAN / "bundled.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) >= 5
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+ == [0-9.]+ --hash=sha256:[0-9a-f]{64}", line)


def test_what_is_compiled_has_a_hash_for_each_python_and_machine() -> None:
    versions, machines = (
        re.findall(rf"for {name} in (.*); do", (DEBIAN / "build").read_text())[0].split()
        for name in ("version", "machine")
    )
    names = re.findall(
        r"^[a-z0-9-]+ == [0-9.]+ ((?:\\\n    --hash=sha256:[0-9a-f]{64}\s+)+)",
        (DEBIAN / "compiled.txt").read_text(),
        re.M,
    )
    assert [one.count("--hash=") for one in names] == [len(versions) * len(machines)] * 2
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    assert set(classifiers) <= set(versions)
    (major, least), (_, most) = (map(int, one.split(".")) for one in (versions[0], versions[-1]))
    limits = f"python3 (>= {major}.{least}), python3 (<< {major}.{most + 1}), "
    assert limits in (DEBIAN / "control").read_text()


def test_every_bundled_package_has_its_licence_told() -> None:
    text = (DEBIAN / "copyright").read_text()
    modules = {"linkify-it-py": "linkify_it", "markdown-it-py": "markdown_it", "uc-micro-py": "uc_micro"}
    modules["google-re2"] = "re2"
    for name in bundled():
        assert f"usr/lib/kmemwatch/{modules.get(name, name.replace('-', '_'))}/*" in text


def test_the_command_and_the_build_speak_of_one_directory() -> None:
    assert 'sys.path.insert(0, "/usr/lib/kmemwatch")' in (DEBIAN / "kmemwatch").read_text()
    assert "private=$stage/usr/lib/kmemwatch" in (DEBIAN / "build").read_text()
    assert "py3compile -p kmemwatch /usr/lib/kmemwatch" in (DEBIAN / "postinst").read_text()
