# SPDX-License-Identifier: GPL-2.0-only
"""What is measured: kmemwatch, and what it is compared with. Each is attached within a ``with`` block."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from kmemwatch.feeds.live import LiveOptions, open_live
from kmemwatch.kernel import bpf_calls
from kmemwatch.source.bpf_source import BpfSource
from tests.bpf_objects import attached_by, loaded, program_id
from tests.symbols import kernel_symbols

NONE, EMPTY, KMEMWATCH, BPFTRACE, MEMLEAK = "none", "empty", "kmemwatch", "bpftrace", "memleak"
TOOLS = (NONE, EMPTY, KMEMWATCH, BPFTRACE, MEMLEAK)
LATENCY = "latency"
"""kmemwatch with --latency: only when it is asked for."""

Names = Mapping[int, str]
"""id of an attached program -> what it is called in the results."""

TRACEPOINTS = ("kmem_cache_alloc", "kmalloc", "kmem_cache_free", "kfree")
_RETURN_0 = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0]) + bytes([0x95, 0, 0, 0, 0, 0, 0, 0])
"""r0 = 0; exit"""
_BY_CACHE = ("kmem_cache_alloc", "kmem_cache_alloc_lru", "kmem_cache_alloc_node", "__kmem_cache_alloc_node",
             "__kmalloc_cache", "__kmalloc_cache_node", "kmem_cache_free")  # fmt: skip
"""Functions whose first argument is the cache; since v6.10 with ``_noprof``, if they allocate."""
_MEMLEAK = "/usr/sbin/memleak-bpfcc"
"""Package bpfcc-tools of Debian and Ubuntu."""
_INCLUDE = Path(__file__).parents[2] / "bpf/include"
_LOG2 = "#define roundup_pow_of_two(n) (1UL << (64 - __builtin_clzl((n) - 1)))\n"
"""The one thing of the kernel's headers that memleak needs and kmemwatch does not."""
_LIMIT_S = 3600
"""Of the guest's time, which passes quickly while the guest waits for the host."""


@contextmanager
def attached(tool: str) -> Iterator[Names]:
    """Attach one of TOOLS; everything it attaches is gone at the end."""
    with ExitStack() as stack:
        yield stack.enter_context(_ATTACH[tool]())


@contextmanager
def _none() -> Iterator[Names]:
    yield {}


@contextmanager
def _empty() -> Iterator[Names]:
    """A program that does nothing on each tracepoint: what it costs to be there at all."""
    with ExitStack() as stack:
        names = {}
        for tracepoint in TRACEPOINTS:
            program = bpf_calls.load_program(bpf_calls.PROG_RAW_TRACEPOINT, "kmw_empty", _RETURN_0)
            stack.callback(os.close, program)
            stack.callback(os.close, bpf_calls.attach(program, "raw_tp", tracepoint))
            names[program_id(program)] = tracepoint
        yield names


@contextmanager
def _kmemwatch(latency: bool = False) -> Iterator[Names]:
    feed = open_live(LiveOptions(latency=latency))
    try:
        source = feed._source
        assert isinstance(source, BpfSource)
        feed.next_snapshot(0)
        error = source._handed.manifest.learn_error
        assert error is None, f"{error}: programs that find no slab cost less than they do elsewhere"
        yield {program_id(fd): name for name, fd in source._handed.programs.items() if "/" in name}
    finally:
        feed.close()


@contextmanager
def _bpftrace() -> Iterator[Names]:
    """The usual one-liner that counts objects by cache and cgroup, with kprobes, for the task that frees as well."""
    functions = [name for bare in _BY_CACHE for name in (bare, f"{bare}_noprof") if name in kernel_symbols()]
    script = f"{','.join(f'kprobe:{name}' for name in functions)} {{ @[arg0, cgroup] = count(); }}"
    with _running(["bpftrace", "-e", script], len(functions)) as names:
        yield names


@contextmanager
def _memleak() -> Iterator[Names]:
    events = {path.name for path in Path("/sys/kernel/tracing/events/kmem").iterdir()}
    wanted = {*TRACEPOINTS, "mm_page_alloc", "mm_page_free", "kmalloc_node", "kmem_cache_alloc_node"} & events
    command = ["/usr/bin/python3", _MEMLEAK, "--combined-only", str(_LIMIT_S)]
    with tempfile.TemporaryDirectory() as directory:
        # No kernel headers are installed here, so it is compiled with ours.
        headers = shutil.copytree(_INCLUDE, Path(directory, "headers"))
        with (headers / "include/linux/log2.h").open("a") as log2:
            log2.write(_LOG2)
        with _running(command, len(wanted), {"BCC_KERNEL_SOURCE": str(headers)}) as names:
            yield names


@contextmanager
def _running(command: Sequence[str], number: int, env: Mapping[str, str] | None = None) -> Iterator[Names]:
    """Run a tool in a process of its own; the block begins when it has attached `number` programs."""
    before = loaded("prog")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env={**os.environ, **(env or {})})
    try:
        deadline = time.monotonic() + _LIMIT_S
        while len(names := attached_by(process.pid)) < number:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} attached {len(names)} of {number} programs")
            time.sleep(0.5)
        yield names
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    while loaded("prog") - before:  # programs go some time after their last user
        time.sleep(0.1)


_ATTACH: Mapping[str, Callable[[], AbstractContextManager[Names]]] = {
    NONE: _none,
    EMPTY: _empty,
    KMEMWATCH: _kmemwatch,
    LATENCY: partial(_kmemwatch, latency=True),
    BPFTRACE: _bpftrace,
    MEMLEAK: _memleak,
}
