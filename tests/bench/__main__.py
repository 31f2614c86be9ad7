# SPDX-License-Identifier: GPL-2.0-only
"""Measure what kmemwatch costs, in guests whose clocks count instructions and on this machine; see docs/costs.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tests.bench import code, native, report, results
from tests.bench.guest import PARTS, PROGRAMS
from tests.bench.tools import LATENCY, TOOLS
from tests.lab.archive import FetchError
from tests.lab.boot import SHARED, Guest, LabError
from tests.lab.kernels import by_name, obtain

GUESTS = (("6.1", 2), ("6.1", 1), ("patched", 2))
"""(Kernel, version of cgroups) that results are kept of."""
LIMIT_S = 1800
_SAID = 3000


def main(argv: Sequence[str]) -> int:
    """Measure, print and compare; returns 1 when something has grown."""
    options = _options(argv)
    kept = results.load()
    try:
        new = _measure(options)
    except (FetchError, LabError, RuntimeError, ValueError) as error:
        _say(f"bench: {error}")
        return 1
    if options.keep:
        kept = results.merged(kept, new)
        results.save(kept)
        report.FILE.write_text(report.text(results.load()))
        _say(f"kept in {results.FILE.name} and {report.FILE.name}")
        return 0
    grown = results.grown(kept, new)
    _say("\n".join(grown) if grown else f"nothing has grown by more than {100 * results.TOLERATED:.0f} %")
    return 1 if grown else 0


def _measure(options: argparse.Namespace) -> results.Results:
    parts, tools = options.only.split(","), options.tools.split(",")
    new: results.Results = {results.GUESTS: {}, results.NATIVE: {}, results.CODE: {}}
    at = time.strftime("%Y-%m-%d", time.gmtime())
    if in_guest := [part for part in PARTS if part in parts]:
        for name, version in _guests(options):
            guest = f"{name}, cgroup v{version}"
            measured = {**run_guest(name, version, in_guest, tools), "at": at}
            new[results.GUESTS][guest] = measured
            _say(f"{guest}: {measured['release']}")
            _print(measured)
    if results.NATIVE in parts:
        machine = f"{os.cpu_count()} processors, {_processor()}"
        new[results.NATIVE] = {"machine": machine, "release": platform.release(), "at": at, **native.measure()}
        _say(json.dumps(new[results.NATIVE], indent=1))
    if results.CODE in parts:
        new[results.CODE] = {facts: code.lengths(facts) for facts in code.FACTS}
        new[results.COMPILER] = code.compiler()
    return new


def run_guest(name: str, cgroup_version: int, parts: Sequence[str], tools: Sequence[str]) -> dict[str, Any]:
    """What tests.bench.guest measures in one boot of a kernel of the lab. Raises what `main` tells."""
    files = obtain(by_name(name))
    with tempfile.TemporaryDirectory(prefix="kmw-bench-") as directory:
        guest = Guest(files, Path(directory), cgroup_v1=cgroup_version == 1, cpus=1, icount=True)
        arguments = f"{SHARED}/results.json {','.join(parts)} {','.join(tools)}"
        result = guest.run(f"{sys.executable} -m tests.bench.guest {arguments}", LIMIT_S)
        if result.exit_code != 0:
            raise RuntimeError(f"{name}, cgroup v{cgroup_version}: {result.output[-_SAID:]}")
        measured: dict[str, Any] = json.loads(Path(directory, "results.json").read_text())
    return measured


def _guests(options: argparse.Namespace) -> list[tuple[str, int]]:
    if not options.kernel and not options.cgroup:
        return list(GUESTS)
    kernels, versions = options.kernel or "6.1", options.cgroup or "2"
    return [(kernel, int(version)) for kernel, version in product(kernels.split(","), versions.split(","))]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _print(measured: dict[str, Any]) -> None:
    for tool, programs in measured.get(PROGRAMS, {}).items():
        for name, run in programs.items():
            _say(f"{tool:10} {name:42} {run['instructions']:8.1f} a run, {run['runs']:6} runs, {run['length']:5} long")
    for part in PARTS[1:]:
        for tool, figures in measured.get(part, {}).items():
            for what, figure in figures.items():
                _say(f"{tool:10} {what:60} {figure:14,.1f}")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the command's output


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parts = (*PARTS, results.NATIVE, results.CODE)
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--kernel", help="names in the lab's table, separated by commas; else 6.1 and patched")
    parser.add_argument("--cgroup", help="versions of the memory hierarchy: 2,1")
    parser.add_argument("--only", default=",".join(parts), help=f"some of {', '.join(parts)}")
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"some of {', '.join((*TOOLS, LATENCY))}")
    parser.add_argument("--keep", action="store_true", help="compare later runs with this one, and write docs/costs.md")
    options = parser.parse_args(argv)
    for value, known in ((options.only, parts), (options.tools, (*TOOLS, LATENCY))):
        if unknown := set(value.split(",")) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    if options.keep and options.tools != ",".join(TOOLS):
        parser.error("--keep: only with all --tools, as they are compared in one run")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
