# SPDX-License-Identifier: GPL-2.0-only
"""Reads a recording from its beginning, record by record, in memory that does not grow with the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, TypeVar

from kmemwatch.errors import UsageError
from kmemwatch.feeds.recording.files import Lines
from kmemwatch.feeds.recording.format import HEADER, MAGIC, Record, check_version, parse_line
from kmemwatch.feeds.user_files import without_waiting

T = TypeVar("T")

_OTHER_FILE_HINT = "recordings are written by: kmemwatch record FILE"


class RecordingReader:
    """Yields `Record`s; every error is a UsageError that starts with ``FILE:LINE``."""

    def __init__(self, path: str, name: str | None = None, descriptor: int | None = None) -> None:
        """`descriptor`: of the file if it is open already; the reader closes it."""
        self._name = name or path
        self._file = _open(path, self._name) if descriptor is None else os.fdopen(descriptor, "rb")
        try:
            self._lines = Lines(self._file)
        except OSError as exc:
            self._file.close()
            raise UsageError(f"{self._name}: cannot read: {exc.strerror}") from exc
        self._iterator = iter(self._lines)
        self.line = 0
        """Number of the line read last, from 1; in a gzip file, of the text inside."""

    @property
    def cut(self) -> str | None:
        """After the last record: one line that says where the file was cut off, or None when it is whole."""
        if not self._lines.cut:
            return None
        return f"{self._name}:{self.line + 1}: recording cut off here; this is all of it"

    @property
    def whole_bytes(self) -> int:
        """Size of the file without the unfinished record at its end."""
        return self._lines.whole_bytes

    @property
    def packed(self) -> bool:
        """Whether the file contains gzip data; its name does not matter."""
        return self._lines.packed

    @property
    def lines_after_whole(self) -> int:
        """Records read that lie behind `whole_bytes`: the gzip member that holds them has no end."""
        return self._lines.lines_after_whole

    def next(self) -> Record | None:
        """The next record; None at the end, or at the place where the file was cut off."""
        line = self._located(lambda: next(self._iterator, None), self.line + 1)
        if line is None:
            if self.line == 0:
                self._nothing()
            return None
        self.line += 1
        return self._located(lambda: self._parse(line), self.line)

    def parse(self, what: Callable[[], T]) -> T:
        """Call `what` (``record.snapshot``, ``record.event``); its errors get the place of the record read last."""
        return self._located(what, self.line)

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        self._file.close()

    def __enter__(self) -> RecordingReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parse(self, line: bytes) -> Record:
        if self.line == 1:
            if not line.startswith(MAGIC):
                raise UsageError("not a kmemwatch recording", _OTHER_FILE_HINT)
            check_version(line)
        record = parse_line(line, self.line - 1, self._lines.file_bytes)
        if self.line == 1 and record.type != HEADER:
            raise UsageError("damaged record, expected a header")
        return record

    def _nothing(self) -> None:
        if os.fstat(self._file.fileno()).st_size == 0:
            raise UsageError(f"{self._name}: empty file, not a kmemwatch recording", _OTHER_FILE_HINT)
        raise UsageError(f"{self._name}:1: not a kmemwatch recording, or cut off in its first line", _OTHER_FILE_HINT)

    def _located(self, what: Callable[[], T], line: int) -> T:
        try:
            return what()
        except UsageError as exc:
            hint = exc.hint or "copy the file again, or remove the line and those after it"
            raise UsageError(f"{self._name}:{line}: {exc}", hint) from exc
        except OSError as exc:
            raise UsageError(f"{self._name}:{line}: cannot read: {exc.strerror}") from exc


def _open(path: str, name: str) -> BinaryIO:
    try:
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115 - RecordingReader closes it
    except FileNotFoundError as exc:
        raise UsageError(f"{name}: no such file", "`demo` is the recording that ships with kmemwatch") from exc
    except OSError as exc:
        raise UsageError(f"{name}: cannot open: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UsageError(f"{name}: not a regular file", _OTHER_FILE_HINT)
    return file
