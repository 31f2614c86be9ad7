# SPDX-License-Identifier: GPL-2.0-only
"""Where the memory controller is, from files as hosts and containers have them; and /proc/kallsyms."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from kmemwatch.kernel import cgroupfs, facts
from kmemwatch.kernel.cgroupfs import Hierarchy, find_memory
from tests.cgroup_mounts import memory_mount

OTHERS = """\
22 27 0:21 / /proc rw,nosuid - proc proc rw
23 27 0:22 / /sys rw,nosuid - sysfs sysfs rw
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
"""
PROC = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\nmemory\t{}\t17\t{}\n"


V1 = "33 30 0:29 {} {} rw,nosuid,nodev shared:11 - cgroup cgroup rw,{}\n"
V2 = "31 30 0:27 {} {} rw,nosuid,nodev shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"


class Files:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.mountinfo = home / "mountinfo"
        self.proc_cgroups = home / "cgroups"

    def find(
        self, mounts: str, hierarchy: int | None = 0, enabled: int = 1, covered: Sequence[str] = ()
    ) -> Hierarchy | None:
        """`covered`: mount points where something else than the root of the hierarchy is to be seen."""
        self.mountinfo.write_text(OTHERS + mounts)
        self.proc_cgroups.write_text("" if hierarchy is None else PROC.format(hierarchy, enabled))
        return find_memory(self.mountinfo, self.proc_cgroups, lambda device, point: point not in covered)

    def v2(self, controllers: str = "cpu memory pids", name: str = "cgroup2") -> Path:
        """A directory that looks like the root of a v2 hierarchy."""
        mount = self.home / name
        mount.mkdir(parents=True)
        (mount / "cgroup.controllers").write_text(controllers + "\n")
        return mount


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def escaped(path: Path | str) -> str:
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in str(path))


def test_v2(files: Files) -> None:
    mount = files.v2()
    assert files.find(V2.format("/", mount)) == Hierarchy(2, 0, str(mount))


def test_v1(files: Files) -> None:
    assert files.find(V1.format("/", "/sys/fs/cgroup/memory", "memory"), 4) == Hierarchy(1, 4, "/sys/fs/cgroup/memory")


def test_v1_with_controllers_together(files: Files) -> None:
    found = files.find(V1.format("/", "/cg", "cpuset,memory,freezer"), 2)
    assert found == Hierarchy(1, 2, "/cg")


def test_hybrid_has_memory_on_v1(files: Files) -> None:
    unified = files.v2(controllers="pids")
    mounts = V2.format("/", unified) + V1.format("/", "/sys/fs/cgroup/memory", "memory")
    assert files.find(mounts, 7) == Hierarchy(1, 7, "/sys/fs/cgroup/memory")


def test_hybrid_with_memory_on_v2(files: Files) -> None:
    unified = files.v2()
    mounts = V1.format("/", "/sys/fs/cgroup/pids", "pids") + V2.format("/", unified)
    assert files.find(mounts) == Hierarchy(2, 0, str(unified))


def test_a_container_sees_a_part_of_v1(files: Files) -> None:
    found = files.find(V1.format("/docker/3f9", "/sys/fs/cgroup/memory", "memory"), 4)
    at = "/sys/fs/cgroup/memory"
    assert found == Hierarchy(1, 4, None, at), "writing to its cgroup.procs would not lead to the root"


def test_a_container_sees_a_part_of_v2(files: Files) -> None:
    mount = files.v2()
    assert files.find(V2.format("/../../system.slice", mount)) == Hierarchy(2, 0, None, str(mount))


def test_a_container_with_a_cgroup_namespace_sees_a_part_that_is_called_the_root(files: Files) -> None:
    mount = files.v2()
    assert files.find(V2.format("/", mount), covered=[str(mount)]) == Hierarchy(2, 0, None, str(mount))


def test_a_part_that_is_mounted_over_the_whole(files: Files) -> None:
    at = "/sys/fs/cgroup/memory"
    mounts = V1.format("/", at, "memory") + V1.format("/docker/3f9", at, "memory")
    assert files.find(mounts, 4, covered=[at]) == Hierarchy(1, 4, None, at)


def test_the_whole_is_found_elsewhere(files: Files) -> None:
    at = "/sys/fs/cgroup/memory"
    mounts = "".join(V1.format(root, point, "memory") for root, point in (("/", at), ("/a", at), ("/", "/host/memory")))
    assert files.find(mounts, 4, covered=[at]) == Hierarchy(1, 4, "/host/memory")


@pytest.mark.needs("a memory controller")
def test_the_root_is_told_from_its_parts_and_from_other_file_systems() -> None:
    mount = memory_mount()
    assert mount is not None
    status = mount.path.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    assert cgroupfs.is_root_of(device, str(mount.path))
    part = next(path for path in mount.path.iterdir() if path.is_dir())
    assert not cgroupfs.is_root_of(device, str(part))
    assert not cgroupfs.is_root_of("0:1", str(mount.path))
    assert not cgroupfs.is_root_of(device, "/does/not/exist")


@pytest.mark.parametrize(
    ("cgroups", "mounts", "why"),
    [
        (PROC.format(0, 0), "", "the memory controller is not enabled"),
        ("cpu\t1\t1\t1\n", "", "no cgroup file system is mounted, and .* does not name the memory controller"),
        ("cpu\t1\t1\t1\n", V2.format("/", "/none"), "/none: cannot be read, .*: No such file or directory"),
        ("cpu\t1\t1\t1\n", V2.format("/", "/"), "there is no memory controller"),
        (None, "", "cannot be read: No such file or directory"),
    ],
)
def test_why_there_is_no_hierarchy(files: Files, cgroups: str | None, mounts: str, why: str) -> None:
    files.mountinfo.write_text(OTHERS + mounts)
    if cgroups is not None:
        files.proc_cgroups.write_text(cgroups)
    assert re.search(why, cgroupfs.why_not_found(files.mountinfo, files.proc_cgroups))


@pytest.mark.parametrize(
    ("version", "text", "path"),
    [
        (1, "5:cpu,cpuacct:/a\n4:memory:/docker/3f9\n0::/x\n", "/docker/3f9"),
        (1, "4:cpuset,memory:/with:colon\n", "/with:colon"),
        (2, "1:name=systemd:/y\n0::/system.slice/docker.service\n", "/system.slice/docker.service"),
        (2, "1:memory:/y\n", None),
        (1, "", None),
    ],
)
def test_the_cgroup_of_this_process(tmp_path: Path, version: int, text: str, path: str | None) -> None:
    (tmp_path / "cgroup").write_text(text)
    assert cgroupfs.own_path(Hierarchy(version, 0, None), tmp_path / "cgroup") == path


def test_memory_on_v2_that_is_not_mounted(files: Files) -> None:
    assert files.find("", 0) == Hierarchy(2, 0, None)
    assert files.find("", 4) == Hierarchy(1, 4, None)


def test_no_memory_controller(files: Files) -> None:
    assert files.find("", None) is None
    assert files.find("", 0, enabled=0) is None, "cgroup_disable=memory"
    unified = files.v2(controllers="pids")
    assert files.find(V2.format("/", unified), 0, enabled=0) is None


def test_files_that_are_missing(tmp_path: Path) -> None:
    assert find_memory(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["with space", "tab\tand\nnewline", "back\\slash", "\\040", "字幕", "b\udcffytes"])
def test_odd_mount_points(files: Files, name: str) -> None:
    mount = files.v2(name=name)
    files.mountinfo.write_bytes((OTHERS + V2.format("/", escaped(mount))).encode("utf-8", "surrogateescape"))
    files.proc_cgroups.write_text(PROC.format(0, 1))
    assert find_memory(files.mountinfo, files.proc_cgroups, lambda *_: True) == Hierarchy(2, 0, str(mount))


@pytest.mark.needs("a memory controller")
def test_this_machine_as_others_read_it() -> None:
    other, found = memory_mount(), find_memory()
    assert other is not None
    assert found is not None
    assert (found.mount, found.version) == (str(other.path), other.version)
    assert cgroupfs.cgroup_id(other.path) == other.path.stat().st_ino


# Symbols

KALLSYMS = """\
ffffffff81000000 T _text
ffffffff81234560 T kfree
ffffffff81234570 t kfree.part.0
ffffffff81234580 t mem_cgroup_css_online
ffffffff81234590 t mem_cgroup_css_online
ffffffff81234600 T __kfree
ffffffffc0000000 t kfree\t[module]
ffffffffc0000010 t only_in_a_module\t[module]
"""


def test_addresses_of_symbols(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    wanted = ["_text", "kfree", "mem_cgroup_css_online", "only_in_a_module", "missing", "k.ree"]
    assert facts.symbol_addresses(wanted, path) == {
        "_text": 0xFFFFFFFF81000000,
        "kfree": 0xFFFFFFFF81234560,
        "mem_cgroup_css_online": 0xFFFFFFFF81234580,
    }


def test_hidden_addresses_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text("0000000000000000 T kfree\n")
    assert facts.symbol_addresses(["kfree", "vfree"], path) == {"kfree": 0}, "hidden is not absent"
    assert facts.symbol_addresses(["kfree"], tmp_path / "none") is None


def test_symbols_of_this_kernel_as_grep_finds_them() -> None:
    found = facts.symbol_addresses(["kfree", "kmem_cache_free", "no_such_function"])
    lines = [line.split() for line in facts.KALLSYMS.read_text().splitlines()]
    assert found == {
        row[2]: int(row[0], 16) for row in lines if len(row) == 3 and row[2] in ("kfree", "kmem_cache_free")
    }
