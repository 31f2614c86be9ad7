# SPDX-License-Identifier: GPL-2.0-only
"""The process that attaches: warm from a kept start (`warm_start`), else cold with the compiler (`load`).

It sends the descriptors of maps, programs and links to its parent and exits. The kernel keeps programs attached as long
as a process holds those descriptors, so nothing outlives the parent, however the parent ends.

Run as ``python -m kmemwatch.attach.child FD OPTIONS`` with a Unix socket at descriptor FD and JSON options. A warm
start takes a tenth of a second in all, so this module imports little: a cold start imports the rest itself.
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

from kmemwatch.attach import warm_start
from kmemwatch.errors import KmemwatchError, shortage_of

if TYPE_CHECKING:  # imports bcc
    from kmemwatch.attach.load import Loaded

FDS_PER_MESSAGE = 200
"""The kernel passes at most 253 (SCM_MAX_FD) at once."""


def main(argv: Sequence[str], directory: Path | None = warm_start.DIRECTORY) -> int:
    """Entry point of the child; the exit status is 0 when it has sent a manifest or an error.

    `directory`: where starts are kept; None: nowhere.
    """
    connection = socket.socket(fileno=int(argv[1]))
    options = json.loads(argv[2])
    try:
        started = start(tuple(options["without"]), directory, options["latency"])
    except KmemwatchError as error:
        send_error(connection, error)
    except Exception as error:
        short = shortage_of(error, "the probes cannot be attached", bpf=True)
        if short is None:
            raise
        send_error(connection, short)
    else:
        send(connection, *started)
    return 0


def send(connection: socket.socket, manifest: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """One message with the manifest and the number of descriptors, then the descriptors.

    `manifest`: `handover.Manifest.to_raw`.
    """
    _send_text(connection, {"manifest": manifest, "descriptors": len(descriptors)})
    for start in range(0, len(descriptors), FDS_PER_MESSAGE):
        socket.send_fds(connection, [b"."], descriptors[start : start + FDS_PER_MESSAGE])


def send_error(connection: socket.socket, error: KmemwatchError) -> None:
    """Why nothing is attached."""
    _send_text(connection, {"error": type(error).__name__, "message": str(error), "hint": error.hint})


def _send_text(connection: socket.socket, message: Mapping[str, Any]) -> None:
    text = json.dumps(message).encode()
    connection.sendall(len(text).to_bytes(8, "little") + text)


def start(without: tuple[str, ...], directory: Path | None, latency: bool = False) -> warm_start.Started:
    """Attach. Raises KmemwatchError, but never because of files in `directory`: they only save time."""
    _lift_locked_memory()
    earlier = None if directory is None else _KeptStart(directory, without, latency)
    return (earlier and earlier.start()) or _start_cold(without, latency, earlier)


def _lift_locked_memory() -> None:
    """Before Linux v5.11, BPF maps count as locked memory, and the default limit is low."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):  # it takes CAP_SYS_RESOURCE
        pass


def _start_cold(without: tuple[str, ...], latency: bool, earlier: _KeptStart | None) -> warm_start.Started:
    from kmemwatch.attach import load as loader

    loaded = loader.load(without, latency)
    manifest = loaded.manifest.to_raw()
    if earlier is not None:
        earlier.replace(loaded, manifest)
    return warm_start.Started(manifest, loaded.descriptors)


class _KeptStart:
    """The start that is kept for these options. Any failure here leads to a cold start."""

    def __init__(self, directory: Path, without: tuple[str, ...], latency: bool) -> None:
        self._directory = directory
        self._without = without
        self._latency = latency
        self._key: dict[str, Any] | None = None

    def start(self) -> warm_start.Started | None:
        """None when nothing is kept, or when it does not attach."""
        try:
            self._key = warm_start.key(self._without, latency=self._latency)
            found = warm_start.load(self._directory, self._key)
            return None if found is None else warm_start.start_from(found)
        except Exception:  # noqa: BLE001 - a damaged file, another user's, a kernel that rejects a program now
            return None

    def replace(self, loaded: Loaded, manifest: Mapping[str, Any]) -> None:
        """Keep what has just been attached."""
        try:
            image = warm_start.image_of(loaded, manifest)
            if image is not None and self._key is not None:
                warm_start.save(self._directory, self._key, image)
        except Exception:  # noqa: BLE001 - /run is not writable, or the kernel does not describe its maps
            pass


if __name__ == "__main__":
    status = main(sys.argv)
    # Skip bcc's clean-up: it would disable the kprobes whose descriptors the parent has now.
    os._exit(status)
