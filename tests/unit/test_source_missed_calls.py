# SPDX-License-Identifier: GPL-2.0-only
"""What programs did not see: sums by signal, since the start, never more than was skipped, unknown when it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from kmemwatch.source import losses
from kmemwatch.source.losses import MissedCalls, run_numbers

ALLOC, FREE, KFREE, BULK = "alloc/raw_tp:kmem_cache_alloc", "free/kprobe:f", "free/kprobe:kfree", "free-bulk/kprobe:b"
CHECK, RETURN = "recharge/kprobe:check", "recharge/kretprobe:check"


class Kernel:
    """Counters of a kernel that goes on between any two looks at them, by `step` calls."""

    def __init__(self, kprobes: tuple[str, ...]) -> None:
        self.hits = dict.fromkeys(kprobes, 0)
        self.runs = dict.fromkeys(kprobes, 0)
        self.missed = dict.fromkeys(kprobes, 0)
        self.recursion: dict[int, int] = {}
        self.recovered = 0
        self.step = 0
        self.why: str | None = None
        self.hides_hits = False

    def look(self, counts: Mapping[str, int]) -> dict[str, int]:
        for name in self.hits:
            self.hits[name] += self.step
            self.runs[name] += self.step
        return dict(counts)

    def misses(self, *_: object) -> Any:
        return SimpleNamespace(
            why=self.why,
            read=lambda: None if self.why else dict(self.missed),
            hits=lambda: None if self.hides_hits else self.look(self.hits),
        )

    def readers(self) -> Any:
        def runs() -> tuple[bytes, list[tuple[int]]]:
            now, rows = self.look(self.runs), dict[int, tuple[int]]()
            for name, number in run_numbers(self.runs).items():
                rows[number] = (now[name],)
            return b"", [rows[number] for number in sorted(rows)]

        found = {"missed_runs": SimpleNamespace(sums=lambda: (b"", [(self.recovered,), (0,)]))}
        return found | ({"runs": SimpleNamespace(sums=runs)} if self.runs else {})


def skips_of(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, *others: str, peek: Any = "reader") -> MissedCalls:
    names = [*others, *kernel.hits]
    handed: Any = SimpleNamespace(
        programs={name: number for number, name in enumerate(names)},
        link_of={name: 100 + number for number, name in enumerate(names)},
        manifest=SimpleNamespace(facts=None),
    )
    monkeypatch.setattr(losses, "KprobeMisses", kernel.misses)
    monkeypatch.setattr(losses, "program_info", lambda fd: SimpleNamespace(recursion_misses=kernel.recursion.get(fd)))
    return MissedCalls(handed, peek, kernel.readers())


def test_programs_are_numbered_as_they_are_compiled() -> None:
    """One program for each function, whatever signals it serves; entry and return are two."""
    assert run_numbers([ALLOC, FREE, BULK, "x/kprobe:f", CHECK, RETURN]) == {
        FREE: 0, BULK: 1, "x/kprobe:f": 0, CHECK: 2, RETURN: 3,
    }  # fmt: skip


def test_what_was_skipped_before_the_start_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((FREE, KFREE))
    kernel.hits = {FREE: 1000, KFREE: 50}
    kernel.runs = {FREE: 900, KFREE: 50}
    kernel.missed, kernel.recursion = {FREE: 7, KFREE: 0}, {0: 5}
    found = skips_of(kernel, monkeypatch, ALLOC)
    assert found.why is None
    assert found.read() == {"alloc": 0, "free": 0}
    kernel.hits[FREE] += 300
    kernel.runs[FREE] += 289
    kernel.missed[KFREE] += 3
    kernel.recursion[0] += 20
    kernel.recovered += 13
    assert found.read() == {"alloc": 20 - 13, "free": 300 - 289 + 3}
    assert found.not_run() == {FREE: 11, KFREE: 0}


def test_what_is_lost_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second programs make up for between two looks at the counters is taken off too early."""
    kernel = Kernel(())
    kernel.recursion = {0: 7}
    found = skips_of(kernel, monkeypatch, ALLOC)
    told = []
    for skipped, recovered in ((37, 0), (37, 1), (37, 0), (40, 2), (41, 2), (41, 50)):
        kernel.recursion[0], kernel.recovered = 7 + skipped, recovered
        told.append(found.read()["alloc"])
    assert told == [37, 37, 37, 38, 39, 39]


def test_what_is_made_up_for_at_the_start_is_not_told_as_lost_later(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(())
    kernel.recursion, looks = {0: 100}, iter((30, 25, 27, 26, 26))
    readers = {"recovered": SimpleNamespace(sums=lambda: (b"", [(next(looks, 25),), (0,)]))}
    monkeypatch.setattr(kernel, "readers", lambda: readers)
    assert skips_of(kernel, monkeypatch, ALLOC).read() == {"alloc": 0}


def test_recursion_of_kprobes_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since v6.7 the kernel counts some of it as well."""
    kernel = Kernel((FREE,))
    found = skips_of(kernel, monkeypatch)
    kernel.hits[FREE], kernel.runs[FREE], kernel.recursion = 10, 4, {0: 6}
    assert found.read() == {"free": 6}


def test_calls_in_between_are_never_told_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((FREE, BULK))
    kernel.step = 17
    found = skips_of(kernel, monkeypatch)
    for _ in range(10):
        assert found.read() == {"free": 0}
    kernel.step = 0
    kernel.hits[FREE] += 1000
    assert 1000 - 17 <= (found.read()["free"] or 0) <= 1000


def test_what_was_told_as_lost_stays_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls between the two looks hide it: a total that fell would take back losses."""
    kernel = Kernel((FREE, BULK))
    found = skips_of(kernel, monkeypatch)
    kernel.hits[FREE] += 10
    assert found.not_run() == {FREE: 10, BULK: 0}
    kernel.step = 6
    assert found.not_run() == {FREE: 10, BULK: 0}
    assert found.read() == {"free": 10}
    kernel.step = 0
    kernel.hits[FREE] += 7
    assert found.not_run() == {FREE: 17, BULK: 0}


def test_bulk_frees_are_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((FREE, BULK))
    found = skips_of(kernel, monkeypatch)
    kernel.hits = {FREE: 3, BULK: 4}
    assert found.read() == {"free": 7}


def test_unknown_is_none_and_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((FREE,))
    kernel.why = "BTF has no kprobe.nmissed"
    kernel.recursion = {0: 2}
    found = skips_of(kernel, monkeypatch, ALLOC)
    assert found.why == "BTF has no kprobe.nmissed"
    assert found.read() == {"alloc": 0, "free": None}
    assert found.not_run() is None


def test_hidden_counters_of_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel((FREE,))
    kernel.hides_hits = True
    found = skips_of(kernel, monkeypatch)
    assert found.why == "the kernel's counters of hits were not found"
    assert found.read() == {"free": None}


def test_kernel_memory_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = skips_of(Kernel((FREE,)), monkeypatch, peek=None)
    assert found.why == "kernel memory cannot be read"
    assert found.read() == {"free": None}


def test_without_kprobes_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(())
    found = skips_of(kernel, monkeypatch, ALLOC, peek=None)
    assert found.why is None
    assert found.read() == {}
    kernel.recursion = {0: 4}
    assert found.read() == {"alloc": 4}
