# SPDX-License-Identifier: GPL-2.0-only
"""The files of a web configuration: read together, and again when one of them changes.

The process that reads the kernel reads them, because the one that serves HTTP may not have the rights. It sends the
contents to that one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kmemwatch.errors import UsageError
from kmemwatch.units import printable
from kmemwatch.web.config import LoadedConfig, Pem

MAX_BYTES = 1 << 20

_SETTLED_NS = 2_000_000_000
"""File systems may give two changes within this time the same time stamp."""

Signature = tuple[tuple[str, object], ...]


class WebConfigFiles:
    """``--web.config.file`` and the files that it names."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._last: _Reading | None = None

    def load(self) -> LoadedConfig:
        """Read all files. Raises UsageError that names file and key."""
        reading = self._last = self._read_all()
        if isinstance(reading.result, UsageError):
            raise reading.result
        return reading.result

    def reload(self, use: Callable[[LoadedConfig], None], broken: Callable[[str], None]) -> None:
        """If a file has changed, call `use` with the new configuration, or `broken` with the reason why it is none.

        A file that changes during the reading is read again next time.
        """
        before = self._last
        if before is not None and before.is_settled and before.signature == _signature(before.paths):
            return
        reading = self._read_all()
        if reading.signature != _signature(reading.paths):
            return
        self._last = reading
        if before is not None and (reading.signature, reading.contents) == (before.signature, before.contents):
            return
        if isinstance(reading.result, UsageError):
            broken(str(reading.result))
        else:
            use(reading.result)

    def _read_all(self) -> _Reading:
        # Not at the top: a daemon without a configuration has no use for a YAML parser in its memory.
        from kmemwatch.web.configformat import parse

        reading = _Reading()
        try:
            config = parse(reading.read(self._path, str(self._path)), str(self._path))
            contents: dict[str, bytes] = {}
            problem: UsageError | None = None
            for pem in config.pems:
                # Read all files even if one is missing: a change of any of them is a reason to read again.
                try:
                    contents[pem.key] = self._content(pem, reading)
                except UsageError as error:
                    problem = problem or error
            reading.result = problem or LoadedConfig(str(self._path), config, contents, time.time())
        except UsageError as error:
            reading.result = error
        return reading

    def _content(self, pem: Pem, reading: _Reading) -> bytes:
        if pem.path is None:
            return (pem.text or "").encode("utf-8")
        # Names in the configuration are relative to its directory.
        return reading.read(self._path.parent / pem.path, f"{self._path}: {pem.key}: {pem.path}")


class _Reading:
    """What one reading of the files has found."""

    def __init__(self) -> None:
        self.result: LoadedConfig | UsageError
        self.contents: list[bytes] = []
        self._states: list[tuple[str, object]] = []
        self._newest_ns = 0
        self._at_ns = time.time_ns()

    @property
    def signature(self) -> Signature:
        """Of each file before it was read, so that a change during the reading counts as a change later."""
        return tuple(self._states)

    @property
    def paths(self) -> list[Path]:
        """In the order of reading."""
        return [Path(path) for path, _ in self._states]

    @property
    def is_settled(self) -> bool:
        """No file changed so shortly before the reading that a later change could have the same time stamp."""
        return self._at_ns - self._newest_ns > _SETTLED_NS

    def read(self, path: Path, name: str) -> bytes:
        """The content of a file. Raises UsageError."""
        state = _state(path)
        self._states.append((str(path), state))
        if isinstance(state, tuple):
            self._newest_ns = max(self._newest_ns, state[0], state[1])
        self.contents.append(data := _read(path, name))
        return data


def _read(path: Path, name: str) -> bytes:
    try:
        # A FIFO in place of the file must not block this process.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            data = b""
            while len(data) <= MAX_BYTES and (part := file.read(MAX_BYTES + 1 - len(data))):
                data += part
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"{name}: {reason}", _HINTS.get(type(error))) from error
    except ValueError as error:  # NUL, or characters that a file name cannot have
        raise UsageError(f"{printable(name)}: not a name of a file") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES} bytes", "is it the right file?")
    return data


def _state(path: Path) -> tuple[int, int, int, int, int] | int | None:
    """Changes when the file changes, or a link points to another file; an errno when there is none."""
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
