# SPDX-License-Identifier: GPL-2.0-only
"""Packages of any suite of the distribution's archive, checked by apt's own signatures.

The mirror is the one that this machine's apt uses; other suites of it are read with a private apt
directory, so that the machine's own package lists stay as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KERNEL_PARTS = ("image", "binary", "modules")
"""Since Debian's 7.x the image package is empty, and its parts have packages of their own."""


class FetchError(Exception):
    """A file is neither cached nor available. The message has the error of the tool that was to get it."""


def has_debian_archive() -> bool:
    """Whether apt of this machine has a Debian mirror and the keys to verify it."""
    return KEYRING.exists() and shutil.which("apt-get") is not None and bool(_mirrors())


def download(suites: Sequence[str], package: str, directory: Path) -> list[Path]:
    """Fetch the newest package whose whole name matches the regular expression; returns the .deb files.

    `directory` is empty, and apt's own files stay in it. Raises FetchError.
    """
    apt = _private_apt(suites, directory)
    run(["apt-get", *apt, "update", "-qq"])
    known = set(run(["apt-cache", *apt, "pkgnames"]).split())
    found = [name for name in known if re.fullmatch(package, name)]
    if not found:
        raise FetchError(f"no package matches {package} in {', '.join(suites)}")
    newest = max(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    parts = {newest.replace("-image-", f"-{part}-", 1) for part in KERNEL_PARTS}
    run(["apt-get", *apt, "download", "-qq", *sorted(known & parts)], cwd=directory)
    return sorted(directory.glob("*.deb"))


def unpack(packages: Sequence[Path], root: Path) -> None:
    """The files of .deb packages, below `root`; their scripts do not run."""
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(root)])


def run(command: list[str], cwd: Path | None = None) -> str:
    """Output of `command`; raises FetchError with its error output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        raise FetchError(f"{' '.join(command[:1] + command[-2:])}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _mirrors() -> dict[str, str]:
    """Label -> URI of the archives this machine uses: ``Debian``, ``Debian-Security``."""
    lines = run(["apt-get", "indextargets", "--format", "$(CREATED_BY)|$(LABEL)|$(REPO_URI)"]).splitlines()
    rows = [line.split("|") for line in lines]
    return {row[1]: row[2] for row in rows if row[0] == "Packages" and row[1].startswith("Debian")}


def _private_apt(suites: Sequence[str], directory: Path) -> list[str]:
    """Options for an apt with directories of its own that knows `suites` only."""
    mirrors = _mirrors()
    for sub in ("lists/partial", "archives/partial"):
        (directory / sub).mkdir(parents=True)
    lines = []
    for suite in suites:
        label = "Debian-Security" if suite.endswith("-security") else "Debian"
        if label in mirrors:
            lines.append(f"deb [signed-by={KEYRING}] {mirrors[label]} {suite} main\n")
    if not lines:
        raise FetchError("apt's configuration names no Debian mirror")
    (directory / "sources.list").write_text("".join(lines))
    (directory / "status").touch()
    settings = {
        "Dir::Etc::SourceList": directory / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": directory,
        "Dir::State::Status": directory / "status",
        "Dir::Cache": directory,
        "APT::Architecture": "amd64",
        # Root's files in root's cache directory: the unprivileged download user cannot write there.
        "APT::Sandbox::User": "root",
    }
    return [f"-o{key}={value}" for key, value in settings.items()]
