# SPDX-License-Identifier: GPL-2.0-only
"""Appends to a recording so that at any moment, power cuts included, all but the last record is readable."""

from __future__ import annotations

import fcntl
import os
import stat
from types import TracebackType

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.model import Event, Host, Snapshot
from kmemwatch.recording.files import compress
from kmemwatch.recording.format import HEADER, Record, event_line, header_line, snapshot_line
from kmemwatch.recording.reader import RecordingReader
from kmemwatch.units import printable

_NEW_FILE_HINT = "record to another file"


class RecordingWriter:
    """One run of snapshots, at the end of a new file or of a recording of the same host and boot.

    Raises UsageError when the file cannot be appended to, KmemwatchError when writing fails (disk full).
    """

    def __init__(self, path: str, first: Snapshot) -> None:
        """`first` is what the header is about; it is not written itself."""
        self.path = path
        self.notice: str | None = None
        """One line about what was found at the end of an older file, or None."""
        self._packed = path.endswith(".gz")
        self._fd = _open(path)
        try:
            self._size, self._seq = self._continue(first.host)
            self._append(header_line(self._seq, first))
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self._size

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Append a Snapshot."""
        self._append(snapshot_line(self._seq, snapshot))

    def write_event(self, event: Event) -> None:
        """Append an Event."""
        self._append(event_line(self._seq, event))

    def close(self) -> None:
        """Let go of the file; harmless when called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _continue(self, host: Host) -> tuple[int, int]:
        """Size and number of records of what is there; drops an unfinished record at its end."""
        size = os.fstat(self._fd).st_size
        if size == 0:
            return 0, 0
        with RecordingReader(self.path) as reader:
            self._packed = reader.packed
            while record := reader.next():
                if record.type == HEADER:
                    self._check_host(host, reader, record)
            if reader.cut is None:
                return size, reader.line
            if not reader.can_grow:
                raise UsageError(
                    f"{self.path}:{reader.line + 1}: recording cut off here, cannot append", _NEW_FILE_HINT
                )
            os.ftruncate(self._fd, reader.whole_bytes)
            self.notice = f"{self.path}: dropped an unfinished record of {size - reader.whole_bytes} bytes at the end"
            return reader.whole_bytes, reader.line

    def _check_host(self, host: Host, reader: RecordingReader, record: Record) -> None:
        there = reader.parse(record.data).get("host")
        there = there if isinstance(there, dict) else {}
        boot_id = None if host.boot_id is None else printable(host.boot_id)
        if there.get("hostname") != printable(host.hostname):
            raise UsageError(f"{self.path}: recording of another host, {there.get('hostname')}", _NEW_FILE_HINT)
        if there.get("boot_id") != boot_id:
            raise UsageError(f"{self.path}: recorded before this host was booted", _NEW_FILE_HINT)

    def _append(self, line: bytes) -> None:
        data = compress(line) if self._packed else line
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BaseException as exc:
            # Half a record would have to be dropped by whoever appends next.
            os.ftruncate(self._fd, self._size)
            if isinstance(exc, OSError):
                raise KmemwatchError(
                    f"{self.path}: cannot write: {exc.strerror}", "all records before this one are in the file"
                ) from exc
            raise
        self._size += len(data)
        self._seq += 1


def _open(path: str) -> int:
    """A locked descriptor that appends. Raises UsageError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as exc:
        raise UsageError(f"{path}: cannot open for writing: {exc.strerror}") from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"{path}: not a regular file", _NEW_FILE_HINT)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise UsageError(f"{path}: another kmemwatch is recording to it", _NEW_FILE_HINT) from exc
    except BaseException:
        os.close(fd)
        raise
    return fd
