# SPDX-License-Identifier: GPL-2.0-only
"""The lab's kernels, and how to get them: from the distribution's archive, checked by apt's own signatures.

The mirror is the one that this machine's apt uses; other suites of it are read with a private apt
directory, so that the machine's own package lists stay as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("KMEMWATCH_LAB_CACHE") or Path.home() / ".cache/kmemwatch/lab")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MODULES = ("virtio_pci", "virtio_blk", "9p", "9pnet_virtio", "crc32c_generic", "ext4")
"""What the guest needs before it has a file system; their dependencies come from modules.dep.

crc32c_generic is one that modules.dep does not know of, as ext4 asks for it by its algorithm's name.
"""


class FetchError(Exception):
    """The kernel is not cached and cannot be had; the message says what apt said."""


@dataclass(frozen=True)
class LabKernel:
    name: str
    suites: tuple[str, ...]
    """Debian suites that may have it; ``*-security`` ones are optional."""
    package: str
    """Regular expression for the whole package name; the highest number wins."""
    lacks: frozenset[str] = frozenset()
    """Keys of tests.needs.NEEDS that this kernel does not have: the only skips that are in order there.

    NO_GUEST_HAS comes on top.
    """


KERNELS = (
    LabKernel(
        name="6.1",
        suites=("bookworm", "bookworm-security"),
        package=r"linux-image-6\.1\.0-\d+-amd64",
        # Introduced later: the tracepoints in 6.13.
        lacks=frozenset({"memcg tracepoints"}),
    ),
)
"""All kernels of the matrix. `make test` boots SMOKE only."""

SMOKE = "6.1"

NO_GUEST_HAS = frozenset({"no lab", "cgroup v1"})


@dataclass(frozen=True)
class KernelFiles:
    kernel: LabKernel
    release: str
    """``uname -r``."""
    vmlinuz: Path
    modules: Path
    """lib/modules/RELEASE, with depmod's files."""


def obtain(kernel: LabKernel) -> KernelFiles:
    """From the cache, else from the archive (70 MB to download, 400 MB unpacked, about 10 s); raises FetchError."""
    home = CACHE / kernel.name
    if not home.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _unpack(_download(kernel, Path(scratch)), Path(scratch) / "root")
            try:
                # Whole or not at all: an interrupted run must not leave half a kernel behind.
                (Path(scratch) / "root").rename(home)
            except OSError:  # another run was faster
                if not home.exists():
                    raise
    (vmlinuz,) = (home / "boot").glob("vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    return KernelFiles(kernel, release, vmlinuz, home / "lib/modules" / release)


def module_files(files: KernelFiles) -> list[Path]:
    """MODULES and what they depend on, in the order to load them; what is built in is left out."""
    dependencies: dict[str, list[str]] = {}
    for line in (files.modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        dependencies[path] = needed.split()
    by_name = {_module_name(path): path for path in dependencies}
    order: dict[str, None] = {}
    for name in MODULES:
        if (module := by_name.get(name)) is not None:
            # modules.dep lists the nearest first.
            order.update(dict.fromkeys([*reversed(dependencies[module]), module]))
    return [files.modules / path for path in order]


def has_debian_archive() -> bool:
    """Whether this machine's apt knows a Debian mirror, and the keys to check it with."""
    return KEYRING.exists() and shutil.which("apt-get") is not None and bool(_mirrors())


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _mirrors() -> dict[str, str]:
    """Label -> URI of the archives this machine uses: ``Debian``, ``Debian-Security``."""
    lines = _run(["apt-get", "indextargets", "--format", "$(CREATED_BY)|$(LABEL)|$(REPO_URI)"]).splitlines()
    rows = [line.split("|") for line in lines]
    return {row[1]: row[2] for row in rows if row[0] == "Packages" and row[1].startswith("Debian")}


def _download(kernel: LabKernel, directory: Path) -> Path:
    apt = _private_apt(kernel, directory)
    _run(["apt-get", *apt, "update", "-qq"])
    names = [name for name in _run(["apt-cache", *apt, "pkgnames"]).split() if re.fullmatch(kernel.package, name)]
    if not names:
        raise FetchError(f"no package matches {kernel.package} in {', '.join(kernel.suites)}")
    newest = max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    _run(["apt-get", *apt, "download", "-qq", newest], cwd=directory)
    (package,) = directory.glob("*.deb")
    return package


def _private_apt(kernel: LabKernel, directory: Path) -> list[str]:
    """Options for an apt with directories of its own that knows the suites of `kernel` only."""
    mirrors = _mirrors()
    for sub in ("lists/partial", "archives/partial"):
        (directory / sub).mkdir(parents=True)
    lines = []
    for suite in kernel.suites:
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


def _unpack(package: Path, root: Path) -> None:
    _run(["dpkg-deb", "-x", str(package), str(root)])
    (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
    # /sbin is not on the PATH of ordinary users.
    depmod = shutil.which("depmod", path="/sbin:/usr/sbin") or "depmod"
    _run([depmod, "-b", str(root), vmlinuz.name.removeprefix("vmlinuz-")])


def _run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        raise FetchError(f"{' '.join(command[:1] + command[-2:])}: {done.stderr.strip()[-2000:]}")
    return done.stdout
