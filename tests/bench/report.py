# SPDX-License-Identifier: GPL-2.0-only
"""docs/costs.md out of the kept results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.guest import JOBBED, OPERATED, PROGRAMS
from tests.bench.native import SERVE_CPU, SERVE_RSS, SNAPSHOTS, TOP_COLD, TOP_WARM
from tests.bench.results import GUESTS, NATIVE, Results
from tests.bench.tools import BPFTRACE, EMPTY, KMEMWATCH, MEMLEAK, NONE

FILE = Path(__file__).parents[2] / "docs/costs.md"

_NAMES = {
    NONE: "nothing",
    EMPTY: "empty programs",
    KMEMWATCH: "kmemwatch",
    BPFTRACE: "bpftrace, count by cache and cgroup",
    MEMLEAK: "bcc's memleak",
}
_HEAD = """<!-- Written by `make bench ARGS=--keep` from tests/bench/results.json; a test compares the two. -->
# What kmemwatch costs

This command measures it:

```
make bench ARGS=--keep
```

It boots kernels in QEMU with `-icount shift=0,sleep=off`. Each instruction of the guest then takes 1 ns of the guest's
time, and waiting takes none, so all its clocks count instructions. The figures are the same in every run, to about
0.1 % (whole jobs: 0.5 %). They say nothing about caches and mispredicted branches. `make bench` without ARGS measures
and fails when a figure of kmemwatch has grown by more than 10 %.

An empty program on the same tracepoints shows what it costs to have a program there at all. A hook that counts objects
has a second program, `missed`, that counts what the first misses in interrupts
([ADR 8](adr/0008-two-programs-a-hook.md)). bpftrace counts calls by cache and cgroup of the caller and nothing else;
memleak keeps a stack for every object.
"""

_CHECK = "__memcg_kmem_recharge_slab"


@dataclass(frozen=True)
class Target:
    what: str
    limit: float
    unit: str
    measure: Callable[[Results], Iterable[tuple[str, float]]]
    """(where, figure) of each measurement."""


def _program(version: int, *starts: str) -> Callable[[Results], Iterator[tuple[str, float]]]:
    def found(results: Results) -> Iterator[tuple[str, float]]:
        for guest, measured in sorted(results[GUESTS].items()):
            if version and measured["cgroup_version"] != version:
                continue
            for name, run in sorted(measured[PROGRAMS][KMEMWATCH].items()):
                if name.startswith(starts):
                    yield f"{name.partition(':')[2]}, {guest}", run["instructions"]

    return found


def _recharge(results: Results) -> Iterator[tuple[str, float]]:
    for guest, measured in sorted(results[GUESTS].items()):
        programs = measured[PROGRAMS][KMEMWATCH].items()
        runs = [run["instructions"] for name, run in programs if name.endswith(f":{_CHECK}")]
        if runs:
            yield f"{_CHECK}, {guest}", sum(runs)


def _figures(*names: str) -> Callable[[Results], Iterator[tuple[str, float]]]:
    def found(results: Results) -> Iterator[tuple[str, float]]:
        for name in names:
            if name in results[NATIVE]:
                yield name.rpartition(", ")[0], results[NATIVE][name]

    return found


_ALLOC, _FREE = ("alloc/raw_tp", "alloc/fexit"), ("free/raw_tp", "free/fentry")
TARGETS = (
    Target("alloc program, known pair, cgroup v2", 150, "instructions", _program(2, *_ALLOC)),
    Target("alloc program, known pair, cgroup v1", 200, "instructions", _program(1, *_ALLOC)),
    Target("free program", 150, "instructions", _program(0, *_FREE)),
    Target("recharge check without a recharge, entry and return", 200, "instructions", _recharge),
    Target("start of `top` to its first screen", 1.5, "s", _figures(TOP_WARM, TOP_COLD)),
    Target("memory of the daemon, 1,000 cgroups", 40, "MB", _figures(SERVE_RSS)),
    Target("processor time of the daemon, 1,000 cgroups, 5 s", 1, "%", _figures(SERVE_CPU)),
    Target("snapshot of 65,536 pairs", 250, "ms", _figures(*SNAPSHOTS)),
)


def text(results: Results) -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_targets(results), *_guests(results), *_native(results)]).rstrip() + "\n"


def _targets(results: Results) -> Iterator[str]:
    yield "## Targets\n"
    rows = []
    for target in TARGETS:
        for where, figure in target.measure(results):
            met = "met" if figure <= target.limit else "**missed**"
            rows.append((target.what, where, f"{figure:.3g} {target.unit}", f"{target.limit:g} {target.unit}", met))
    yield from table(("what", "where", "measured", "target", ""), rows)


def _guests(results: Results) -> Iterator[str]:
    for guest, measured in sorted(results[GUESTS].items()):
        yield f"## {guest}\n"
        yield f"Linux {measured['release']}, {measured['at']}.\n"
        yield "Instructions for one run of each program, the kernel's measuring included; cgroups and caches known:\n"
        rows = [(_NAMES[tool], f"`{name}`", f"{run['instructions']:,.0f}", f"{run['length']:,}")
                for tool in _NAMES for name, run in sorted(measured[PROGRAMS].get(tool, {}).items())]  # fmt: skip
        yield from table(("of", "program", "instructions a run", "BPF instructions"), rows)
        yield "Instructions for one operation until all is freed, including the hooks:\n"
        yield from _costs(measured[OPERATED], "+{:,.0f}".format, _more)
        yield "Jobs, millions of instructions:\n"
        yield from _costs({tool: {what: cost / 1e6 for what, cost in jobs.items()}
                           for tool, jobs in measured[JOBBED].items()}, "{:+.1f} %".format, _percent)  # fmt: skip


def _costs(measured: Mapping[str, Mapping[str, float]], show: Callable[[float], str],
           compare: Callable[[float, float], float]) -> Iterator[str]:  # fmt: skip
    """Rows are what was done, columns are tools: without any, and by how much more with each."""
    tools = [tool for tool in _NAMES if tool in measured and tool != NONE]
    rows = [(what, f"{alone:,.1f}", *(show(compare(measured[tool][what], alone)) for tool in tools))
            for what, alone in measured[NONE].items()]  # fmt: skip
    yield from table(("", _NAMES[NONE], *(_NAMES[tool] for tool in tools)), rows)


def _more(cost: float, alone: float) -> float:
    return cost - alone


def _percent(cost: float, alone: float) -> float:
    return 100 * (cost / alone - 1)


def _native(results: Results) -> Iterator[str]:
    figures = dict(results[NATIVE])
    if figures:
        yield "## Memory and time\n"
        yield f"On {figures.pop('machine')}, Linux {figures.pop('release')}, {figures.pop('at')}. {_HOW}\n"
        yield from table(("what", "measured"), [(name, f"{figure:,.4g}") for name, figure in sorted(figures.items())])


_HOW = (
    "Times are the best of five, because others may use the machine. Processor time is that of all processes of a "
    "command. Python's modules are compiled already. A cold start finds nothing that an earlier start kept "
    "([ADR 7](adr/0007-warm-start.md)). For a minute, `serve` watched 1,000 cgroups, read every 5 s and "
    "was scraped as often; its memory is that of all its processes."
)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Markdown, and an empty line."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""
