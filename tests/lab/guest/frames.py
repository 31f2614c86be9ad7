# SPDX-License-Identifier: GPL-2.0-only
"""Who owns the slabs of child caches, by /proc/kpageflags and /proc/kpagecgroup."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

BYTES_AT_ONCE = 1 << 20


def frames(path: str) -> bytes:
    """8 bytes a frame; these files take no read of any other size."""
    fd, parts, offset = os.open(path, os.O_RDONLY), [], 0
    try:
        while part := os.pread(fd, BYTES_AT_ONCE, offset):
            parts.append(part)
            offset += len(part)
    finally:
        os.close(fd)
    return b"".join(parts)


@dataclass(frozen=True)
class Frames:
    """Of slabs that are charged to somebody."""

    slabs: int
    pages: Mapping[int, int]
    """cgroup id -> pages; these files count the pages of a dying memcg for its nearest online ancestor."""


def look_at_frames() -> Frames:
    flags, owners = frames("/proc/kpageflags"), frames("/proc/kpagecgroup")
    # Bit 7 is the first byte's last, bit 16 the third's first (Documentation/admin-guide/mm/pagemap.rst). No loop over
    # all frames: that is slow where machines are emulated.
    tails = flags[2::8]
    slabs, pages = 0, Counter[int]()
    for slab in re.finditer(rb"[\x80-\xff]", flags[0::8]):
        frame = slab.start()
        (owner,) = struct.unpack_from("=Q", owners, 8 * frame)
        if not owner:
            continue
        slabs += 1
        pages[owner] += 1
        while tails[frame + 1] & 1:
            frame += 1
            pages[owner] += 1
    return Frames(slabs, pages)
