# SPDX-License-Identifier: GPL-2.0-only
"""What a cgroup can leave behind, and mixes of it; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kmemwatch.errors import UsageError

MAX_WEIGHT = 1000
_ENTRY = re.compile(r"([a-z]+)(?:=([0-9]{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of object."""

    name: str
    letter: str
    """What workers call it; capital for an object that outlives its cgroup."""
    memory_bytes: int
    """Rough upper bound of what one object costs the host, 64-bit; for refusing what cannot fit."""
    disk: bool = False
    """Needs a file system with a disk below it."""
    descriptors: int = 0
    """Open files for each object that is left."""


KINDS = (
    Kind("dentry", "d", 512),
    Kind("inode", "i", 2048),
    Kind("negative", "n", 384, disk=True),
    # Page cache can be written back and reclaimed: what it needs is disk.
    Kind("file", "f", 256, disk=True),
    Kind("shmem", "s", 4096 + 256),
    Kind("pipe", "p", 3072, descriptors=2),
    Kind("socket", "k", 5120, descriptors=1),
    Kind("thread", "t", 64 * 1024),
)
"""In this order everywhere."""

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
