# SPDX-License-Identifier: GPL-2.0-only
"""``python -m tests.bench``: measure what kmemwatch costs, in guests whose clocks count instructions."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.tools import TOOLS
from tests.lab.boot import SHARED, Guest
from tests.lab.kernels import KERNELS, obtain

PARTS = ("programs",)
LIMIT_S = 1800
_SAID = 3000


def main(argv: Sequence[str]) -> int:
    """Measure, print."""
    options = _options(argv)
    for name in options.kernel.split(","):
        for version in options.cgroup.split(","):
            measured = run_guest(name, int(version), options.only.split(","), options.tools.split(","))
            print(f"{measured['kernel']}, cgroup v{measured['cgroup_version']}")  # noqa: T201
            print_programs(measured)
    return 0


def run_guest(name: str, cgroup_version: int, parts: Sequence[str], tools: Sequence[str]) -> dict[str, Any]:
    """What tests.bench.guest measures in one boot of a kernel of the lab."""
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    with tempfile.TemporaryDirectory(prefix="kmw-bench-") as directory:
        guest = Guest(obtain(kernel), Path(directory), cgroup_v1=cgroup_version == 1, cpus=1, icount=True)
        arguments = f"{SHARED}/results.json {','.join(parts)} {','.join(tools)}"
        result = guest.run(f"{sys.executable} -m tests.bench.guest {arguments}", LIMIT_S)
        if result.exit_code != 0:
            raise RuntimeError(f"{name}, cgroup v{cgroup_version}: {result.output[-_SAID:]}")
        measured: dict[str, Any] = json.loads(Path(directory, "results.json").read_text())
    return measured


def print_programs(measured: dict[str, Any]) -> None:
    """One line for each program."""
    for tool, programs in measured.get("programs", {}).items():
        for name, run in programs.items():
            print(f"{tool:10} {name:40} {run['instructions']:8.1f} a run, {run['runs']:6} runs, {run['length']:4} long")  # noqa: T201


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--kernel", default="6.1", help="names in the lab's table, separated by commas")
    parser.add_argument("--cgroup", default="2,1", help="versions of the memory hierarchy")
    parser.add_argument("--only", default=",".join(PARTS), help="parts")
    parser.add_argument("--tools", default=",".join(TOOLS), help="what to measure")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
