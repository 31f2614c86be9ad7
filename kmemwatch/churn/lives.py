# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of objects, and the life of each cgroup: which objects it makes and leaves, in which order; pure.

The same options and seed give the same lives on every host and in every version.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, groupby

from kmemwatch.churn.objects import runs
from kmemwatch.errors import UsageError

MAX_WEIGHT = 1000
_ENTRY = re.compile(r"([a-z]+)(?:=([0-9]{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A kind of kernel object that a cgroup can leave behind."""

    name: str
    letter: str
    """Its name in `Life.steps`, there a capital for an object that outlives its cgroup."""
    memory_bytes: int
    """Roughly the most memory that one object takes on a 64-bit host; a run that does not fit is refused."""
    disk: bool = False
    """Needs a file system on a disk."""
    descriptors: int = 0
    """Open files for each object that is left."""


KINDS = (
    ObjectKind("dentry", "d", 512),
    ObjectKind("inode", "i", 2048),
    ObjectKind("negative", "n", 384, disk=True),
    # Page cache can be written back and reclaimed: what it needs is disk.
    ObjectKind("file", "f", 256, disk=True),
    ObjectKind("shmem", "s", 4096 + 256),
    ObjectKind("pipe", "p", 3072, descriptors=2),
    ObjectKind("socket", "k", 5120, descriptors=1),
    ObjectKind("thread", "t", 64 * 1024),
)
"""Everything that lists kinds does so in this order."""

BY_NAME = {kind.name: kind for kind in KINDS}
BY_LETTER = {kind.letter: kind for kind in KINDS}

Mix = tuple[tuple[str, int], ...]
"""(name of a kind, weight), in the order of KINDS."""


def parse_mix(text: str) -> Mix:
    """``dentry=3,pipe`` -> (("dentry", 3), ("pipe", 1)). Raises UsageError."""
    weights: dict[str, int] = {}
    for entry in text.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None:
            raise UsageError(f"--kind: {entry.strip()!r} is not a kind like dentry or dentry=3", _kinds_hint())
        name, weight = match[1], int(match[2] or 1)
        if name not in BY_NAME:
            raise UsageError(f"--kind: there is no kind {name!r}", _kinds_hint())
        if name in weights:
            raise UsageError(f"--kind: {name} is there twice", "give each kind once, with its weight: dentry=3,pipe=1")
        if not 1 <= weight <= MAX_WEIGHT:
            raise UsageError(f"--kind: weight {weight} of {name} is not in 1 to {MAX_WEIGHT}")
        weights[name] = weight
    return tuple((kind.name, weights[kind.name]) for kind in KINDS if kind.name in weights)


def mix_text(mix: Mix) -> str:
    """Inverse of `parse_mix`."""
    return ",".join(f"{name}={weight}" for name, weight in mix)


def _kinds_hint() -> str:
    return f"kinds are {', '.join(BY_NAME)}"


@dataclass(frozen=True, slots=True)
class ChurnOptions:
    """The command line of `churn`, checked."""

    mix: Mix
    cgroups: int | None
    """None: as many as `duration_s` allows."""
    objects: int
    """Objects of all kinds together that each cgroup makes."""
    leave_percent: int
    """How many of its objects outlive a cgroup."""
    dead: int | None
    """At most so many removed cgroups keep what they left; None: all, until the end."""
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


def lives(options: ChurnOptions) -> Iterator[Life]:
    """All lives, in order; endless without `cgroups`."""
    for serial in count() if options.cgroups is None else range(options.cgroups):
        yield life(options, serial)


def life(options: ChurnOptions, serial: int) -> Life:
    """Depends on mix, objects, leave_percent, seed and the serial number only."""
    dice = random.Random(f"{options.seed}:{serial}")
    shares = _shares(options.mix, options.objects, dice)
    if len(shares) == 1 and options.leave_percent in (0, 100):
        letter, number = shares[0]
        return Life(serial, f"{letter.upper() if options.leave_percent else letter}{number}")
    letters = [sign for letter, number in shares for sign in _marked(letter, number, options.leave_percent)]
    _shuffle(letters, dice)
    return Life(serial, "".join(f"{letter}{len(list(run))}" for letter, run in groupby(letters)))


def _shares(mix: Mix, objects: int, dice: random.Random) -> list[tuple[str, int]]:
    """(letter, objects): the share of each kind rounded down; the rest is drawn, weighted by what was cut off."""
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
    """Fisher and Yates, with `random()` only: Python promises that its sequence never changes."""
    for last in range(len(letters) - 1, 0, -1):
        other = int(dice.random() * (last + 1))
        letters[last], letters[other] = letters[other], letters[last]


class LivesDigest:
    """Identifies the lives of a run: equal for two runs that did the same."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, life: Life) -> None:
        """In the order of `lives`."""
        self._hash.update(f"{life.serial} {life.steps}\n".encode())

    def text(self) -> str:
        """Hexadecimal SHA-256."""
        return self._hash.hexdigest()
