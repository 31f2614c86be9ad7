# SPDX-License-Identifier: GPL-2.0-only
"""Makes docs/reports from guests that did the same work: ``python -m tests.lab.reports`` (`make lab-reports`).

It takes a quarter of an hour: the guests run one after the other, because two at once would slow each other down.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.daemon import KMEMWATCH
from tests.lab import built, comparison
from tests.lab.boot import TREE
from tests.lab.kernels import by_name
from tests.lab.live import LiveRun, run_live

DIRECTORY = TREE / "docs/reports"
DOCUMENT = TREE / "docs/compare.md"
BEGIN, END = "<!-- begin: made by `make lab-reports` -->", "<!-- end -->"
MAX_BYTES = 300_000
"""Of a report: it is attached to mail, and kept in the repository."""
LAST_TABLE = "time  "


def trouble(run: LiveRun) -> str:
    """Why the guest's files cannot be used; empty when its test passed."""
    nodeids = [nodeid for nodeid in run.outcomes if nodeid.startswith(comparison.GUEST_TEST)]
    outcomes = [run.outcome(nodeid) for nodeid in nodeids or [comparison.GUEST_TEST]]
    return "\n".join(outcome.text or outcome.outcome for outcome in outcomes if outcome.outcome != "passed")


def collect(kernel: str, shared: Path, directory: Path) -> None:
    """Copy the files that the guest left."""
    for file in (comparison.recording, comparison.churn_report, comparison.counters):
        shutil.copyfile(file(shared, kernel), file(directory, kernel))


def arguments(a: str, b: str) -> list[str]:
    """Of `kmemwatch compare`, in the directory that has the recordings."""
    here = Path()
    files = [str(comparison.recording(here, name)) for name in (a, b)]
    sides = zip("ab", (a, b), strict=True)
    workloads = [(f"--workload-{side}", str(comparison.churn_report(here, name))) for side, name in sides]
    return [*files, *(word for pair in workloads for word in pair)]


def compare(directory: Path, a: str, b: str, output: str) -> str:
    """What `kmemwatch compare` prints."""
    command = [*KMEMWATCH, "compare", *arguments(a, b), "--output", output]
    return subprocess.run(
        command, cwd=directory, env={"PYTHONPATH": str(TREE)}, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def last_table(text: str) -> str:
    """Time, dying memcgs, difference in memory."""
    return text[text.index(LAST_TABLE) :]


def chapter(directory: Path) -> str:
    """What docs/compare.md shows of the reports in `directory`."""
    parts = [BEGIN]
    for a, b in comparison.PAIRS:
        text = (directory / f"{a}-{b}.txt").read_text()
        words = " ".join(arguments(a, b))
        shown = text if (a, b) == comparison.PAIRS[0] else f"...\n{last_table(text)}"
        parts += [
            f"### {a} and {b}: [report]({directory.name}/{a}-{b}.html), [text]({directory.name}/{a}-{b}.txt)",
            f"```\n$ kmemwatch compare {words}\n{shown}```",
        ]
    return "\n\n".join([*parts, END])


def in_document(document: str) -> str:
    """The chapter in the document."""
    return document[document.index(BEGIN) : document.index(END) + len(END)]


def write(directory: Path) -> None:
    """Write the reports of all pairs, and the chapter, from the recordings in `directory`."""
    DIRECTORY.mkdir(exist_ok=True)
    for a, b in comparison.PAIRS:
        for output, suffix in (("table", "txt"), ("html", "html")):
            target = DIRECTORY / f"{a}-{b}.{suffix}"
            target.write_text(compare(directory, a, b, output))
            built.say(f"{target.relative_to(TREE)}: {target.stat().st_size} bytes")
    document = DOCUMENT.read_text()
    DOCUMENT.write_text(document.replace(in_document(document), chapter(DIRECTORY)))


def main(kept: Path | None) -> None:
    """`kept`: a directory that has the recordings; None: boot guests to make them."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = kept or Path(scratch)
        for name in comparison.KERNELS if kept is None else ():
            shared = Path(scratch) / f"guest-{name}"
            run = run_live(by_name(name), shared, [comparison.GUEST_TEST], threading.Event())
            built.say(f"{name}: {run.summary}")
            if said := trouble(run):
                raise RuntimeError(f"{name}: {said}")
            collect(name, shared, directory)
        write(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
