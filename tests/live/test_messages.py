# SPDX-License-Identifier: GPL-2.0-only
"""What is said where something of the host cannot be seen or used: it is named, and not taken for another thing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.cgroup_mounts import MemoryMount
from tests.live.cgroups import OwnCgroup

KMEMWATCH = f"{sys.executable} -m kmemwatch"
ROOT = Path(__file__).parents[2]
FRESH = "mkdir -p /run/kmemwatch && mount -t tmpfs -o mode=700 kmw-test /run/kmemwatch"
"""What other starts have kept is not used, and they do not get what this one keeps."""

pytestmark = pytest.mark.needs("no lab")


def within(setup: str, command: str, *unshare: str) -> subprocess.CompletedProcess[str]:
    """Run `kmemwatch COMMAND` in namespaces of its own, after `setup`."""
    script = f"cd {ROOT} && {setup} && {KMEMWATCH} {command}"
    arguments = ["unshare", *(unshare or ("--mount",)), "bash", "-c", script]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)


def words(text: str) -> str:
    return " ".join(text.split())


NOT_HERE = {
    "user namespace": ("true", ("--user", "--map-root-user"), "not the host's root: this is a user namespace"),
    "no /sys": ("umount -R /sys", (), "/sys: not mounted"),
    "no /proc": ("umount -R /proc", (), "/proc: not mounted"),
    "processes only": (
        "umount -R /proc && mount -t proc -o subset=pid proc /proc", (), "/proc: mounted so that it shows processes"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_HERE)
@pytest.mark.parametrize("command", ["top --once", "snapshot", "doctor", "serve --web.listen-address 127.0.0.1:0"])
def test_what_cannot_be_seen_is_named(name: str, command: str) -> None:
    setup, unshare, said = NOT_HERE[name]
    done = within(setup, command, *unshare)
    assert done.returncode == 3, done.stderr
    text = done.stdout if command == "doctor" else done.stderr
    assert said in words(text)
    assert "no BTF" not in text
    assert "report" not in text
    if command != "doctor":
        first, hint = [line for line in text.splitlines() if not line.startswith("kmemwatch: stopping")]
        assert first.startswith(f"kmemwatch: {said}")
        assert hint.startswith("  hint: ")


def test_no_directory_can_be_written_to() -> None:
    # Where they are, as kmemwatch itself may lie in one of them.
    closed = [
        f"mount --bind {place} {place} && mount -o remount,ro,bind {place}" for place in ("/tmp", "/var/tmp", "/run")
    ]
    refused = [f"! touch {place}/kmw-test 2>/dev/null" for place in ("/tmp", "/var/tmp", "/run")]
    setup = " && ".join([*closed, "mount -o remount,ro,bind /", *refused, "cd /proc"])
    home = os.environ.get("PYTHONPATH", "")
    path = f"PYTHONPATH={shlex.quote(os.pathsep.join([str(ROOT), home]))}"
    done = within(f"{setup} && export {path}", "snapshot --duration 0")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["caches"]


def covered(mount: Path, version: int, part: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """How a part of the hierarchy comes to lie where its root was."""
    join = f"echo $$ > {part}/cgroup.procs"
    anew = "cgroup -o memory" if version == 1 else "cgroup2"
    return {
        "bind mount": (f"{FRESH} && mount --bind {part} {mount}", ("--mount",)),
        "cgroup namespace": (
            f"{FRESH} && umount -R /sys/fs/cgroup && mount -t {anew} none /mnt", ("--mount", "--cgroup")),
        "nothing at all": (f"{FRESH} && umount -R /sys/fs/cgroup", ("--mount",)),
        "join": (join, ()),
    }  # fmt: skip


@pytest.mark.parametrize("how", ["bind mount", "cgroup namespace", "nothing at all"])
def test_a_part_of_the_hierarchy_is_not_its_root(
    own_cgroup: Callable[..., OwnCgroup], memory: MemoryMount, how: str
) -> None:
    part, home = own_cgroup(), own_cgroup()
    setup, unshare = covered(memory.path, memory.version, part.path)[how]
    if how == "cgroup namespace":
        home = part  # the root of the namespace is where it was made
    script = f"cd {ROOT} && {setup} && {KMEMWATCH} doctor; echo code $?; {KMEMWATCH} snapshot --duration 0 --indent 0"
    enter = f'echo $$ > {home.path}/cgroup.procs; exec unshare {" ".join(unshare)} bash -c "$1"'
    done = subprocess.run(
        ["bash", "-c", enter, "bash", script], capture_output=True, text=True, check=False, timeout=120
    )
    told, _, rest = done.stdout.partition("code 0\n")
    assert rest, done.stdout + done.stderr
    advice = words(told.partition("What to change")[2])
    at = {"bind mount": memory.path, "cgroup namespace": "/mnt", "nothing at all": None}[how]
    if at is None:
        assert "the memory hierarchy is not mounted here" in advice
    else:
        assert f"what is mounted at {at} is a part of the memory hierarchy, and its root is nowhere here" in advice
    own = "/" if how == "cgroup namespace" else f"/{home.path.name}"
    assert f"kmemwatch's own memory, some 13 MB, is charged to {own} (as" in advice
    snapshot = json.loads(rest)
    paths = {row["path"]: row for row in snapshot["cgroups"]}
    assert f"/{part.path.name}" in paths, "paths are those of the host"
    assert paths[f"/{home.path.name}"]["kernel_bytes"] > 4 << 20
    if home is not part:
        assert paths[f"/{part.path.name}"]["kernel_bytes"] < 1 << 20, "nobody else is charged"


# Standard input, output and error, of the commands that need this kernel


@contextmanager
def coming_and_going(memory_root: Path) -> Iterator[None]:
    """Cgroups are made and removed all the time, so that there are events."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            OwnCgroup(memory_root).remove()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


LIVE = ("top --once", "snapshot --duration 0", "events --duration 2", "doctor", "doctor --output json")


@pytest.mark.parametrize("command", LIVE)
@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
def test_output_that_cannot_be_written_is_one_line(memory_root: Path, command: str, to: str, why: str) -> None:
    with coming_and_going(memory_root) if command.startswith("events") else nullcontext():
        done = within("true", f"{command} {to}")
    assert done.stderr == f"kmemwatch: cannot write to standard output: {why}\n"
    assert done.returncode == 1


@pytest.mark.parametrize("command", [*LIVE, "record --duration 0.1 {}/new.kmw"])
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_input_and_error_are_not_needed(tmp_path: Path, command: str, closed: str) -> None:
    done = within("true", f"{command.format(tmp_path)} {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_record_writes_with_everything_closed(tmp_path: Path) -> None:
    done = within("true", f"record --duration 0.1 {tmp_path}/new.kmw <&- >&- 2>&-")
    assert done.returncode == 0
    assert within("true", f"top --once --replay {tmp_path}/new.kmw").returncode == 0


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    full = f"mount -t tmpfs -o size=4k,nr_inodes=4 kmw-test {tmp_path}"
    done = within(full, f"record --duration 0.5 {tmp_path}/new.kmw")
    assert done.returncode == 1
    told = [line.rpartition("\r")[2] for line in done.stderr.splitlines()]
    assert any("new.kmw" in line and "o space left on device" in line for line in told)
    assert "internal error" not in done.stderr
