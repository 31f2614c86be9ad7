# SPDX-License-Identifier: GPL-2.0-only
"""The loader with one offset 8 bytes too high: KMEMWATCH_TEST_SHIFT names it."""

from __future__ import annotations

import os
import sys

from kmemwatch.attach import child as attach
from kmemwatch.kernel import members as layout
from kmemwatch.kernel.btf import Btf

_read_offsets = layout.read_offsets


def _shifted(btf: Btf) -> dict[str, int]:
    offsets = _read_offsets(btf)
    offsets[os.environ["KMEMWATCH_TEST_SHIFT"]] += 8
    return offsets


if __name__ == "__main__":
    layout.read_offsets = _shifted
    # A cold start that keeps nothing, or the next start would use the wrong offset.
    os._exit(attach.main(sys.argv, directory=None))
