# SPDX-License-Identifier: GPL-2.0-only
"""Calls of a hook that its program did not see, however that came about; a signal is as exact as this says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kmemwatch.attach.handover import Handed
from kmemwatch.maps import decode
from kmemwatch.maps.handles import MapReader, program_stats
from kmemwatch.maps.peek import Peek
from kmemwatch.source.misses import KprobeMisses

_KPROBES = ("kprobe", "kretprobe")
_START_TRIES = 5


class Skips:
    """Counts since this object was made: while hooks were attached one after the other, nothing is exact."""

    def __init__(self, handed: Handed, peek: Peek | None, readers: Mapping[str, MapReader]) -> None:
        self.why: str | None = None
        """Why it is unknown what kprobes did not see; None when that is counted, and when there are none."""
        self._programs = {
            name: fd for name, fd in handed.programs.items() if "/" in name and _signal(name) != "latency"
        }
        """What is timed is a sample: a call that it misses is missing from no figure."""
        self._readers = readers
        kprobes = {name: fd for name, fd in handed.link_of.items() if _is_kprobe(name)}
        self._numbers = run_numbers(kprobes)
        self._misses: KprobeMisses | None = None
        if kprobes and peek is None:
            self.why = "kernel memory cannot be read"
        elif kprobes and peek is not None:
            self._misses = KprobeMisses(peek, handed.manifest.facts, kprobes)
            self.why = self._misses.why or self._why_not_run()
        self._start = self._most_skipped()
        self._told = dict.fromkeys(self._start, 0)
        self._start_not_run = self._least_not_run()
        self._told_not_run = dict.fromkeys(self._start_not_run, 0)

    def read(self) -> dict[str, int | None]:
        """Signal -> calls that were not counted; None: not known. Raises OSError.

        Runs that the kernel skipped because an interrupt hit while the program ran, less those that the second program
        of the hook made up for; what kprobes missed, and what they saw without their programs being run.
        """
        for signal, count in self._totals().items():
            self._told[signal] = max(self._told.get(signal, 0), count - self._start.get(signal, 0))
        skipped: dict[str, int | None] = dict(self._told)
        for name, count in (self.not_run() or {}).items():
            skipped[_signal(name)] = (skipped.get(_signal(name)) or 0) + count
        if self.why is not None:
            skipped.update(dict.fromkeys(map(_signal, self._numbers), None))
        return skipped

    def not_run(self) -> dict[str, int] | None:
        """Kprobe (``signal/kind:target``) -> hits that its program was not run for. None: not known. Raises OSError."""
        if self.why is not None or self._misses is None:
            return None
        # Hits first: what comes in between has run more often, not less. So under load each look tells too little, and
        # the most that any of them has told is closest.
        for name, count in self._hits_less_runs(hits_first=True).items():
            self._told_not_run[name] = max(self._told_not_run[name], count - self._start_not_run[name])
        return dict(self._told_not_run)

    def _most_skipped(self) -> dict[str, int]:
        """What was skipped before the start: as in `_totals`, the most of several looks is closest."""
        looks = [self._totals() for _ in range(_START_TRIES)]
        return {signal: max(look.get(signal, 0) for look in looks) for signal in looks[0]}

    def _totals(self) -> dict[str, int]:
        """All but what `not_run` has.

        What is recovered is read last: with what came in between, so that each look may tell too little, and a later
        one less than an earlier one. A counter must not fall, as what reads it takes that for a new start.
        """
        skipped: dict[str, int] = {}
        for name, fd in self._programs.items():
            # Kprobes say so since v6.7 only, and `not_run` says the same.
            told = not _is_kprobe(name) and "/again:" not in name
            misses = program_stats(fd).recursion_misses if told else None
            if misses is not None:
                skipped[_signal(name)] = skipped.get(_signal(name), 0) + misses
        for name, missed in ((self._misses.read() if self._misses is not None else None) or {}).items():
            skipped[_signal(name)] = skipped.get(_signal(name), 0) + missed
        if "recovered" in self._readers:
            _, sums = self._readers["recovered"].sums()
            for signal, (recovered,) in zip(decode.NOTED_SIGNALS, sums, strict=True):
                if signal in skipped:
                    skipped[signal] -= recovered
        return skipped

    def _why_not_run(self) -> str | None:
        if "runs" not in self._readers:
            return "its programs do not count their runs"
        if self._misses is None or self._misses.hits() is None:
            return "the kernel's counters of hits were not found"
        return None

    def _hits_less_runs(self, hits_first: bool) -> dict[str, int]:
        """Kprobe -> hits, less the runs of its program."""
        assert self._misses is not None
        hits = self._misses.hits() if hits_first else None
        _, sums = self._readers["runs"].sums()
        hits = hits if hits_first else self._misses.hits()
        return {name: count - sums[self._numbers[name]][0] for name, count in (hits or {}).items()}

    def _least_not_run(self) -> dict[str, int]:
        """What was not run before the start. Each try tells too much, by the calls that came meanwhile: the least of
        several is closest, and nothing is said to be lost that was not."""
        if self.why is not None or self._misses is None:
            return {}
        tries = [self._hits_less_runs(hits_first=False) for _ in range(_START_TRIES)]
        return {name: min(one[name] for one in tries) for name in tries[0]}


def run_numbers(names: Iterable[str]) -> dict[str, int]:
    """Program of a kprobe (``signal/kind:target``) -> its ``enum runs``, as the loader has numbered them."""
    names = [name for name in names if _is_kprobe(name)]
    order: Sequence[str] = list(dict.fromkeys(name.partition("/")[2] for name in names))
    return {name: order.index(name.partition("/")[2]) for name in names}


def _is_kprobe(name: str) -> bool:
    return name.partition("/")[2].partition(":")[0] in _KPROBES


def _signal(name: str) -> str:
    return name.partition("/")[0].removesuffix("-bulk")
