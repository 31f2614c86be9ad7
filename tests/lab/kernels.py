# SPDX-License-Identifier: GPL-2.0-only
"""The lab's kernels: one table of them, and how to get their files."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab import archive, built

CACHE = Path(os.environ.get("KMEMWATCH_LAB_CACHE") or Path.home() / ".cache/kmemwatch/lab")
MODULES = ("virtio_pci", "virtio_blk", "9p", "9pnet_virtio", "crc32c_generic", "ext4")
"""What the guest needs before it has a file system; their dependencies come from modules.dep.

modules.dep does not know crc32c_generic, because ext4 asks for it by the name of its algorithm.
"""


COMMAND_LINES = {
    "kernel memory of nobody": "cgroup.memory=nokmem",
    "objects of KFENCE": "kfence.sample_interval=1",
}
"""Need -> the command line that the kernel needs."""


@dataclass(frozen=True)
class LabKernel:
    name: str
    suites: tuple[str, ...]
    """Debian suites that may have it; ``*-security`` ones are optional."""
    package: str
    """Regular expression for the whole package name; the highest number wins."""
    lacks: frozenset[str] = frozenset()
    """Keys of tests.needs.NEEDS that this kernel lacks."""
    config: str | None = None
    """For a kernel that we build: its configuration in tests/lab/linux. `package` then has the sources."""
    cgroup_version: int = 2
    """Of the hierarchy that has the memory controller."""
    directory: str = ""
    """In the cache; `name` if empty."""
    command_line: str = ""
    """Command line besides that of every guest."""

    @property
    def may_skip(self) -> frozenset[str]:
        """The needs for which this guest may skip tests; any other skip is a failure."""
        given = {need for need, words in COMMAND_LINES.items() if words not in self.command_line}
        return self.lacks | given | {"no lab", "cgroup v1" if self.cgroup_version == 2 else "cgroup v2"}


SHARED_CACHES = frozenset({"child caches", "recharges"})
"""Needs that no kernel with shared caches meets."""

BATCHES, TRIES = "watches freed in batches", "tries made of kmalloc"

KERNELS = (
    LabKernel(
        name="patched",
        suites=built.SUITES,
        package=built.PACKAGE,
        lacks=frozenset({"memcg tracepoints", BATCHES, "caches that all share"}),
        config="patched.config",
    ),
    LabKernel(
        name="baseline",
        suites=built.SUITES,
        package=built.PACKAGE,
        lacks=frozenset({"memcg tracepoints", BATCHES, "recharges", "caches that all share"}),
        config="baseline.config",
    ),
    LabKernel(
        name="5.10",
        suites=("bullseye", "bullseye-security"),
        package=r"linux-image-5\.10\.0-\d+-amd64",
        # The cache is an argument of the tracepoint since 6.1, memcg has tracepoints since 6.13.
        lacks=SHARED_CACHES
        | {"memcg tracepoints", "cache in tracepoints", "first choices"}
        | {"kernel memory in the cgroups' files", BATCHES, TRIES},
    ),
    LabKernel(
        name="6.1",
        suites=("bookworm", "bookworm-security"),
        package=r"linux-image-6\.1\.0-\d+-amd64",
        lacks=SHARED_CACHES | {"memcg tracepoints", BATCHES},
    ),
    LabKernel(
        name="6.12",
        suites=("trixie", "trixie-security"),
        package=r"linux-image-6\.12\.\d+\+deb13-amd64",
        lacks=SHARED_CACHES | {"memcg tracepoints"},
    ),
    LabKernel(
        name="7.x",
        suites=("sid",),
        package=r"linux-image-7\.\d+(\.\d+)?\+deb\d+-amd64",
        lacks=SHARED_CACHES | {TRIES},
    ),
)
"""Two that we build (tests/lab/linux), and Debian's stock kernels; all have BTF, kprobes and fentry."""

SMOKE = "6.1"
"""The kernel that every run of the tests boots."""

GUESTS = (
    *KERNELS,
    *(
        replace(kernel, name=f"{kernel.name}-v1", cgroup_version=1, directory=kernel.name)
        for kernel in KERNELS
        if kernel.name == SMOKE
    ),
)
"""Guests of the whole matrix: every kernel, and one of them a second time with cgroup v1."""


def _started_with(name: str, base: str, need: str, cgroup_version: int = 2) -> LabKernel:
    (kernel,) = (kernel for kernel in KERNELS if kernel.name == base)
    return replace(kernel, name=name, cgroup_version=cgroup_version, directory=base, command_line=COMMAND_LINES[need])


