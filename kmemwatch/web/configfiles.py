# SPDX-License-Identifier: GPL-2.0-only
"""The files of a web configuration: read together, and again when one of them has changed.

They are read by the process that reads the kernel. The one that serves HTTP may not be able to: it gets their contents.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kmemwatch.errors import UsageError
from kmemwatch.units import printable
from kmemwatch.web.config import parse
from kmemwatch.web.configmodel import Pem, Web

MAX_BYTES = 1 << 20

_SETTLED_NS = 2_000_000_000

Signature = tuple[tuple[str, object], ...]


class WebFiles:
    """``--web.config.file`` and the files that it names."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: _Seen | None = None

    def load(self) -> Web:
        """Read everything. Raises UsageError that names file and key."""
        seen = self._seen = self._look()
        if isinstance(seen.result, UsageError):
            raise seen.result
        return seen.result

    def reload(self, use: Callable[[Web], None], broken: Callable[[str], None]) -> None:
        """If a file has changed, `use` what is there now, or say why it is `broken`.

        One that is being written is looked at again the next time.
        """
        before = self._seen
        if before is not None and before.is_settled and before.signature == _signature(before.paths):
            return
        seen = self._look()
        if seen.signature != _signature(seen.paths):
            return
        self._seen = seen
        if before is not None and (seen.signature, seen.contents) == (before.signature, before.contents):
            return
        if isinstance(seen.result, UsageError):
            broken(str(seen.result))
        else:
            use(seen.result)

    def _look(self) -> _Seen:
        seen = _Seen()
        try:
            config = parse(seen.read(self._path, str(self._path)), str(self._path))
            contents: dict[str, bytes] = {}
            problem: UsageError | None = None
            for pem in config.pems:
                # All of them, even if one is missing: a change of any is a reason to look again.
                try:
                    contents[pem.key] = self._content(pem, seen)
                except UsageError as error:
                    problem = problem or error
            seen.result = problem or Web(str(self._path), config, contents, time.time())
        except UsageError as error:
            seen.result = error
        return seen

    def _content(self, pem: Pem, seen: _Seen) -> bytes:
        if pem.path is None:
            return (pem.text or "").encode("utf-8")
        # Names in the file are relative to it.
        return seen.read(self._path.parent / pem.path, f"{self._path}: {pem.key}: {pem.path}")


class _Seen:
    """What one look at the files has found."""

    def __init__(self) -> None:
        self.result: Web | UsageError
        self.contents: list[bytes] = []
        self._states: list[tuple[str, object]] = []
        self._newest_ns = 0
        self._at_ns = time.time_ns()

    @property
    def signature(self) -> Signature:
        """Of each file before it was read: what changes while it is read is seen as a change later."""
        return tuple(self._states)

    @property
    def paths(self) -> list[Path]:
        """In the order in which they were read."""
        return [Path(path) for path, _ in self._states]

    @property
    def is_settled(self) -> bool:
        """No file was changed so shortly before that another change may have left the same times behind."""
        return self._at_ns - self._newest_ns > _SETTLED_NS

    def read(self, path: Path, name: str) -> bytes:
        """Contents of a file. Raises UsageError."""
        state = _state(path)
        self._states.append((str(path), state))
        if isinstance(state, tuple):
            self._newest_ns = max(self._newest_ns, state[0], state[1])
        self.contents.append(data := _read(path, name))
        return data


def _read(path: Path, name: str) -> bytes:
    try:
        # Who puts a FIFO in its place must not stop the one who reads.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            data = b""
            while len(data) <= MAX_BYTES and (part := file.read(MAX_BYTES + 1 - len(data))):
                data += part
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"{name}: {reason}", _HINTS.get(type(error))) from error
    except ValueError as error:  # NUL, or what is no text for a file system
        raise UsageError(f"{printable(name)}: not a name of a file") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES} bytes", "is it the right file?")
    return data


def _state(path: Path) -> tuple[int, int, int, int, int] | int | None:
    """Changes when a file does, also when a link to it is moved; a number when it cannot be had."""
    try:
        state = path.stat()
    except OSError as error:
        return error.errno
    except ValueError:
        return None
    return state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino, state.st_dev


def _signature(paths: Iterable[Path]) -> Signature:
    return tuple((str(path), _state(path)) for path in paths)


_HINTS = {
    FileNotFoundError: "names in the configuration are relative to its directory",
    PermissionError: "it must be readable for the user that runs kmemwatch, without capabilities: they are given up",
}
