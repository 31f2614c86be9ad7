# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that we build, from the distribution's sources and the patches in tests/lab/linux.

An image is taken from the cache, or prebuilt from the directory that KMEMWATCH_LAB_PREBUILT names, or built. Beside
each image is a SHA256SUMS of the image and of what it was made from. An image that is damaged, or was made from other
patches or another configuration, is not used. `make lab-kernels` gets them all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.lab import archive

LINUX = Path(__file__).with_name("linux")
SETUP = Path(__file__).parents[2] / "scripts/setup"
PREBUILT = "KMEMWATCH_LAB_PREBUILT"
SUMS = "SHA256SUMS"

SUITES = ("bookworm", "bookworm-security")
PACKAGE = r"linux-source-6\.1"
SOURCE = "usr/src/linux-source-6.1.tar.xz"

# Documentation/x86/boot.rst of the kernel: where the setup header says where ``uname -r`` is.
_VERSION_POINTER, _VERSION_BASE = 0x20E, 0x200


def image(name: str, config: Path, cache: Path) -> Path:
    """Directory of the image of kernel `name`."""
    return cache / f"{name}-{digest(config)[:16]}" / f"bzImage-{name}"


def obtain(wanted: Mapping[str, Path], cache: Path) -> None:
    """Put the images of `wanted` (kernel's name -> configuration) into the cache. Raises FetchError.

    Those that must be built are built in one tree, which saves most of the time of all but the first.
    """
    missing = {}
    for name, config in wanted.items():
        kept = image(name, config, cache)
        if not kept.parent.exists():
            missing[name] = config
        elif not is_made_from(kept, config):
            raise archive.FetchError(f"{kept} is damaged: it is not what {SUMS} beside it says; remove {kept.parent}")
    for name in list(missing):
        if (found := prebuilt(name, missing[name])) is not None:
            _keep_image(found, name, missing.pop(name), cache)
    if missing:
        say(f"building {' and '.join(missing)} from {PACKAGE} of {SUITES[0]}: a quarter of an hour on two cores")
        subprocess.run([SETUP, "build"], check=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            tree = _source(Path(scratch))
            for name, config in missing.items():
                _keep_image(_build(name, config, tree, Path(scratch) / "build"), name, config, cache)


def prebuilt(name: str, config: Path) -> Path | None:
    """The image in the directory that KMEMWATCH_LAB_PREBUILT names; None, with a message, if it is not ours."""
    directory = os.environ.get(PREBUILT)
    if not directory:
        return None
    found = Path(directory) / f"bzImage-{name}"
    if is_made_from(found, config):
        return found
    say(f"{found}: not made from {LINUX.name}/*.patch and {config.name}, or damaged; not taken")
    return None


def is_made_from(made: Path, config: Path) -> bool:
    """Whether SHA256SUMS beside `made` has its hash, those of our patches, in order and no others, and of `config`."""
    try:
        lines = [line.split(maxsplit=1) for line in (made.parent / SUMS).read_text().splitlines()]
        sums = {name.lstrip("*"): digest for digest, name in lines}
        if sums.get(made.name) != _sha256(made):
            return False
    except (OSError, ValueError):
        return False
    patches = [sums[name] for name in sorted(sums) if name.endswith(".patch")]
    return patches == [_sha256(patch) for patch in _patches()] and _sha256(config) in sums.values()


def digest(config: Path) -> str:
    """Hashes of everything that decides the result, except the distribution's sources and the compiler."""
    return hashlib.sha256("".join(_sha256(path) for path in (*_patches(), config)).encode()).hexdigest()


def release(made: Path) -> str:
    """``uname -r`` of an image."""
    head = made.read_bytes()[: 1 << 16]
    at = int.from_bytes(head[_VERSION_POINTER : _VERSION_POINTER + 2], "little") + _VERSION_BASE
    return head[at : at + 256].split(b"\0")[0].decode().split(" ")[0]


def keep(made: Path, home: Path) -> None:
    """Move a directory to its final place, completely or not at all, also if interrupted. The first one wins."""
    try:
        made.rename(home)
    except OSError:  # another run was faster
        if not home.exists():
            raise


def _patches() -> list[Path]:
    return sorted(LINUX.glob("*.patch"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _keep_image(made: Path, name: str, config: Path, cache: Path) -> None:
    target = image(name, config, cache)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        shutil.copyfile(made, new / target.name)
        lines = [f"{_sha256(path)}  {path.name}\n" for path in (*_patches(), config, new / target.name)]
        (new / SUMS).write_text("".join(lines))
        keep(new, target.parent)


def _build(name: str, config: Path, tree: Path, output: Path) -> Path:
    began = time.monotonic()
    output.mkdir(exist_ok=True)
    shutil.copyfile(config, output / ".config")
    make = ["make", "-C", str(tree), f"O={output}", "LOCALVERSION=", f"-j{(os.cpu_count() or 1) + 1}"]
    archive.run([*make, "olddefconfig"])
    archive.run([*make, "bzImage"])
    made = output / "arch/x86/boot/bzImage"
    say(f"{name} is {release(made)}, built in {time.monotonic() - began:.0f} s")
    return made


def _source(scratch: Path) -> Path:
    """The distribution's sources with our patches."""
    (scratch / "apt").mkdir()
    archive.unpack(archive.download(SUITES, PACKAGE, scratch / "apt"), scratch / "package")
    archive.run(["tar", "-xf", str(scratch / "package" / SOURCE), "-C", str(scratch)])
    (tree,) = scratch.glob("linux-source-*")
    for patch in _patches():
        archive.run(["patch", "-p1", "--fuzz=0", "-d", str(tree), "-i", str(patch)])
    return tree


def say(text: str) -> None:
    """Print progress."""
    sys.stderr.write(f"lab: {text}\n")