VARIANTS = (
    _started_with("6.1-nokmem", "6.1", "kernel memory of nobody"),
    _started_with("6.1-nokmem-v1", "6.1", "kernel memory of nobody", cgroup_version=1),
    # Of Debian's kernels up to 6.1 none has KFENCE.
    _started_with("6.12-kfence", "6.12", "objects of KFENCE"),
)
"""Kernels with another command line; they run the few tests for which it matters."""


@dataclass(frozen=True)
class KernelFiles:
    kernel: LabKernel
    release: str
    """``uname -r``."""
    vmlinuz: Path
    modules: Path | None
    """lib/modules/RELEASE, with depmod's files; None when everything is built in."""


def by_name(name: str) -> LabKernel:
    """Raises ValueError for a name that the table does not have."""
    for kernel in (*GUESTS, *VARIANTS):
        if kernel.name == name:
            return kernel
    raise ValueError(f"no kernel {name} in the lab; it has {', '.join(kernel.name for kernel in GUESTS)}")


def is_smoke() -> bool:
    """Whether KMEMWATCH_LAB_KERNELS is not set; then one kernel is booted as a smoke test."""
    return not os.environ.get("KMEMWATCH_LAB_KERNELS")


def selected() -> tuple[LabKernel, ...]:
    """SMOKE, or the kernels in KMEMWATCH_LAB_KERNELS: ``5.10,patched``, or ``all`` of GUESTS."""
    wanted = os.environ.get("KMEMWATCH_LAB_KERNELS") or SMOKE
    return GUESTS if wanted == "all" else tuple(by_name(name) for name in wanted.split(","))


def variants() -> tuple[LabKernel, ...]:
    """The variants of the kernels in `selected`; one variant of the kernel that every run boots."""
    names = {kernel.name for kernel in selected()}
    return tuple(kernel for kernel in VARIANTS if kernel.directory in names)[: 1 if is_smoke() else None]


def obtain(kernel: LabKernel) -> KernelFiles:
    """From the cache; else a stock kernel from the archive (70 MB to download, 400 MB unpacked, about 10 s).

    A kernel of our own is taken prebuilt if there is one, else built: see tests/lab/built.py. Raises FetchError.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    if kernel.config is not None:
        config = built.LINUX / kernel.config
        built.obtain({kernel.name: config}, CACHE)
        image = built.image(kernel.name, config, CACHE)
        return KernelFiles(kernel, built.release(image), image, None)
    home = CACHE / (kernel.directory or kernel.name)
    if not home.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            packages = archive.download(kernel.suites, kernel.package, Path(scratch))
            _unpack(packages, Path(scratch) / "root")
            built.keep(Path(scratch) / "root", home)
    (modules,) = (home / "lib/modules").iterdir()
    (vmlinuz,) = [*(home / "boot").glob("vmlinuz-*"), *modules.glob("vmlinuz")]
    return KernelFiles(kernel, modules.name, vmlinuz, modules)


def module_files(files: KernelFiles) -> list[Path]:
    """MODULES and what they depend on, in the order to load them; what is built in is left out."""
    if files.modules is None:
        return []
    dependencies: dict[str, list[str]] = {}
    for line in (files.modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        dependencies[path] = needed.split()
    paths = {_module_name(path): path for path in dependencies}
    order: dict[str, None] = {}
    for name in MODULES:
        if (module := paths.get(name)) is not None:
            # modules.dep lists the nearest first.
            order.update(dict.fromkeys([*reversed(dependencies[module]), module]))
    return [files.modules / path for path in order]


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _unpack(packages: list[Path], root: Path) -> None:
    archive.unpack(packages, root)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # newer packages have their modules here, where depmod does not look
    (modules,) = (root / "lib/modules").iterdir()
    # /sbin is not on the PATH of ordinary users.
    depmod = shutil.which("depmod", path="/sbin:/usr/sbin") or "depmod"
    archive.run([depmod, "-b", str(root), modules.name])


def main() -> None:
    """Get the kernels that KMEMWATCH_LAB_KERNELS names, building ours all at once, and print how long it took."""
    if not archive.has_debian_archive():
        built.say("this machine's apt has no Debian archive: tests in guests will be skipped")
        return
    began = time.monotonic()
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        built.obtain({k.name: built.LINUX / k.config for k in selected() if k.config is not None}, CACHE)
        for kernel in selected():
            built.say(f"{kernel.name} is {obtain(kernel).release}")
    except (archive.FetchError, ValueError) as error:
        raise SystemExit(f"lab: {error}") from None
    built.say(f"the kernels are there after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
