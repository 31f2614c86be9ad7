# SPDX-License-Identifier: GPL-2.0-only
"""/proc/kallsyms: which symbols this kernel has, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kmemwatch.errors import raise_if_shortage

KALLSYMS = Path("/proc/kallsyms")


def addresses(names: Iterable[str], path: Path = KALLSYMS) -> Mapping[str, int] | None:
    """Address of every symbol of `names` that exists, 0 where the kernel hides it from us; None: cannot be read.

    Symbols of modules are left out. A static function that exists twice gives the first. Reading takes the kernel some
    70 ms, so ask once for all.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise_if_shortage(error, str(path))
        return None
    # The address is as wide as a pointer everywhere: "ffffffff81000000 T name". Slicing 120,000 lines takes 35 ms, a
    # regular expression with all names three times as long; start-up has 1.5 s.
    start = text.find(b" ") + len(" T ")
    wanted = {name.encode(): name for name in names}
    found: dict[str, int] = {}
    for line in text.split(b"\n"):
        if line[start:] in wanted:
            found.setdefault(wanted[line[start:]], int(line[: start - 3], 16))
    return found


def are_there(path: Path = KALLSYMS) -> bool:
    """Whether the file has anything in it; a container may see another one."""
    try:
        with path.open("rb") as file:
            return file.read(1) != b""
    except OSError as error:
        raise_if_shortage(error, str(path))
        return False
