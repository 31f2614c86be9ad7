# SPDX-License-Identifier: GPL-2.0-only
"""Bytes from the kernel: what is written is what is read, and whatever else comes is counted, not raised."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.errors import KmemwatchError
from kmemwatch.kernel import libbpf
from kmemwatch.maps import decode
from kmemwatch.maps.decode import LifecycleEvent, SlabEvent
from kmemwatch.maps.handles import Ring
from kmemwatch.maps.structs import constant
from kmemwatch.units import unprintable

NAME_BYTES = 256
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
raw_names = st.binary(max_size=NAME_BYTES - 1).map(lambda name: name.replace(b"\0", b"?"))

STATS_MAX = constant("STATS_MAX")


def pack_event(kind: int, at: int, cgroup: int, parent: int, pid: int, comm: bytes, name: bytes | None) -> bytes:
    raw = decode.LIFECYCLE_EVENT.pack(at, cgroup, parent, kind, pid, comm)
    return raw if name is None else raw + name.ljust(NAME_BYTES, b"\0")


@given(st.sampled_from([1, 2, 3]), u64, u64, u64, u32, st.binary(max_size=15), st.none() | raw_names)
def test_lifecycle_event(
    kind: int, at: int, cgroup: int, parent: int, pid: int, comm: bytes, name: bytes | None
) -> None:
    event = decode.lifecycle_event(pack_event(kind, at, cgroup, parent, pid, comm, name))
    assert (event.kind, event.at_monotonic_ns, event.cgroup_id) == (decode.LIFECYCLE_KINDS[kind], at, cgroup)
    assert (event.parent_id, event.pid) == (parent or None, pid)
    if name is None:
        assert event.name is None
    else:
        assert event.name is not None
        assert unprintable(event.name).encode("utf-8", "surrogateescape") == name, "every byte of a name survives"


@given(
    st.sampled_from(sorted(decode.SLAB_KINDS)),
    st.tuples(u64, u64, u64, u64, u64),
    st.integers(-(2**31), 2**31 - 1),
    u32,
    st.binary(max_size=decode.CACHE_NAME_BYTES - 1).map(lambda name: name.replace(b"\0", b"?")),
)
def test_slab_event(kind: int, numbers: tuple[int, ...], kmemcg_id: int, pid: int, name: bytes) -> None:
    at, cgroup, cache, from_id, pages = numbers
    raw = decode.LIFECYCLE_EVENT.pack(at, cgroup, 0, kind, pid, b"kworker")
    raw += decode.SLAB_EVENT.pack(cache, from_id, pages, kmemcg_id, name)[len(raw) :]
    assert len(raw) == decode.SLAB_EVENT.size
    found = decode.event(raw)
    assert isinstance(found, SlabEvent)
    assert (found.kind, found.at_monotonic_ns, found.pid) == (decode.SLAB_KINDS[kind], at, pid)
    assert (found.cgroup_id or 0, found.cache or 0, found.from_id or 0) == (cgroup, cache, from_id)
    assert (found.pages, found.kmemcg_id) == (pages, kmemcg_id)
    assert unprintable(found.cache_name or "").encode("utf-8", "surrogateescape") == name


def test_a_slab_event_of_another_kind() -> None:
    with pytest.raises(ValueError, match="slab event of kind 3"):
        decode.event(decode.LIFECYCLE_EVENT.pack(1, 2, 0, 3, 4, b"").ljust(decode.SLAB_EVENT.size, b"\0"))


@given(st.binary(max_size=2 * decode.ONLINE_EVENT.size))
def test_arbitrary_bytes_are_an_event_or_a_value_error(raw: bytes) -> None:
    try:
        event = decode.event(raw)
    except ValueError:
        return
    assert isinstance(event, LifecycleEvent | SlabEvent)


@pytest.mark.parametrize("size", [0, 1, decode.LIFECYCLE_EVENT.size - 1, decode.ONLINE_EVENT.size + 8])
def test_an_event_of_another_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"lifecycle event of {size} bytes"):
        decode.lifecycle_event(bytes(size))


def test_an_event_of_another_kind() -> None:
    with pytest.raises(ValueError, match="of kind 9"):
        decode.lifecycle_event(pack_event(9, 0, 0, 0, 0, b"", None))


@given(
    st.lists(u64, min_size=9, max_size=9),
    st.integers(0, 1),
    st.integers(-1, 2**31 - 1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=STATS_MAX, max_size=STATS_MAX),
    raw_names,
    st.integers(0, STATS_MAX),
    st.integers(0, 3),
)
def test_memcg_record(
    heads: list[int], online: int, kmemcg_id: int, stats: list[int], name: bytes, count: int, index: int
) -> None:
    raw = bytearray(decode.MEMCG_RECORD.pack(*heads, online, kmemcg_id, 7, 1, 9, name))
    struct.pack_into(f"={STATS_MAX}q", raw, decode.MEMCG_RECORD.offset("stats"), *stats)
    record = decode.memcg_record(bytes(index * len(raw)) + bytes(raw), index * len(raw), count)
    found = (record.css, record.parent_css, record.serial_nr, record.cgroup_id)
    assert found == tuple(heads[:4])
    assert record.references == (heads[4] if heads[4] < 1 << 62 else None)
    assert (record.memory_pages, record.swap_pages, record.kmem_pages, record.tcpmem_pages) == tuple(heads[5:])
    assert (record.online, record.kmemcg_id, record.stats) == (bool(online), kmemcg_id, tuple(stats[:count]))
    assert (record.kmem_cache_id, record.kmem_cache_id_held, record.memcg_id) == (7, True, 9)
    assert unprintable(record.name).encode("utf-8", "surrogateescape") == name


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, 0), (1, 1), (281_369, 281_369), (2**63 + 1, None), (2**63 + 9, None), (2**63, None), (2**63 - 7, None)],
)
def test_references_are_unknown_until_the_kernel_has_added_them_up(count: int, told: int | None) -> None:
    """A percpu_ref has a bias of 2^63 until then, and CPUs that put what another one got are on its other side."""
    raw = decode.MEMCG_RECORD.pack(1, 0, 1, 1, count, 0, 0, 0, 0, 0, -1, -1, 0, 0, b"")
    assert decode.memcg_record(raw, 0, 0).references == told


def test_sizes_that_the_compiler_saw_must_be_ours() -> None:
    decode.check_sizes({"charges": 16, "lost": 8, "page_base": 8})
    with pytest.raises(KmemwatchError, match="map charges has values of 32 bytes, kmemwatch expects 16"):
        decode.check_sizes({"charges": 32})


@pytest.mark.needs("root", "BTF")
def test_an_exception_in_the_sink_is_counted(ring_map: int) -> None:
    """ctypes would print it, and give the kernel's library garbage as the answer."""
    raw = pack_event(1, 1, 2, 3, 4, b"sh", b"name")
    seen: list[bytes] = []

    def sink(data: bytes) -> None:
        seen.append(data)
        raise RuntimeError("bug")

    ring = Ring(ring_map, sink)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    for _ in range(3):
        assert ring._sample(0, ctypes.addressof(buffer), len(raw)) == 0
    assert (ring.decode_errors, seen) == (3, [raw] * 3)
    ring.poll(0)
    ring.close()
    ring.close()
    ring.poll(0)
    ring.consume()


