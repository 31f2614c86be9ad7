# SPDX-License-Identifier: GPL-2.0-only
"""Record what kmemwatch finds on the lab's kernels, for the tests of the plan: ``python -m tests.lab.facts NAME...``.

Run it after adding a fact (`make lab-facts`): one boot a kernel, half a minute each.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kmemwatch.kernel.facts import Facts
from tests.lab import built
from tests.lab.boot import SHARED, TREE, Guest
from tests.lab.kernels import KERNELS, LabKernel, by_name, obtain

DIRECTORY = TREE / "tests/unit/facts"
LIMIT_S = 300
GATHER = "from kmemwatch.kernel import facts; print(facts.gather().to_json())"


def file_of(kernel: LabKernel, release: str) -> Path:
    """``lab-NAME.json`` for kernels that we build, ``debian-X.Y.json`` for Debian's."""
    if kernel.config is not None:
        return DIRECTORY / f"lab-{kernel.name}.json"
    return DIRECTORY / f"debian-{'.'.join(release.split('.')[:2])}.json"


def record(kernel: LabKernel) -> Path:
    """Boot `kernel` and write its facts; raises a LabError, a FetchError, or ValueError for facts that are none."""
    files = obtain(kernel)
    with tempfile.TemporaryDirectory() as shared:
        result = Guest(files, Path(shared)).run(f"{sys.executable} -c '{GATHER}' >{SHARED}/facts.json", LIMIT_S)
        if result.exit_code != 0:
            raise ValueError(f"{kernel.name}: {result.output}")
        facts = Facts.from_json((Path(shared) / "facts.json").read_text())
    target = file_of(kernel, facts.release)
    target.write_text(facts.to_json() + "\n")
    return target


if __name__ == "__main__":
    for name in sys.argv[1:] or [kernel.name for kernel in KERNELS]:
        built.say(f"{name}: {record(by_name(name)).relative_to(TREE)}")
