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
from collections.abc import Iterable
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
        name="5.10",
        suites=("bullseye", "bullseye-security"),
        package=r"linux-image-5\.10\.0-\d+-amd64",
        # The cache is an argument of the tracepoint since 6.1, memcg has tracepoints since 6.13.
        lacks=frozenset({"memcg tracepoints", "cache in tracepoints", "first choices"}),
    ),
    LabKernel(
        name="6.1",
        suites=("bookworm", "bookworm-security"),
        package=r"linux-image-6\.1\.0-\d+-amd64",
        lacks=frozenset({"memcg tracepoints"}),
    ),
    LabKernel(
        name="6.12",
        suites=("trixie", "trixie-security"),
        package=r"linux-image-6\.12\.\d+\+deb13-amd64",
        lacks=frozenset({"memcg tracepoints"}),
    ),
    LabKernel(name="7.x", suites=("sid",), package=r"linux-image-7\.\d+(\.\d+)?\+deb\d+-amd64"),
)
"""Debian's stock kernels; all of them have BTF, kprobes, fentry and cgroup v2."""

SMOKE = "6.1"
"""The one that every run of the tests boots."""

NO_GUEST_HAS = frozenset({"no lab", "cgroup v1"})


@dataclass(frozen=True)
class KernelFiles:
    kernel: LabKernel
    release: str
    """``uname -r``."""
    vmlinuz: Path
    modules: Path
    """lib/modules/RELEASE, with depmod's files."""


def is_smoke() -> bool:
    """Whether nobody asked for certain kernels: one is booted to see that nothing is broken."""
    return not os.environ.get("KMEMWATCH_LAB_KERNELS")


def selected() -> tuple[LabKernel, ...]:
    """SMOKE, or those that KMEMWATCH_LAB_KERNELS names: ``5.10,6.12``, or ``all``."""
    wanted = os.environ.get("KMEMWATCH_LAB_KERNELS") or SMOKE
    if wanted == "all":
        return KERNELS
    by_name = {kernel.name: kernel for kernel in KERNELS}
    if unknown := set(wanted.split(",")) - set(by_name):
        raise ValueError(f"KMEMWATCH_LAB_KERNELS: no kernel {', '.join(sorted(unknown))} among {', '.join(by_name)}")
    return tuple(by_name[name] for name in wanted.split(","))


def obtain(kernel: LabKernel) -> KernelFiles:
    """From the cache, else from the archive (70 MB to download, 400 MB unpacked, about 10 s); raises FetchError."""
    home = CACHE / kernel.name
    if not home.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _download(kernel, Path(scratch))
            _unpack(Path(scratch).glob("*.deb"), Path(scratch) / "root")
            try:
                # Whole or not at all: an interrupted run must not leave half a kernel behind.
                (Path(scratch) / "root").rename(home)
            except OSError:  # another run was faster
                if not home.exists():
                    raise
    (modules,) = (home / "lib/modules").iterdir()
    (vmlinuz,) = [*(home / "boot").glob("vmlinuz-*"), *modules.glob("vmlinuz")]
    return KernelFiles(kernel, modules.name, vmlinuz, modules)


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


def _download(kernel: LabKernel, directory: Path) -> None:
    apt = _private_apt(kernel, directory)
    _run(["apt-get", *apt, "update", "-qq"])
    known = set(_run(["apt-cache", *apt, "pkgnames"]).split())
    images = [name for name in known if re.fullmatch(kernel.package, name)]
    if not images:
        raise FetchError(f"no package matches {kernel.package} in {', '.join(kernel.suites)}")
    newest = max(images, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    # Since Debian's 7.x the image package is empty, and its parts have packages of their own.
    parts = [newest.replace("-image-", f"-{part}-", 1) for part in ("image", "binary", "modules")]
    _run(["apt-get", *apt, "download", "-qq", *sorted(known.intersection(parts))], cwd=directory)


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


def _unpack(packages: Iterable[Path], root: Path) -> None:
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(root)])
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # where newer packages have their modules, and depmod does not look
    (modules,) = (root / "lib/modules").iterdir()
    # /sbin is not on the PATH of ordinary users.
    depmod = shutil.which("depmod", path="/sbin:/usr/sbin") or "depmod"
    _run([depmod, "-b", str(root), modules.name])


def _run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        raise FetchError(f"{' '.join(command[:1] + command[-2:])}: {done.stderr.strip()[-2000:]}")
    return done.stdout
