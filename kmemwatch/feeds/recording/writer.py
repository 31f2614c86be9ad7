# SPDX-License-Identifier: GPL-2.0-only
"""Appends to a recording so that all records but the last are readable at any moment, also after a power cut.

Nothing is written before the first snapshot is there and every check has passed. A file that is refused, or for which
there is nothing to record, does not change.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.recording.files import compress
from kmemwatch.feeds.recording.format import HEADER, event_line, header_line, snapshot_line
from kmemwatch.feeds.recording.reader import RecordingReader
from kmemwatch.feeds.user_files import check_place, replaced
from kmemwatch.model import Event, Snapshot

_NEW_FILE_HINT = "record to another file"
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
_MODE = 0o600
_OTHERS = 0o077
_CHUNK = 1 << 20
_AGAIN = 3
"""How often a file may be replaced under us while we open it."""


@dataclass(frozen=True, slots=True)
class _Old:
    """What a file held when it was opened."""

    size: int
    whole_bytes: int
    """A recorder can append here."""
    lines: int
    """Complete records, including those behind `whole_bytes`."""
    lines_after_whole: int
    packed: bool
    hosts: tuple[tuple[str, str | None], ...]
    """(hostname, boot_id) of each header."""
    last: bytes
    """The last complete record."""


class RecordingWriter:
    """Appends to a new file, or to a recording of the same host and boot.

    Raises UsageError when the file cannot be appended to, KmemwatchError when writing fails (disk full).
    """

    def __init__(self, path: str) -> None:
        """Open the file, if there is one, and read what is in it; nothing is written before `begin`."""
        self.path = path
        self.notice: str | None = None
        """One line for the user: what `begin` drops from the end of an older file, or that others may read it; or
        None."""
        self._place = os.path.realpath(path)
        self._packed = path.endswith(".gz")
        self._seq = self._size = 0
        self._old: _Old | None = None
        self._created = False
        self._fd = _open(path, self._place)
        try:
            if self._fd >= 0:
                self._read_old()
                self._note_mode()
        except BaseException:
            os.close(self._fd)
            raise

    def begin(self, first: Snapshot) -> None:
        """Write the header of a run whose first snapshot is `first`; `first` itself is not written."""
        for hostname, boot in self._old.hosts if self._old is not None else ():
            if hostname != first.host.hostname:
                raise UsageError(f"{self.path}: recording of another host, {hostname}", _NEW_FILE_HINT)
            if boot != first.host.boot_id:
                raise UsageError(f"{self.path}: recorded before this host was booted", _NEW_FILE_HINT)
        if self._fd < 0:
            self._fd = _create(self.path, self._place)
            self._created = True
        elif self._old is not None and self._old.whole_bytes < self._old.size:
            self._repair(self._old)
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
        """Close the file; remove it if it is new and nothing was written. Harmless when called twice."""
        if self._fd >= 0:
            if self._created and self._size == 0 and _is_at(self._fd, self._place):
                Path(self._place).unlink()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_old(self) -> None:
        size = os.fstat(self._fd).st_size
        if size == 0:
            return
        hosts: list[tuple[str, str | None]] = []
        last = b""
        with RecordingReader(self.path, descriptor=os.dup(self._fd)) as reader:
            while record := reader.next():
                last = record.line
                if record.type == HEADER:
                    host = reader.parse(record.header).host
                    hosts.append((host.hostname, host.boot_id))
            if reader.cut is None:
                whole_bytes, after = size, 0
            else:
                whole_bytes, after = reader.whole_bytes, reader.lines_after_whole
            self._old = _Old(size, whole_bytes, reader.line, after, reader.packed, tuple(hosts), last)
        self._seq, self._size, self._packed = self._old.lines, size, self._old.packed
        if whole_bytes < size and not after:
            self.notice = f"{self.path}: dropped an unfinished record of {size - whole_bytes} bytes at the end"
        elif after:
            self.notice = f"{self.path}: its gzip data was cut off; kept all {self._seq} complete records"

    def _note_mode(self) -> None:
        """Say that others may read the file. Its mode does not change, because somebody may have set it on purpose."""
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        if mode & _OTHERS:
            notice = f"{self.path}: stays open to others, mode {mode:04o}; new recordings are not"
            self.notice = notice if self.notice is None else f"{self.notice}; {notice}"

    def _repair(self, old: _Old) -> None:
        """Repair the end of a recording that was cut off; no readable record is lost."""
        try:
            if not old.lines_after_whole:
                os.ftruncate(self._fd, old.whole_bytes)
                self._size = old.whole_bytes
            elif not self._complete(old):
                self._pack_again(old)
        except OSError as exc:
            raise KmemwatchError(f"{self.path}: cannot repair its end: {exc.strerror}", _NEW_FILE_HINT) from exc

    def _complete(self, old: _Old) -> bool:
        """Complete the gzip member of the last record, if all bytes of it are known."""
        begun = os.pread(self._fd, old.size - old.whole_bytes, old.whole_bytes)
        whole = compress(old.last)
        if old.lines_after_whole > 1 or not whole.startswith(begun):
            return False
        self._write(whole[len(begun) :])
        return True

    def _pack_again(self, old: _Old) -> None:
        """Replace the file by one with the same records, with those behind `whole_bytes` in gzip members of their
        own."""
        with replaced(self._place) as new:
            copied = 0
            while copied < old.whole_bytes:
                part = os.pread(self._fd, min(_CHUNK, old.whole_bytes - copied), copied)
                if not part:
                    raise KmemwatchError(f"{self.path}: somebody made it shorter meanwhile", _NEW_FILE_HINT)
                copied += new.write(part)
            with RecordingReader(self.path, descriptor=os.dup(self._fd)) as reader:
                while record := reader.next():
                    if record.seq >= old.lines - old.lines_after_whole:
                        copied += new.write(compress(record.line))
        fd = _open(self.path, self._place)
        os.close(self._fd)
        self._fd, self._size = fd, copied
        if fd < 0 or os.fstat(fd).st_size != copied:
            raise UsageError(f"{self.path}: somebody changed it meanwhile", _NEW_FILE_HINT)

    def _append(self, line: bytes) -> None:
        self._write(compress(line) if self._packed else line)
        self._seq += 1

    def _write(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BaseException as exc:
            # Remove half a record, or the next recorder would have to.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            if isinstance(exc, OSError):
                raise KmemwatchError(
                    f"{self.path}: cannot write: {exc.strerror}", "all records before this one are in the file"
                ) from exc
            raise
        self._size += len(data)


def _open(path: str, place: str) -> int:
    """A locked descriptor of an existing file, or -1 if a new one can be made. Raises UsageError."""
    try:
        for _ in range(_AGAIN):
            try:
                fd = os.open(place, _FLAGS)
            except FileNotFoundError:
                check_place(place)
                return -1
            _lock(fd, path)
            if _is_at(fd, place):
                return fd
            os.close(fd)  # another file has replaced it
    except OSError as exc:
        raise UsageError(f"{path}: cannot open for writing: {exc.strerror}") from exc
    raise UsageError(f"{path}: somebody replaces this file again and again", _NEW_FILE_HINT)


def _create(path: str, place: str) -> int:
    """A locked descriptor of a new file. Raises UsageError."""
    try:
        fd = os.open(place, _FLAGS | os.O_CREAT | os.O_EXCL, _MODE)
    except FileExistsError as exc:
        raise UsageError(f"{path}: somebody has made this file meanwhile", _NEW_FILE_HINT) from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot open for writing: {exc.strerror}") from exc
    _lock(fd, path)
    os.fchmod(fd, _MODE)  # despite the umask
    return fd


def _lock(fd: int, path: str) -> None:
    """Lock it, or close it and raise UsageError."""
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


def _is_at(fd: int, place: str) -> bool:
    """Whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(place))  # noqa: PTH116
    except FileNotFoundError:
        return False
