# SPDX-License-Identifier: GPL-2.0-only
"""What each cgroup will do in its life; pure, and the same for the same options and seed whoever does it and when."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, groupby

from kmemwatch.churn.kinds import BY_LETTER, BY_NAME, Mix
from kmemwatch.churn.objects import runs


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `churn`, checked."""

    mix: Mix
    cgroups: int | None
    """None: as many as `duration_s` allows."""
    objects: int
    """Objects of all kinds together that each cgroup makes."""
    leave_percent: int
    """How many of its objects outlive a cgroup."""
    dead: int | None
    """At most so many dead cgroups keep what they left; None: all, until the end."""
    parallel: int
    rate: float | None
    """Cgroups a second, at most."""
    seed: int
    duration_s: float | None
    hold_s: float
    directory: str


@dataclass(frozen=True, slots=True)
class Life:
    """One cgroup, from mkdir to rmdir."""

    serial: int
    steps: str
    """Runs of objects in the order in which they are made: ``D3p1P2``; a capital outlives the cgroup."""

    @property
    def name(self) -> str:
        return f"c{self.serial}"

    def made(self) -> dict[str, int]:
        """Kind -> objects to be made."""
        counts: dict[str, int] = {}
        for letter, number in runs(self.steps):
            name = BY_LETTER[letter.lower()].name
            counts[name] = counts.get(name, 0) + number
        return counts


def lives(options: Options) -> Iterator[Life]:
    """All lives, in order; endless without `cgroups`."""
    for serial in count() if options.cgroups is None else range(options.cgroups):
        yield life(options, serial)


def life(options: Options, serial: int) -> Life:
    """The life of one cgroup: depends on mix, objects, leave_percent, seed and its serial number, nothing else."""
    dice = random.Random(f"{options.seed}:{serial}")
    shares = _shares(options.mix, options.objects, dice)
    if len(shares) == 1 and options.leave_percent in (0, 100):
        letter, number = shares[0]
        return Life(serial, f"{letter.upper() if options.leave_percent else letter}{number}")
    letters = [sign for letter, number in shares for sign in _marked(letter, number, options.leave_percent)]
    _shuffle(letters, dice)
    return Life(serial, "".join(f"{letter}{len(list(run))}" for letter, run in groupby(letters)))


def _shares(mix: Mix, objects: int, dice: random.Random) -> list[tuple[str, int]]:
    """Objects of each kind: its share rounded down, and those that are over drawn by what was cut off."""
    total = sum(weight for _, weight in mix)
    counts = [objects * weight // total for _, weight in mix]
    cut_off = [objects * weight % total for _, weight in mix]
    for _ in range(objects - sum(counts)):
        point = min(int(dice.random() * sum(cut_off)), sum(cut_off) - 1)
        chosen = next(place for place in range(len(mix)) if (point := point - cut_off[place]) < 0)
        counts[chosen] += 1
        cut_off[chosen] = 0
    return [(BY_NAME[name].letter, number) for (name, _), number in zip(mix, counts, strict=True) if number]


def _marked(letter: str, number: int, leave_percent: int) -> str:
    left = (number * leave_percent + 50) // 100
    return letter.upper() * left + letter * (number - left)


def _shuffle(letters: list[str], dice: random.Random) -> None:
    """Fisher and Yates, from `random()` alone: its sequence is the one that Python promises to keep."""
    for last in range(len(letters) - 1, 0, -1):
        other = int(dice.random() * (last + 1))
        letters[last], letters[other] = letters[other], letters[last]


class Digest:
    """Names the work that was given out: equal for two runs that did the same."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, given: Life) -> None:
        """In the order of `lives`."""
        self._hash.update(f"{given.serial} {given.steps}\n".encode())

    def text(self) -> str:
        """Hexadecimal SHA-256."""
        return self._hash.hexdigest()
