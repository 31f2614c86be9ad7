# SPDX-License-Identifier: GPL-2.0-only
"""BPF maps, test runs and the ring buffer by file descriptor, through libbpf: no compiler in this process."""

from __future__ import annotations

import ctypes
import errno
import mmap
import select
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import add

from kmemwatch.errors import KmemwatchError, UnsupportedError, raise_if_shortage, shortage_number
from kmemwatch.kernel import libbpf
from kmemwatch.kernel.facts import POSSIBLE_CPUS
from kmemwatch.maps.structs import StructLayout

_BATCH = 2048
"""Entries per system call. It must be more than any hash bucket has, or the kernel answers ENOSPC; and few enough that
the buffer for the values of 64 CPUs is 3 MB."""


@dataclass(frozen=True, slots=True)
class MapHandle:
    name: str
    fd: int
    key_bytes: int
    value_bytes: int
    """Of one CPU."""
    max_entries: int
    per_cpu: bool


class _TestRunOpts(ctypes.Structure):
    """``struct bpf_test_run_opts`` of libbpf, in full."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
    )


class _MapBatchOpts(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("elem_flags", ctypes.c_uint64), ("flags", ctypes.c_uint64))


def possible_cpus() -> int:
    """Number of copies that a per-CPU map has of each value. Raises OSError for a shortage, else UnsupportedError."""
    number = int(libbpf.library().libbpf_num_possible_cpus())
    if number < 0:
        error = OSError(-number, f"possible CPUs: {libbpf.error_text(number)}")
        if shortage_number(error) is not None:
            raise error
        raise UnsupportedError(
            f"{POSSIBLE_CPUS}: cannot be read as a list of CPUs: {libbpf.error_text(number)}",
            hint="a container needs /sys of the host",
        )
    return number


def test_run(program_fd: int, *args: int) -> int:
    """Run a raw tracepoint program with these ``ctx->args``; its return value. Raises OSError."""
    lib = libbpf.library()
    context = (ctypes.c_uint64 * 12)(*args)
    opts = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts), ctx_in=ctypes.addressof(context), ctx_size_in=96)
    failed = lib.bpf_prog_test_run_opts(program_fd, ctypes.byref(opts))
    if failed < 0:
        raise OSError(-failed, f"BPF_PROG_TEST_RUN: {libbpf.error_text(failed)}")
    return int(opts.retval)


class MapReader:
    """Reads whole maps. A value of a per-CPU map is the bytes of all CPUs, each padded to 8 bytes."""

    def __init__(self, handle: MapHandle) -> None:
        self.handle = handle
        self._lib = libbpf.library()
        self.copies = possible_cpus() if handle.per_cpu else 1
        self.stride = (handle.value_bytes + 7) // 8 * 8 if handle.per_cpu else handle.value_bytes
        self._value = ctypes.create_string_buffer(self.stride * self.copies)

    def lookup(self, key: bytes) -> bytes | None:
        """Value of `key`; None when there is none."""
        if self._lib.bpf_map_lookup_elem(self.handle.fd, key, self._value) < 0:
            return None
        return self._value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set `key`. Raises OSError."""
        failed = self._lib.bpf_map_update_elem(self.handle.fd, key, value, 0)
        if failed < 0:
            raise OSError(-failed, f"map {self.handle.name}: {libbpf.error_text(failed)}")

    def delete(self, key: bytes) -> None:
        """Remove `key`; harmless when it is not there."""
        self._lib.bpf_map_delete_elem(self.handle.fd, key)

    def items(self) -> tuple[bytes, bytes, int]:
        """(all keys, all values, number), read in batches, or one by one where the kernel has no batches.

        The map may change meanwhile: an entry that is there all the time appears once.
        """
        try:
            return self._items_by_batch()
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, 524):  # 524: the kernel's own ENOTSUPP
                raise
        pairs = list(self._items_one_by_one())
        return b"".join(key for key, _ in pairs), b"".join(value for _, value in pairs), len(pairs)

    def sums(self, value: StructLayout | None = None) -> tuple[bytes, list[tuple[int, ...]]]:
        """(all keys, one row of sums over CPUs for each). `value`: layout of 64-bit counters; None: a single
        counter."""
        keys, values, number = self.items()
        counters = memoryview(values).cast("Q")
        words = 1 if value is None else value.size // 8
        width = words * self.copies
        # Column by column, as a map may have 65,536 entries for each of many CPUs.
        columns = [0] if value is None else value.words
        sums = [counters[column::width].tolist() for column in columns]
        for copy in range(words, width, words):
            for place, column in enumerate(columns):
                sums[place] = list(map(add, sums[place], counters[copy + column :: width]))
        rows = list(zip(*sums, strict=True))
        assert len(rows) == number
        return keys, rows

    def _items_by_batch(self) -> tuple[bytes, bytes, int]:
        size = min(_BATCH, self.handle.max_entries)
        keys = ctypes.create_string_buffer(size * self.handle.key_bytes)
        values = ctypes.create_string_buffer(size * self.stride * self.copies)
        cursor = ctypes.create_string_buffer(max(8, self.handle.key_bytes))
        opts = _MapBatchOpts(sz=ctypes.sizeof(_MapBatchOpts))
        all_keys, all_values, total, first = [], [], 0, True
        while True:
            count = ctypes.c_uint32(size)
            failed = self._lib.bpf_map_lookup_batch(
                self.handle.fd, None if first else cursor, cursor, keys, values, ctypes.byref(count), ctypes.byref(opts)
            )
            if failed < 0 and -failed != errno.ENOENT:  # ENOENT: this was the last batch
                raise OSError(-failed, f"map {self.handle.name}: {libbpf.error_text(failed)}")
            number = count.value
            all_keys.append(ctypes.string_at(keys, number * self.handle.key_bytes))
            all_values.append(ctypes.string_at(values, number * self.stride * self.copies))
            total += number
            first = False
            if failed < 0:
                return b"".join(all_keys), b"".join(all_values), total

    def _items_one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        key = ctypes.create_string_buffer(self.handle.key_bytes)
        following = ctypes.create_string_buffer(self.handle.key_bytes)
        previous = None
        while self._lib.bpf_map_get_next_key(self.handle.fd, previous, following) == 0:
            ctypes.memmove(key, following, self.handle.key_bytes)
            previous = key
            value = self.lookup(key.raw)
            if value is not None:
                yield key.raw, value