@pytest.mark.needs("root", "BTF")
def test_a_signal_while_records_are_handed_over_comes_right_after(
    ring_map: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised inside the callback, the exception that ends a command would be printed by ctypes, and forgotten."""
    seen: list[bytes] = []
    ring = Ring(ring_map, seen.append)
    buffer = ctypes.create_string_buffer(b"record", 6)

    class Library:
        @staticmethod
        def ring_buffer__consume(_: object) -> None:
            # Not os.kill(): threads that an earlier test has left would take it.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            for _ in range(3):
                ring._sample(0, ctypes.addressof(buffer), 6)

    def terminated(*_: object) -> None:
        raise KeyboardInterrupt

    before, library = signal.signal(signal.SIGTERM, terminated), ring._lib
    monkeypatch.setattr(ring, "_lib", Library)
    with pytest.raises(KeyboardInterrupt):
        ring.consume()
    monkeypatch.setattr(ring, "_lib", library)
    signal.signal(signal.SIGTERM, before)
    assert seen == [b"record"] * 3
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ring.close()


@pytest.fixture
def ring_map() -> Iterator[int]:
    """Descriptor of a ring buffer map (BPF_MAP_CREATE, type 27), which nobody writes to."""
    lib = libbpf.library()
    lib.bpf_map_create.restype = ctypes.c_int
    lib.bpf_map_create.argtypes = (ctypes.c_int, ctypes.c_char_p, *(ctypes.c_uint32,) * 3, ctypes.c_void_p)
    fd = lib.bpf_map_create(27, b"kmw_test", 0, 0, 4096, None)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    yield int(fd)
    os.close(fd)
