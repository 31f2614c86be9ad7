# SPDX-License-Identifier: GPL-2.0-only
"""The C programs compile for every recorded kernel, in every way to attach them, to code which that kernel knows.

Nothing is loaded, so this needs no such kernel; bcc makes the maps while it compiles, which needs root.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmemwatch.attach import load as loader
from kmemwatch.attach import plan as plan_module
from kmemwatch.attach.plan import Plan
from tests.unit.fake_source import recorded_facts
from tests.unit.test_attach_plan import RECORDED

pytestmark = pytest.mark.needs("root", "bcc", "BTF")

BPF = Path(__file__).parents[2] / "bpf"
WAYS: dict[str, tuple[str, ...]] = {"best": (), "fentry": ("raw_tp",), "kprobe": ("raw_tp", "fentry")}
ATOMIC_OPCODES = (0xC3, 0xDB)
"""BPF_STX | BPF_ATOMIC of 4 and 8 bytes; before v5.12 only with an immediate of 0, which adds."""


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", os.environ.get("BCC_KERNEL_SOURCE", ""))


def compiled(chosen: Plan) -> Any:
    """bcc's module of the best candidates; nothing of it is loaded or attached."""
    return loader.compiled(chosen, *loader.find_bcc())


def instructions(code: bytes) -> Iterator[tuple[int, int]]:
    """(opcode, immediate) of each."""
    for opcode, _, _, immediate in struct.iter_unpack("=BBhi", code):
        yield opcode, immediate


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RECORDED)
def test_programs_compile(name: str, way: str) -> None:
    facts = recorded_facts(name)
    if facts.kprobes is False:  # what the same kernel could do if it allowed more
        facts = replace(facts, kprobes=True, fentry=True)
    chosen = loader.best_only(plan_module.plan(facts, WAYS[way], latency=True), {})
    module = compiled(chosen)
    try:
        for signal in chosen.signals:
            for hook in (hook for option in signal.candidates for hook in option.hooks):
                for name in hook.programs:
                    code = bytes(module.dump_func(name.encode()))
                    assert code, f"{signal.name}: {name}"
                    fetching = [imm for opcode, imm in instructions(code) if opcode in ATOMIC_OPCODES and imm]
                    assert not fetching, f"{signal.name}: {name}: an atomic operation that v5.10 does not know"
    finally:
        module.cleanup()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RECORDED)
def test_nothing_is_compiled_for_latency_unless_asked_for(name: str, way: str) -> None:
    facts = recorded_facts(name)
    if facts.kprobes is False:
        facts = replace(facts, kprobes=True, fentry=True)
    plain, timed = (plan_module.plan(facts, WAYS[way], latency) for latency in (False, True))
    texts = [loader.source_text(loader.best_only(chosen, {})) for chosen in (plain, timed)]
    assert [("latency.bpf.c" in text) for text in texts] == [False, True]
    assert [found for found in timed.signals if found.name != "latency"] == list(plain.signals)


DECLARATION = re.compile(r"^int ((?:raw_tp|fentry|fexit|kprobe|kretprobe|test_run)_\w+)\(", re.MULTILINE)


def written_programs() -> dict[str, str]:
    """Program -> the file of bpf/ that it is in."""
    found: dict[str, str] = {}
    for path in sorted(BPF.glob("*.bpf.c")):
        found |= dict.fromkeys(DECLARATION.findall(path.read_text()), path.name)
    return found


def test_every_program_of_the_plan_is_a_function_of_its_file() -> None:
    planned: dict[str, str] = {}
    for name in RECORDED:
        for way in WAYS.values():
            chosen = plan_module.plan(recorded_facts(name), way, latency=True)
            for signal in chosen.signals:
                hooks = [hook for option in signal.candidates for hook in option.hooks]
                planned |= {program: signal.source for hook in hooks for program in hook.programs}
    assert planned == {name: file for name, file in written_programs().items() if name in planned}


def test_the_list_of_programs_is_that_of_the_files() -> None:
    rows = re.findall(r"^\| `(\w+\.bpf\.c)` \| `(\w+)` \| (.*) \|$", (BPF / "README.md").read_text(), re.MULTILINE)
    listed: dict[str, str] = {}
    for file, kind, hooks in rows:
        for name, twice in re.findall(r"`(\w+)`( \u00d72)?", hooks):
            listed |= {f"{kind}_{name}{second}": file for second in ("", "_missed")[: 2 if twice else 1]}
    assert listed == written_programs()


def test_every_map_is_in_the_list_of_files() -> None:
    files = dict(re.findall(r"^\| `([\w.]+)` \| ([^`|].*) \|$", (BPF / "README.md").read_text(), re.MULTILINE))
    for path in (*BPF.glob("*.h"), *BPF.glob("*.bpf.c")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        named = re.findall(r"^BPF_(?:PERCPU_)?(?:ARRAY|HASH|RINGBUF_OUTPUT)\((\w+)", text, re.MULTILINE)
        named += re.findall(r"^BPF_F_TABLE\((?:[^,]+, ){3}(\w+)", text, re.MULTILINE)
        assert set(named) <= set(re.findall(r"`(\w+)`", files[path.name])), path.name