def map_memory(handle: MapHandle) -> mmap.mmap:
    """The values of an array with BPF_F_MMAPABLE, as memory that the kernel writes to."""
    stride = (handle.value_bytes + 7) // 8 * 8
    return mmap.mmap(handle.fd, -(-stride * handle.max_entries // mmap.PAGESIZE) * mmap.PAGESIZE)


class Ring:
    """The consumer's side of a ring buffer."""

    def __init__(self, fd: int, sink: Callable[[bytes], None]) -> None:
        """Pass every record to `sink`. Raises KmemwatchError when the buffer cannot be mapped."""
        self._lib = libbpf.library()
        self._sink = sink
        self._ready = select.poll()
        self._ready.register(fd, select.POLLIN)
        self.decode_errors = 0
        # ctypes prints an exception of a callback and returns garbage to C; so `_sample` lets none out.
        self._callback = libbpf.RING_SAMPLE_FN(self._sample)
        self._ring = self._lib.ring_buffer__new(fd, self._callback, None, None)
        if not self._ring:
            number = ctypes.get_errno()
            raise_if_shortage(OSError(number, libbpf.error_text(number)), "ring buffer")
            raise KmemwatchError(f"ring buffer: {libbpf.error_text(number)}")

    def _sample(self, _context: int, data: int, size: int) -> int:
        try:
            self._sink(ctypes.string_at(data, size))
        except Exception:  # noqa: BLE001 - boundary to C: counted, and shown as lost
            self.decode_errors += 1
        return 0  # a negative value would end the poll

    def poll(self, timeout_ms: int) -> None:
        """Pass on all records, waiting up to `timeout_ms` for the first one."""
        if self._ring and self._ready.poll(timeout_ms):
            self.consume()

    def consume(self) -> None:
        """Pass on all records, without waiting."""
        if not self._ring:
            return
        # Python may run a signal handler (Ctrl-C, SIGTERM) inside our callback, even before its first line. ctypes
        # would print the exception that the handler raises, and drop it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._lib.ring_buffer__consume(self._ring)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Unmap; harmless when called twice."""
        if self._ring:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None
