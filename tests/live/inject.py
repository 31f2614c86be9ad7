# SPDX-License-Identifier: GPL-2.0-only
"""Make another process do a system call with its own credentials and filters, as an attacker who controls it could.

Uses ptrace(2) on x86-64: a thread that waits in a system call makes another one, and then waits as before.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

IS_POSSIBLE = platform.machine() == "x86_64"

OPENAT, SOCKET, EXECVE, BPF = 257, 41, 59, 321
CLONE, FORK, VFORK, UNSHARE, KILL, TKILL, TGKILL, PTRACE, PIDFD_OPEN = 56, 57, 58, 272, 62, 200, 234, 101, 434
BPF_MAP_CREATE, BPF_MAP_LOOKUP_ELEM, BPF_PROG_LOAD, BPF_RAW_TRACEPOINT_OPEN = 0, 1, 5, 17
SOCKET_FILTER, RAW_TRACEPOINT = 1, 17
"""``enum bpf_prog_type``: one for everybody where kernel.unprivileged_bpf_disabled is 0, and one that never is."""

_ATTACH, _DETACH, _SINGLESTEP, _GETREGS, _SETREGS = 16, 17, 9, 12, 13
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_WALL = 0x40000000
_RED_ZONE = 128
_ROOM = 4096
_ATTR_BYTES = 128


class _Registers(ctypes.Structure):
    """``struct user_regs_struct``."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _REGISTERS)


class Thread:
    """A stopped thread of another process."""

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._before = self._registers()

    def _ptrace(self, request: int, data: object = None) -> None:
        function = ctypes.CDLL(None, use_errno=True).ptrace
        if function(ctypes.c_long(request), ctypes.c_long(self._tid), None, data) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"ptrace({request}): {os.strerror(code)}")

    def _registers(self) -> _Registers:
        registers = _Registers()
        self._ptrace(_GETREGS, ctypes.byref(registers))
        return registers

    def call(self, number: int, *arguments: int | bytes) -> int:
        """What the system call returns there: a result, or a negative errno. Bytes are passed by address."""
        registers = _Registers.from_buffer_copy(self._before)
        address = (self._before.rsp - _RED_ZONE - _ROOM) & ~0xF
        with open(f"/proc/{self._tid}/mem", "r+b", buffering=0) as memory:
            memory.seek(self._before.rip - 2)
            assert memory.read(2) == b"\x0f\x05", "the thread does not wait in a system call"
            for register, argument in zip(_ARGUMENTS, arguments, strict=False):
                if isinstance(argument, bytes):
                    memory.seek(address)
                    memory.write(argument)
                    argument, address = address, address + (len(argument) + 15) // 16 * 16
                setattr(registers, register, argument % (1 << 64))
        registers.rip, registers.rax = self._before.rip - 2, number
        registers.orig_rax = (1 << 64) - 1  # do not restart the system call it waited in
        self._ptrace(_SETREGS, ctypes.byref(registers))
        self._ptrace(_SINGLESTEP)
        _, status = os.waitpid(self._tid, _WALL)
        assert os.WIFSTOPPED(status), f"it ended: {status:#x}"
        result = ctypes.c_int64(self._registers().rax).value
        self._ptrace(_SETREGS, ctypes.byref(self._before))
        return result

    def bpf(self, command: int, attributes: bytes) -> int:
        """bpf(2)."""
        return self.call(BPF, command, attributes.ljust(_ATTR_BYTES, b"\0"), _ATTR_BYTES)

    def load_program(self, kind: int) -> int:
        """BPF_PROG_LOAD of a program that returns 0; the descriptor is valid in that process."""
        code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
        # The attributes need the addresses, so choose one far below what `call` writes.
        place = (self._before.rsp - _RED_ZONE - 2 * _ROOM) & ~0xF
        with open(f"/proc/{self._tid}/mem", "r+b", buffering=0) as memory:
            memory.seek(place)
            memory.write(code.ljust(64, b"\0") + b"GPL\0")
        return self.bpf(BPF_PROG_LOAD, struct.pack("=IIQQ", kind, 2, place, place + 64))

    def create_map(self) -> int:
        """BPF_MAP_CREATE of an array."""
        return self.bpf(BPF_MAP_CREATE, struct.pack("=IIII", 2, 4, 8, 1))

    def detach(self) -> None:
        """Let it continue what it was doing."""
        self._ptrace(_DETACH)


@contextmanager
def stopped(tid: int) -> Iterator[Thread]:
    """A thread of another process, stopped within the block."""
    function = ctypes.CDLL(None, use_errno=True).ptrace
    if function(ctypes.c_long(_ATTACH), ctypes.c_long(tid), None, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"PTRACE_ATTACH: {os.strerror(code)}")
    os.waitpid(tid, _WALL)
    thread = Thread(tid)
    try:
        yield thread
    finally:
        thread.detach()
