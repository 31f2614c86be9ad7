# SPDX-License-Identifier: GPL-2.0-only
"""The length of each program as compiled: finds growth without booting a guest or attaching anything."""

from __future__ import annotations

from kmemwatch.attach import load as loader
from kmemwatch.attach import plan
from tests.unit.fake_source import recorded_facts

FACTS = ("debian-6.1", "debian-7.2", "lab-patched")
"""Kernels that differ in what is attached: Debian's of the lab's smoke run, the newest, the one with the patch set."""
_INSTRUCTION_BYTES = 8


def lengths(name: str) -> dict[str, int]:
    """Program -> BPF instructions, of what kmemwatch would attach to the kernel of recorded facts. Needs root and bcc,
    and leaves BCC_KERNEL_SOURCE behind."""
    chosen = loader.best_only(plan.plan(recorded_facts(name)), {})
    bcc, include = loader.find_bcc()
    module = loader.compiled(chosen, bcc, include)
    try:
        library = bcc.lib
        functions = [
            library.bpf_function_name(module.module, i) for i in range(library.bpf_num_functions(module.module))
        ]
        return {name.decode(): len(module.dump_func(name)) // _INSTRUCTION_BYTES for name in functions}
    finally:
        module.cleanup()


def compiler() -> str:
    """What decides on the code besides the source."""
    return f"bcc {loader.find_bcc()[0].__version__}"
