# SPDX-License-Identifier: GPL-2.0-only
"""The files of a web configuration: read together, and again when one of them has changed.

They are read by the process that reads the kernel. The one that serves HTTP may not be able to: it gets their contents.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from kmemwatch.errors import UsageError
from kmemwatch.exporter.webconfig import parse
from kmemwatch.exporter.webmodel import Pem, Web

MAX_BYTES = 1 << 20

Signature = tuple[tuple[str, object], ...]


class WebFiles:
    """``--web.config.file`` and the files that it names."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._paths: tuple[Path, ...] = (self._path,)
        self._seen: Signature | None = None

    def load(self) -> Web:
        """Read everything. Raises UsageError that names file and key."""
        self._paths = (self._path,)
        # Before reading: what changes while it is read is seen as a change next time.
        self._seen = self._signature()
        config = parse(self._read(self._path, str(self._path)), str(self._path))
        self._paths = (self._path, *(self._absolute(pem.path) for pem in config.pems if pem.path is not None))
        self._seen = self._signature()
        return Web(str(self._path), config, {pem.key: self._content(pem) for pem in config.pems}, time.time())

    def reload(self, use: Callable[[Web], None], broken: Callable[[str], None]) -> None:
        """If a file has changed, `use` what is there now, or say why it is `broken`."""
        if self._seen == self._signature():
            return
        try:
            web = self.load()
        except UsageError as error:
            broken(str(error))
        else:
            use(web)

    def _absolute(self, path: str) -> Path:
        """Names in the file are relative to it."""
        return self._path.parent / path

    def _content(self, pem: Pem) -> bytes:
        if pem.path is None:
            return (pem.text or "").encode("utf-8")
        return self._read(self._absolute(pem.path), f"{self._path}: {pem.key}: {pem.path}")

    def _read(self, path: Path, name: str) -> bytes:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UsageError(f"{name}: {reason}", _HINTS.get(type(error))) from error
        if len(data) > MAX_BYTES:
            raise UsageError(f"{name}: larger than {MAX_BYTES} bytes", "is it the right file?")
        return data

    def _signature(self) -> Signature:
        """Changes when a file does, also when a link to it is moved."""
        found: list[tuple[str, object]] = []
        for path in self._paths:
            try:
                state = path.stat()
                found.append((str(path), (state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)))
            except OSError as error:
                found.append((str(path), error.errno))
        return tuple(found)


_HINTS = {
    FileNotFoundError: "names in the configuration are relative to its directory",
    PermissionError: "it must be readable for the user that runs kmemwatch, without capabilities: they are given up",
}
