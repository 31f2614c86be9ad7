# SPDX-License-Identifier: GPL-2.0-only
"""Slots: what programs count is told of once, and counts only grow, whatever user space gives back meanwhile.

The programs are played step by step, as bpf/pairs.h has them: others on their CPU can come in between any two accesses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest

from kmemwatch.maps.defines import SLOTS_BYTES, defines
from kmemwatch.maps.slots import CACHE, COUNTS, NOBODY, OWNER, WORDS, Counts, Pair, Slots
from kmemwatch.maps.structs import constant, layout
from tests.unit.fake_source import recorded_facts

CPUS = 2
SLOT_BYTES, SLOT_PLACES = layout("slot").size, constant("SLOT_PLACES")
PLACES = 2
"""On each CPU: few, so that pairs meet."""
CGROUP_ID, CLAIMS = 2, 3
OBJECTS, ACCOUNT_OBJECTS, FREED_OBJECTS = range(3)
CACHE_A = 0xC000


def row(*first: int) -> Counts:
    """Counts of a pair: `first`, and 0 for all others."""
    return (*first, *[0] * (COUNTS.stop - COUNTS.start - len(first)))


class Memory:
    """The map, and programs that run in the middle of what they do."""

    def __init__(self) -> None:
        self.words = [memoryview(bytearray(PLACES * SLOT_BYTES)).cast("Q") for _ in range(CPUS)]
        self.hashed: Counter[tuple[Pair, int]] = Counter()

    def windows(self) -> Iterator[AbstractContextManager[memoryview]]:
        yield from map(nullcontext, self.words)

    def place(self, owner: int) -> int:
        return owner % PLACES * WORDS

    def program(self, cpu: int, pair: Pair, owner: int, column: int) -> Iterator[None]:
        """count_pair(). Each turn is one access to memory."""
        cache, cgroup_id = pair
        words, at = self.words[cpu], self.place(owner)
        found = words[at + CACHE] == cache
        yield
        found = found and words[at + OWNER] == owner
        yield
        if not found:
            found = yield from self._claim(words, at, (cache, owner, cgroup_id or NOBODY))
        if found:
            words[at + COUNTS.start + column] += 1
        else:
            self.hashed[pair, column] += 1

    def _claim(self, words: memoryview, at: int, key: tuple[int, int, int]) -> Generator[None, None, bool]:
        if words[at + CACHE]:
            return False
        yield
        words[at + CLAIMS] += 1
        yield
        if words[at + CLAIMS] != 1:
            return False
        yield
        for word, value in ((CGROUP_ID, key[2]), (OWNER, key[1]), (CACHE, key[0])):
            words[at + word] = value
            yield
        return True


def run(program: Iterator[None]) -> None:
    for _ in program:
        pass


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_a_slot_is_as_long_as_a_line_of_the_cpus_cache() -> None:
    assert SLOT_BYTES == 64


def test_a_pair_has_a_slot_on_each_cpu_and_one_total(memory: Memory) -> None:
    for cpu in range(CPUS):
        for column in (OBJECTS, ACCOUNT_OBJECTS, FREED_OBJECTS):
            run(memory.program(cpu, (CACHE_A, 7), 70, column))
    assert Slots(memory.windows).read() == {(CACHE_A, 7): row(CPUS, CPUS, CPUS)}
    assert not memory.hashed


def test_what_nobody_is_charged_for_has_cgroup_id_0(memory: Memory) -> None:
    run(memory.program(0, (CACHE_A, 0), NOBODY, FREED_OBJECTS))
    assert Slots(memory.windows).read() == {(CACHE_A, 0): row(0, 0, 1)}


def test_a_slot_keeps_its_first_owner(memory: Memory) -> None:
    run(memory.program(0, (CACHE_A, 7), 70, OBJECTS))
    run(memory.program(0, (CACHE_A, 8), 70 + PLACES, OBJECTS))
    assert Slots(memory.windows).read() == {(CACHE_A, 7): row(1, 0, 0)}
    assert memory.hashed == {((CACHE_A, 8), OBJECTS): 1}


def test_two_memcgs_of_one_cgroup_are_one_pair(memory: Memory) -> None:
    """The controller can be disabled and enabled again: another css, with another serial number."""
    run(memory.program(0, (CACHE_A, 7), 70, OBJECTS))
    run(memory.program(0, (CACHE_A, 7), 71, OBJECTS))
    assert Slots(memory.windows).read() == {(CACHE_A, 7): row(2, 0, 0)}


@pytest.mark.parametrize("steps", range(9))
def test_whoever_interrupts_a_claim_loses_nothing(memory: Memory, steps: int) -> None:
    interrupted = memory.program(0, (CACHE_A, 7), 70, OBJECTS)
    for _ in range(steps):
        next(interrupted, None)
    run(memory.program(0, (CACHE_A, 8), 70 + PLACES, OBJECTS))
    run(interrupted)
    counted: Counter[Pair] = Counter({pair: counts[0] for pair, counts in Slots(memory.windows).read().items()})
    for (pair, _), number in memory.hashed.items():
        counted[pair] += number
    assert counted == {(CACHE_A, 7): 1, (CACHE_A, 8): 1}


@pytest.mark.parametrize("missing", [OWNER, CGROUP_ID])
def test_a_claim_that_is_seen_half_is_told_of_later(memory: Memory, missing: int) -> None:
    """On a machine whose CPUs may see the stores of another one in another order."""
    run(memory.program(0, (CACHE_A, 7), 70, OBJECTS))
    words, at = memory.words[0], memory.place(70)
    value, words[at + missing] = words[at + missing], 0
    slots = Slots(memory.windows)
    assert slots.read() == {}
    words[at + missing] = value
    assert slots.read() == {(CACHE_A, 7): row(1, 0, 0)}


def forgotten(memory: Memory) -> Slots:
    """Slots of which one has been told of and forgotten."""
    run(memory.program(0, (CACHE_A, 7), 70, OBJECTS))
    slots = Slots(memory.windows)
    assert slots.read() == {(CACHE_A, 7): row(1, 0, 0)}
    slots.drop([(CACHE_A, 7)])
    return slots


def test_the_slot_of_the_dead_can_be_taken_two_readings_later(memory: Memory) -> None:
    slots = forgotten(memory)
    assert slots.read() == {}
    assert memory.words[0][memory.place(70) + CACHE] == CACHE_A
    run(memory.program(0, (CACHE_A, 8), 70 + PLACES, OBJECTS))
    assert memory.hashed == {((CACHE_A, 8), OBJECTS): 1}
    assert slots.read() == {}
    assert not any(memory.words[0])
    run(memory.program(0, (CACHE_A, 8), 70 + PLACES, OBJECTS))
    assert slots.read() == {(CACHE_A, 8): row(1, 0, 0)}


def test_slots_of_others_stay_when_one_is_given_back(memory: Memory) -> None:
    run(memory.program(0, (CACHE_A, 8), 71, OBJECTS))
    run(memory.program(1, (CACHE_A, 8), 70 + PLACES, OBJECTS))
    slots = Slots(memory.windows)
    slots.read()
    run(memory.program(0, (CACHE_A, 7), 70, OBJECTS))
    slots.read()
    slots.drop([(CACHE_A, 7)])
    assert [slots.read() for _ in range(3)] == [{(CACHE_A, 8): row(2, 0, 0)}] * 3


def test_what_comes_late_is_told_of_once(memory: Memory) -> None:
    slots = forgotten(memory)
    run(memory.program(0, (CACHE_A, 7), 70, FREED_OBJECTS))
    run(memory.program(1, (CACHE_A, 7), 70, FREED_OBJECTS))
    told: list[dict[Pair, Counts]] = [slots.read()]
    slots.drop([(CACHE_A, 7)])
    told += [slots.read(), slots.read()]
    assert told == [{(CACHE_A, 7): row(0, 0, 2)}, {}, {}]


def test_forgetting_what_was_not_told_of_changes_nothing(memory: Memory) -> None:
    slots = Slots(memory.windows)
    slots.read()
    run(memory.program(0, (CACHE_A, 7), 70, OBJECTS))
    slots.drop([(CACHE_A, 7)])
    assert slots.read() == {(CACHE_A, 7): row(1, 0, 0)}


@pytest.mark.parametrize(("cpus", "each"), [(1, 4096), (2, 4096), (64, 4096), (96, 2048), (256, 1024), (8192, 32)])
def test_many_cpus_have_fewer_slots_each(cpus: int, each: int) -> None:
    values = defines(replace(recorded_facts("debian-6.1"), possible_cpus=cpus)).values
    assert (1 << values["SLOT_BITS"], values["ALL_SLOTS"]) == (each, each * cpus)
    assert values["ALL_SLOTS"] * SLOT_BYTES <= SLOTS_BYTES


def test_pairs_are_spread_over_slots() -> None:
    """As count_pair() does it: 40 memcgs with the addresses of 50 caches each, in 4,096 slots; one in 20 finds none."""
    caches = [0xFFFF888003C40000 + 256 * number for number in range(50)]
    pairs = [(cache, serial) for cache in caches for serial in range(100, 140)]
    taken: set[int] = set()
    for cache, serial in pairs:
        first = (cache ^ serial * constant("OWNER_HASH")) * constant("SLOT_HASH") % 2**64 >> 52
        taken |= set([first ^ beside for beside in range(SLOT_PLACES) if first ^ beside not in taken][:1])
    assert len(taken) > 0.95 * len(pairs)
