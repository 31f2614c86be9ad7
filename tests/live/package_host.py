# SPDX-License-Identifier: GPL-2.0-only
"""This machine as a package finds it: its files under a layer in memory, so that no change stays.

It is a mount namespace that ends with the process that holds it. The kernel is this machine's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAKE = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/host
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/host
for name in dev proc sys; do mount --rbind /$name /mnt/host/$name; done
mount -t tmpfs none /mnt/host/run
mount -t tmpfs none /mnt/host/tmp
echo made
exec sleep infinity
"""


class PackageHost:
    """Commands run as root in it; /run and /tmp are empty at first."""

    def __init__(self, holder: int) -> None:
        self._holder = holder
        self._enter = ["nsenter", f"--mount=/proc/{holder}/ns/mnt"]

    def command(self, *command: str, unshare: tuple[str, ...] = ()) -> list[str]:
        """`command` inside it, in further namespaces if given."""
        outer = ["unshare", *unshare] if unshare else []
        return [*self._enter, *outer, "chroot", "/mnt/host", "env", "-C", "/", *command]

    def run(self, *command: str) -> str:
        """What it prints; if it fails, so does the test."""
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(self.command(*command), capture_output=True, text=True, env=environ, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def put(self, file: Path, to: str) -> None:
        """Copy a file of ours into it."""
        with file.open("rb") as content:
            subprocess.run(self.command("sh", "-c", f"cat > {to}"), stdin=content, check=True)

    def changed(self) -> set[str]:
        """Paths that are there and not on this machine, or differ, or are gone; of /run as well.

        A directory that is as before is none of them, though what was in it for a while made a copy of it.
        """
        inside = Path(f"/proc/{self._holder}/root/mnt")
        upper, run = inside / "upper", inside / "host/run"
        found = {
            path.relative_to(upper) for path in upper.rglob("*") if not _is_copy(path, "/" / path.relative_to(upper))
        }
        found |= {"run" / path.relative_to(run) for path in run.rglob("*")}
        return {f"./{path}" for path in found}


def _is_copy(upper: Path, below: Path) -> bool:
    """Whether `upper` is a directory that stands for the one below it, with everything that is there."""
    if upper.is_symlink() or below.is_symlink() or not (upper.is_dir() and below.is_dir()):
        return False
    if "trusted.overlay.opaque" in os.listxattr(upper):
        return False
    ours, theirs = upper.stat(), below.stat()
    return (ours.st_mode, ours.st_uid, ours.st_gid) == (theirs.st_mode, theirs.st_uid, theirs.st_gid)


@contextmanager
def package_host() -> Iterator[PackageHost]:
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MAKE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "made\n"
            yield PackageHost(holder.pid)
        finally:
            holder.kill()
