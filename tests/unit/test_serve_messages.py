# SPDX-License-Identifier: GPL-2.0-only
"""What the process that talks to clients says to the one that reads the kernel."""

from __future__ import annotations

import socket

import pytest

from kmemwatch.errors import UsageError
from kmemwatch.serve import messages


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{",
        b"\n",
        b"[]\n",
        b"5\n",
        b"\xff\n",
        b'{"error": "SystemExit", "message": "x", "hint": null}\n',
        b'{"error": []}\n',
        b'{"error": "UsageError"}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 70_000,
    ],
)
def test_anything_but_an_answer_is_none(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        assert messages.receive_answer(ours) in (False, said == b"[]\n")


def test_answers() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        messages.answer(theirs, None)
        messages.answer(theirs, UsageError("wrong", "right"))
        assert messages.receive_answer(ours)
        with pytest.raises(UsageError, match="wrong") as caught:
            messages.receive_answer(ours)
        assert caught.value.hint == "right"
