# SPDX-License-Identifier: GPL-2.0-only
"""The first file system of a guest: busybox, a few modules and init, as a cpio archive ("newc")."""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable
from pathlib import Path

BUSYBOX = Path("/bin/busybox")


def write_initramfs(target: Path, init: str, modules: Iterable[Path]) -> None:
    """Write an archive that loads `modules` in the order given when `init` runs insmod over /modules/*."""
    archive = bytearray()
    for directory in ("bin", "dev", "proc", "sys", "modules", "new"):
        archive += _entry(directory, stat.S_IFDIR | 0o755)
    archive += _entry("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes())
    archive += _entry("init", stat.S_IFREG | 0o755, init.encode())
    for number, module in enumerate(modules):
        archive += _entry(f"modules/{number:02d}-{module.name.split('.')[0]}.ko", stat.S_IFREG | 0o644, _plain(module))
    archive += _entry("TRAILER!!!", 0)
    target.write_bytes(archive)


def _plain(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    # inode, mode, uid, gid, nlink, mtime, size, device numbers (4), length of the name, checksum
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(f"{field:08x}".encode() for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
