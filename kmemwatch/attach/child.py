# SPDX-License-Identifier: GPL-2.0-only
"""The child that attaches: warm from what an earlier start has kept (`image`), else cold with the compiler (`loader`).

It sends the descriptors of maps, programs and links to its parent and exits. The kernel keeps what is attached for as
long as somebody holds those descriptors, so nothing outlives the parent, however that ends.

Run as ``python -m kmemwatch.attach.child FD OPTIONS`` with a Unix socket at descriptor FD and JSON options. What a
cold start alone needs is imported there.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmemwatch.attach import channel, image, store
from kmemwatch.errors import KmemwatchError, shortage_of

if TYPE_CHECKING:  # imports bcc's world
    from kmemwatch.attach.load import Loaded


def main(argv: Sequence[str], directory: Path | None = store.DIRECTORY) -> int:
    """Entry point of the child; the exit status is 0 when a manifest or an error was sent.

    `directory`: where images are kept; None: nowhere.
    """
    connection = socket.socket(fileno=int(argv[1]))
    options = json.loads(argv[2])
    try:
        started = start(tuple(options["without"]), directory, options["latency"])
    except KmemwatchError as error:
        channel.send_error(connection, error)
    except Exception as error:
        short = shortage_of(error, "the probes cannot be attached", bpf=True)
        if short is None:
            raise
        channel.send_error(connection, short)
    else:
        channel.send(connection, *started)
    return 0


def start(without: tuple[str, ...], directory: Path | None, latency: bool = False) -> image.Started:
    """Attach. Raises KmemwatchError, and never for what is kept in `directory`, or cannot be: that only saves time."""
    _lift_locked_memory()
    kept = None if directory is None else _Kept(directory, without, latency)
    return (kept and kept.start()) or _start_cold(without, latency, kept)


def _lift_locked_memory() -> None:
    """Before Linux v5.11 BPF maps count as locked memory, of which there is little by default."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):  # it takes CAP_SYS_RESOURCE
        pass


def _start_cold(without: tuple[str, ...], latency: bool, kept: _Kept | None) -> image.Started:
    from kmemwatch.attach import load as loader

    loaded = loader.load(without, latency)
    manifest = loaded.manifest.to_raw()
    if kept is not None:
        kept.replace(loaded, manifest)
    return image.Started(manifest, loaded.descriptors)


class _Kept:
    """What is kept for starts like this one. Whatever goes wrong with it, the compiler can do without."""

    def __init__(self, directory: Path, without: tuple[str, ...], latency: bool) -> None:
        self._directory = directory
        self._without = without
        self._latency = latency
        self._key: dict[str, Any] | None = None

    def start(self) -> image.Started | None:
        """None when there is nothing to start from, or it does not start."""
        try:
            self._key = store.key(self._without, latency=self._latency)
            found = store.load(self._directory, self._key)
            return None if found is None else image.start(found)
        except Exception:  # noqa: BLE001 - a damaged file, one that is not ours, a kernel that now says no
            return None

    def replace(self, loaded: Loaded, manifest: Mapping[str, Any]) -> None:
        """Keep what has just been attached."""
        try:
            taken = image.take(loaded, manifest)
            if taken is not None and self._key is not None:
                store.save(self._directory, self._key, taken)
        except Exception:  # noqa: BLE001 - a /run that cannot be written to, a kernel that tells too little
            pass


if __name__ == "__main__":
    status = main(sys.argv)
    # No clean-up of bcc's: it would switch off the kprobes whose descriptors we have just given away.
    os._exit(status)
