# SPDX-License-Identifier: GPL-2.0-only
"""Kprobes outside kmemwatch: the kernel's own profile of hits and misses, and programs that cause both."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kmemwatch.kernel import bpf_calls

TRACING = Path("/sys/kernel/tracing")
GROUP = "kmwtest"
HELPERS = {"bpf_get_current_uid_gid": 15, "bpf_get_current_comm": 16}
"""Functions of the kernel that only BPF programs call -> their number as helpers."""
_INSTRUCTION = struct.Struct("=BBhi")
_RETURN_0, _END = (0xB7, 0, 0, 0), (0x95, 0, 0, 0)


@contextmanager
def tracefs_probes(probes: Sequence[str], enabled: bool) -> Iterator[None]:
    """``p:name function`` or ``r:name function`` through tracefs, as other users of the machine may have them beside
    ours."""
    switch = TRACING / "events" / GROUP / "enable"
    made = []
    try:
        for probe in probes:
            kind, _, rest = probe.partition(":")
            _command(f"{kind}:{GROUP}/{rest}")
            made.append(rest.split()[0])
        if enabled:
            switch.write_text("1")
        yield
    finally:
        if made:
            switch.write_text("0")
        for name in made:
            _command(f"-:{GROUP}/{name}")


@contextmanager
def recorded_calls(
    arguments: Mapping[str, Sequence[str]], pid: int
) -> Iterator[Callable[[], list[tuple[str, list[int]]]]]:
    """What the kernel itself records of the calls that a process makes of some functions: (function, its `arguments` as
    numbers), in order. Those are registers (``%di``). By kprobes of tracefs, in a buffer of its own."""
    fetched = {
        function: " ".join(f"arg{number}={register}:x64" for number, register in enumerate(registers))
        for function, registers in arguments.items()
    }
    instance = TRACING / "instances" / GROUP
    with tracefs_probes([f"p:{name} {name} {args}" for name, args in fetched.items()], enabled=False):
        instance.mkdir()
        events = instance / "events" / GROUP
        try:
            (events / "filter").write_text(f"common_pid == {pid}")
            (events / "enable").write_text("1")
            yield lambda: _calls((instance / "trace").read_text())
        finally:
            (events / "enable").write_text("0")
            instance.rmdir()


def _calls(trace: str) -> list[tuple[str, list[int]]]:
    lines = re.findall(r": (\w+): \(.*?\)((?: arg\d+=0x[0-9a-f]+)+)", trace)
    return [(name, [int(value, 16) for value in re.findall("0x[0-9a-f]+", values)]) for name, values in lines]


def _command(line: str) -> None:
    # Opened for writing from its start, the file drops all probes; and Python would seek to the end of it.
    fd = os.open(TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def profile() -> dict[str, tuple[int, int]]:
    """name -> (hits, misses) of probes made through tracefs."""
    rows = [line.split() for line in (TRACING / "kprobe_profile").read_text().splitlines()]
    return {name: (int(hits), int(missed)) for name, hits, missed in rows}


def calling(helper: str, kind: int) -> int:
    """Descriptor of a program that calls a helper and does nothing else."""
    ten_to_one, minus_sixteen, sixteen_to_two = (0xBF, 0xA1, 0, 0), (0x07, 1, 0, -16), (0xB7, 2, 0, 16)
    call = (0x85, 0, 0, HELPERS[helper])
    # A buffer on the stack and its size, as bpf_get_current_comm() wants them; the other has no arguments.
    code = [ten_to_one, minus_sixteen, sixteen_to_two, call, _RETURN_0, _END]
    return bpf_calls.load_program(kind, "kmw_test", b"".join(_INSTRUCTION.pack(*line) for line in code))


def doing_nothing() -> int:
    """Descriptor of a raw tracepoint program that is only there to be counted."""
    code = b"".join(_INSTRUCTION.pack(*line) for line in (_RETURN_0, _END))
    return bpf_calls.load_program(bpf_calls.PROG_RAW_TRACEPOINT, "kmw_test", code)


def attach_inside(program_fd: int, function: str) -> int:
    """As `bpf_calls.attach_kprobe`, to the first instruction behind the place that ftrace has for its own use.

    There a kprobe is a breakpoint, or a jump: not even ftrace's own protection keeps what is called meanwhile from
    being seen as a miss.
    """
    real, target = bpf_calls._PERF_ATTR, ctypes.create_string_buffer(function.encode())
    pmu = int((bpf_calls.KPROBE_PMU / "type").read_text())
    for offset in (5, 9):  # a call; behind endbr64 where the kernel is built with it
        attr = real.pack(pmu, real.size, 0, 1, 0, 0, 0, 1, 0, ctypes.addressof(target), offset)
        try:
            fd = bpf_calls._perf_event_open(attr)
        except OSError:
            continue
        fcntl.ioctl(fd, bpf_calls._PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, bpf_calls._PERF_EVENT_IOC_ENABLE, 0)
        return fd
    raise AssertionError(f"no kprobe behind the entry of {function}")
