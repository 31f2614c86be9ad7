# SPDX-License-Identifier: GPL-2.0-only
"""The child's end of the hand-over. Imports next to nothing: a warm start takes a tenth of a second in all."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from kmemwatch.errors import KmemwatchError

FDS_PER_MESSAGE = 200
"""The kernel passes at most 253 (SCM_MAX_FD) at once."""


def send(channel: socket.socket, manifest: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """One message that says how many, then the descriptors. `manifest`: `handover.Manifest.to_raw`."""
    _send_text(channel, {"manifest": manifest, "descriptors": len(descriptors)})
    for start in range(0, len(descriptors), FDS_PER_MESSAGE):
        socket.send_fds(channel, [b"."], descriptors[start : start + FDS_PER_MESSAGE])


def send_error(channel: socket.socket, error: KmemwatchError) -> None:
    """Why there is nothing."""
    _send_text(channel, {"error": type(error).__name__, "message": str(error), "hint": error.hint})


def _send_text(channel: socket.socket, message: Mapping[str, Any]) -> None:
    text = json.dumps(message).encode()
    channel.sendall(len(text).to_bytes(8, "little") + text)
