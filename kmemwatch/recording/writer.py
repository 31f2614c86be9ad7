# SPDX-License-Identifier: GPL-2.0-only
"""Appends to a recording so that at any moment, power cuts included, all but the last record is readable."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.model import Event, Snapshot
from kmemwatch.recording.files import compress
from kmemwatch.recording.format import HEADER, event_line, header_line, snapshot_line
from kmemwatch.recording.reader import RecordingReader
from kmemwatch.units import printable

_NEW_FILE_HINT = "record to another file"


class RecordingWriter:
    """Appends to a new file, or to a recording of the same host and boot.

    Raises UsageError when the file cannot be appended to, KmemwatchError when writing fails (disk full).
    """

    def __init__(self, path: str) -> None:
        """Open the file and read what is in it; `begin` must follow before anything is written."""
        self.path = path
        self.notice: str | None = None
        """One line about what was found at the end of an older file, or None."""
        self._packed = path.endswith(".gz")
        self._hosts: list[tuple[object, object]] = []
        self._seq = self._size = 0
        self._created = not os.path.lexists(path)
        self._fd = _open(path)
        try:
            self._size = self._read_old()
        except BaseException:
            os.close(self._fd)
            raise

    def begin(self, first: Snapshot) -> None:
        """Write the header of a run of which `first` is the first snapshot; `first` itself is not written."""
        boot_id = None if first.host.boot_id is None else printable(first.host.boot_id)
        for hostname, boot in self._hosts:
            if hostname != printable(first.host.hostname):
                raise UsageError(f"{self.path}: recording of another host, {hostname}", _NEW_FILE_HINT)
            if boot != boot_id:
                raise UsageError(f"{self.path}: recorded before this host was booted", _NEW_FILE_HINT)
        self._append(header_line(self._seq, first))

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
        """Let go of the file; remove it if it is new and nothing was written. Harmless when called twice."""
        if self._fd >= 0:
            if self._created and self._size == 0:
                Path(self.path).unlink()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_old(self) -> int:
        """Size of what is there; remembers its hosts, and drops an unfinished record at its end."""
        size = os.fstat(self._fd).st_size
        if size == 0:
            return 0
        with RecordingReader(self.path) as reader:
            self._packed = reader.packed
            last = b""
            while record := reader.next():
                last = record.line
                if record.type == HEADER:
                    host = reader.parse(record.data).get("host")
                    host = host if isinstance(host, dict) else {}
                    self._hosts.append((host.get("hostname"), host.get("boot_id")))
            self._seq = reader.line
            return size if reader.cut is None else self._repair(reader, size, last)

    def _repair(self, reader: RecordingReader, size: int, last: bytes) -> int:
        """Make a recording that was cut off end with a whole record; nothing that can be read is lost."""
        if reader.lines_after_whole > 1:  # packed by gzip as one piece; we would have to pack all of it again
            where = f"{self.path}:{reader.line + 1}"
            raise UsageError(f"{where}: recording cut off here, cannot append", _NEW_FILE_HINT)
        os.ftruncate(self._fd, reader.whole_bytes)
        self._size = reader.whole_bytes
        if reader.lines_after_whole:  # only the end of its gzip member is missing
            self._seq -= 1
            self._append(last)
        else:
            dropped = size - reader.whole_bytes
            self.notice = f"{self.path}: dropped an unfinished record of {dropped} bytes at the end"
        return self._size

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
