# SPDX-License-Identifier: GPL-2.0-only
"""The Debian package: built, installed with Debian's own packages beside it, run as its unit runs it, removed.

On a copy of this machine that is thrown away (`package_host`); the programs are attached to the real kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kmemwatch
from tests import every_command
from tests.every_command import (
    Installation,
    counted,
    test_every_command_helps,
    test_no_command_is_wrong_usage,
    test_wrong_usage_is_one_line_and_2,
)
from tests.live.package_host import PackageHost, package_host

__all__ = ["test_every_command_helps", "test_no_command_is_wrong_usage", "test_wrong_usage_is_one_line_and_2"]

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging/systemd/kmemwatch.service"
DAEMONSET = ROOT / "packaging/kubernetes/daemonset.yaml"
PRIVATE = "/usr/lib/kmemwatch"
pytestmark = pytest.mark.needs("root", "no lab", "a Debian archive", "BTF")

DISTRIBUTIONS = f"""
import importlib.metadata, json, sys
sys.path.insert(0, {PRIVATE!r})
found = {{}}
for one in importlib.metadata.distributions():
    found.setdefault(one.metadata["Name"], [one.version, one.requires or [], str(one.locate_file(""))])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deb")
    done = subprocess.run([ROOT / "packaging/debian/build", directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.deb")
    assert built.name == f"kmemwatch_{kmemwatch.__version__}_all.deb"
    return built


@pytest.fixture(scope="module")
def host(package: Path) -> Iterator[PackageHost]:
    """With what the package depends on; without the package."""
    depends = subprocess.run(["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True).stdout
    names = [re.split(r"[ (|]", one.strip())[0] for one in depends.split(",")]
    with package_host() as host:
        host.put(package, "/tmp/kmemwatch.deb")
        host.run("apt-get", "update", "-qq")
        host.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *names)
        yield host


@pytest.fixture(scope="module")
def before(host: PackageHost) -> set[str]:
    host.run("sh", "-c", "dpkg -l >/dev/null; py3clean --help >/dev/null")
    return host.changed()


@pytest.fixture(scope="module")
def installed(host: PackageHost, before: set[str]) -> PackageHost:
    host.run("dpkg", "-i", "/tmp/kmemwatch.deb")
    return host


def test_it_says_its_version(installed: PackageHost) -> None:
    assert installed.run("kmemwatch", "--version").strip().endswith(kmemwatch.__version__)


def test_all_that_python_needs_is_there(installed: PackageHost) -> None:
    """Every requirement of every package that came with it, also where Debian's is what meets it."""
    found = json.loads(installed.run("/usr/bin/python3", "-I", "-c", DISTRIBUTIONS))
    versions: dict[str, str] = {canonicalize_name(name): version for name, (version, _, _) in found.items()}
    ours = {name: requires for name, (_, requires, where) in found.items() if where.startswith(PRIVATE)}
    assert {"kmemwatch", "textual", "uvicorn"} <= set(ours)
    unmet = [
        f"{name}: {requirement}, and there is {versions.get(canonicalize_name(requirement.name))}"
        for name, requires in ours.items()
        for requirement in map(Requirement, requires)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if versions.get(canonicalize_name(requirement.name), "none") not in requirement.specifier
    ]
    assert unmet == []


@pytest.fixture(scope="module")
def commands(installed: PackageHost) -> Installation:
    return Installation(lambda *args: installed.command("kmemwatch", *args))


def test_the_live_view_has_its_libraries(installed: PackageHost, commands: Installation) -> None:
    installed.run(
        "/usr/bin/python3", "-I", "-c", f"import sys; sys.path.insert(0, {PRIVATE!r}); import kmemwatch.top.topapp"
    )
    assert "PINNED BY" in commands.works("top", "--replay", "demo", "--batch", "--view", "zombies")
    assert "no name matches" in commands.works("top", "--replay", "demo", "--batch", "--filter", "(a+)+$")


def test_it_measures(commands: Installation) -> None:
    snapshot = json.loads(commands.works("snapshot", "--duration", "1"))
    assert snapshot["duration_s"] >= 1
    assert any(cache["name"] == "dentry" and cache["allocations_total"] > 0 for cache in snapshot["caches"])
    assert "CGROUP" in commands.works("top", "--once")
    commands.works("events", "--duration", "1")
    assert json.loads(commands.works("doctor", "--output", "json"))


def test_what_it_records_is_played_and_compared(commands: Installation) -> None:
    files = ["/tmp/a.kmw", "/tmp/b.kmw.gz"]
    for file in files:
        commands.works("record", file, "--duration", "2", "--interval", "0.2")
        every_command.check_playing(commands, file)
    every_command.check_comparing(commands, *files)
    every_command.check_comparing(commands, "demo", files[1])


def test_it_makes_cgroups_that_die(commands: Installation) -> None:
    report = json.loads(commands.works("churn", "--cgroups", "3", "--objects", "7", "--kind", "pipe"))
    assert (report["cgroups"]["made"], report["cgroups"]["removed"]) == (3, 3)


def unit(setting: str) -> list[str]:
    """Words of a setting of the unit."""
    (value,) = re.findall(rf"^{setting}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value).split()


def serving(host: PackageHost, *before: str, unshare: tuple[str, ...] = ()) -> AbstractContextManager[str]:
    """The URL of a `kmemwatch serve` from the package, run through `before`."""
    command = [*before, "kmemwatch", "serve", "--web.listen-address", "127.0.0.1:0"]
    return every_command.serving(host.command(*command, unshare=unshare), inside=bool(unshare))


def least(capabilities: list[str]) -> list[str]:
    """As root, and able to get no other capabilities."""
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)
    return ["setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all", "--no-new-privs"]


NO_WRITABLE_CODE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""PR_SET_MDWE, since Linux 6.3; kernels without it go on without it."""


def test_the_capabilities_of_the_unit_are_enough(installed: PackageHost) -> None:
    """And MemoryDenyWriteExecute= is in nobody's way: the compiler makes no code for this processor."""
    assert unit("MemoryDenyWriteExecute") == ["yes"]
    installed.run("rm", "-rf", "/run/kmemwatch")  # so that it compiles
    confined = [*least(unit("CapabilityBoundingSet")), "python3", "-c", NO_WRITABLE_CODE]
    with serving(installed, *confined) as url:
        assert counted(url)


CONTAINER = """
mount -n -t proc proc /proc
[ ! -e /proc/kcore ] || mount -n --bind /dev/null /proc/kcore
mount -n -t tmpfs none /run
for name in /sys /; do mount -n -o remount,bind,ro $name; done
exec "$@"
"""
"""What a container runtime does to what the DaemonSet's container sees."""


def test_the_privileges_of_the_daemonset_are_enough(installed: PackageHost) -> None:
    """In namespaces of its own, with a /sys and files that are read-only and no /proc/kcore."""
    (daemonset,) = (one for one in yaml.safe_load_all(DAEMONSET.read_text()) if one["kind"] == "DaemonSet")
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "serve"
    security = container["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["allowPrivilegeEscalation"] is False
    confined = ["sh", "-e", "-c", CONTAINER, "sh", *least(security["capabilities"]["add"])]
    namespaces = ("--mount", "--cgroup", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
    with serving(installed, *confined, unshare=namespaces) as url:
        assert counted(url)


def stays(host: PackageHost, before: set[str]) -> set[str]:
    """What is there that was not, without what dpkg itself keeps of every package."""
    return {path for path in host.changed() - before if not path.startswith("./var/lib/dpkg/")}


def test_nothing_stays_when_it_is_purged(installed: PackageHost, before: set[str]) -> None:
    owned = {f".{line}" for line in installed.run("dpkg", "-L", "kmemwatch").splitlines()}
    assert f".{PRIVATE}/kmemwatch/__init__.py" in owned & installed.changed()
    installed.run("dpkg", "-r", "kmemwatch")
    # So that it is enabled again, or not, when it is installed again.
    kept = re.compile(r"\./etc/systemd/system/kmemwatch\.\w+|\./var/lib/systemd/deb-systemd-helper-.*")
    assert {path for path in stays(installed, before) if not kept.fullmatch(path)} == {"./etc/default/kmemwatch"}
    installed.run("dpkg", "-P", "kmemwatch")
    assert stays(installed, before) == set()
    listed = installed.run("sh", "-c", "ls /var/lib/dpkg/info /var/lib/systemd /etc/systemd/system 2>/dev/null || true")
    assert "kmemwatch" not in listed
