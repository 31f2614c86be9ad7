# SPDX-License-Identifier: GPL-2.0-only
"""What is measured on this machine and not in a guest: memory, start-up, and snapshots of a full map."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kmemwatch.live import LiveFeed, open_live
from kmemwatch.sources import decode, store
from kmemwatch.sources.bpf_source import BpfSource
from tests.bench.native import cpu_s, peak_kib, rss_kib
from tests.cgroup_mounts import memory_mount
from tests.live.cgroups import OwnCgroup
from tests.live.tell import workload

KMEMWATCH = [sys.executable, "-m", "kmemwatch"]
MARKER = "kmw-first-screen"
CGROUPS, INTERVAL_S, WATCHED_S = 1000, 5.0, 60.0
TRIES = 5
_LIMIT_S = 60.0


def measure() -> dict[str, Any]:
    """Figures by name; times are the best of TRIES, as others may use the machine."""
    mount = memory_mount()
    assert mount is not None
    with ExitStack() as stack:
        parent = stack.enter_context(_cgroup(mount.path, MARKER))
        stack.enter_context(workload(parent))
        figures = {**_top(), **_serve_start()}
    with _many_cgroups(mount.path, CGROUPS) as cgroups:
        figures.update(_serve_at_work())
        figures.update(_full_map([cgroup.id for cgroup in cgroups]))
    return figures


def _top() -> dict[str, Any]:
    shutil.rmtree(store.DIRECTORY, ignore_errors=True)
    cold, _, _ = _first_screen()
    warm = [_first_screen() for _ in range(TRIES)]
    return {
        "top: first screen, cold start, s": cold,
        "top: first screen, s": min(seconds for seconds, _, _ in warm),
        "top: RSS, MB": max(rss for _, rss, _ in warm) * 1.024e-3,
        "top: peak RSS, MB": max(peak for _, _, peak in warm) * 1.024e-3,
    }


def _first_screen() -> tuple[float, int, int]:
    """(seconds from the start of ``kmemwatch top`` on a terminal to data, its RSS after a while, its peak; KiB)."""
    began = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [*KMEMWATCH, "top", "--delay", "1"])
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 200, 200, 0, 0))
        shown = b""
        while MARKER.encode() not in shown:
            if time.monotonic() > began + _LIMIT_S:
                raise RuntimeError(f"kmemwatch top shows no data: {shown[-2000:]!r}")
            shown += _read(terminal, 0.1)
        took = time.monotonic() - began
        until = time.monotonic() + 4
        while time.monotonic() < until:
            _read(terminal, 0.1)
        return took, rss_kib(pid), peak_kib(pid)
    finally:
        os.kill(pid, signal.SIGTERM)
        with open(terminal, "rb", buffering=0) as rest:
            _drain(rest.fileno())
            os.waitpid(pid, 0)


def _read(terminal: int, wait_s: float) -> bytes:
    return os.read(terminal, 1 << 16) if select.select([terminal], [], [], wait_s)[0] else b""


def _drain(terminal: int) -> None:
    """It restores the terminal when it ends, and somebody has to read that."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # EIO: nobody has it open any more
        pass


def _serve_start() -> dict[str, Any]:
    took = []
    for _ in range(TRIES):
        began = time.monotonic()
        with _serving():
            took.append(time.monotonic() - began)
    return {"serve: until it serves, s": min(took)}


def _serve_at_work() -> dict[str, Any]:
    """With CGROUPS, scraped as often as it reads."""
    with _serving() as (pid, url):
        before, began = cpu_s(pid), time.monotonic()
        while time.monotonic() < began + WATCHED_S:
            time.sleep(INTERVAL_S)
            subprocess.run([sys.executable, "-c", _GET, f"{url}"], stdout=subprocess.DEVNULL, check=True)
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        return {
            "serve: RSS, MB": rss_kib(pid) * 1.024e-3,
            "serve: peak RSS, MB": peak_kib(pid) * 1.024e-3,
            "serve: processor time, %": 100 * share,
        }


_GET = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))"


@contextmanager
def _serving() -> Iterator[tuple[int, str]]:
    """(pid, URL) of a running daemon."""
    command = [*KMEMWATCH, "serve", "--web.listen-address", "127.0.0.1:0", "--interval", f"{INTERVAL_S:g}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(_LIMIT_S + WATCHED_S, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        line = ""
        for line in process.stderr:
            if "serving http" in line:
                break
        else:
            raise RuntimeError(f"kmemwatch serve: {line}")
        yield process.pid, line.split()[-1]
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate()


def _full_map(cgroup_ids: list[int]) -> dict[str, Any]:
    """A snapshot with as many pairs as the map takes, of cgroups and caches that there are."""
    feed = open_live()
    try:
        source = feed._source
        assert isinstance(source, BpfSource)
        taken = feed.next_snapshot(0)
        assert taken is not None
        pairs = _fill(source, [cache.address for cache in taken.caches if cache.address], cgroup_ids)
        took = [_timed(feed) for _ in range(TRIES)]
    finally:
        feed.close()
    return {"snapshot: pairs": pairs, "snapshot of all pairs, ms": 1000 * min(took)}


def _fill(source: BpfSource, caches: list[int], cgroup_ids: list[int]) -> int:
    reader = source._readers["pairs"]
    value = decode.PAIR_VALUE.pack(3, 2, 1).ljust(reader.stride, b"\0") * reader.copies
    for cache in caches:
        for cgroup_id in cgroup_ids:
            try:
                reader.update(decode.PAIR_KEY.pack(cache, cgroup_id), value)
            except OSError:  # E2BIG
                return reader.handle.max_entries
    raise RuntimeError(f"{len(caches)} caches and {len(cgroup_ids)} cgroups do not fill the map")


def _timed(feed: LiveFeed) -> float:
    """Seconds of a snapshot: reading the maps and the tree of memcgs, and folding them into rows."""
    began = time.perf_counter()
    if feed.next_snapshot(0) is None:
        raise RuntimeError("the feed is closed")
    return time.perf_counter() - began


@contextmanager
def _cgroup(root: Path, name: str) -> Iterator[OwnCgroup]:
    cgroup = OwnCgroup(root, name)
    try:
        yield cgroup
    finally:
        cgroup.remove()


@contextmanager
def _many_cgroups(root: Path, number: int) -> Iterator[list[OwnCgroup]]:
    with _cgroup(root, "kmw-bench-many") as parent:
        control = parent.path / "cgroup.subtree_control"
        if control.exists():
            control.write_text("+memory")
        yield [parent.child(f"{serial:04}") for serial in range(number)]
