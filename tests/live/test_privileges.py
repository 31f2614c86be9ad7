# SPDX-License-Identifier: GPL-2.0-only
"""What `kmemwatch serve` may still do once it serves, read from /proc and tried from inside its processes."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.daemon import serving as daemon_serving
from tests.live import inject
from tests.live.cgroups import OwnCgroup
from tests.live.inject import Thread, stopped
from tests.processes import state
from tests.waiting import wait_for

CAP_BPF, CAP_SYS_ADMIN = 39, 21
NOBODY = "65534"
PATIENCE = float(os.environ.get("KMEMWATCH_TEST_PATIENCE", "1"))
INTERVAL_S = 0.5 * PATIENCE
"""What is older than a few intervals is not shown any more, and in an emulated machine everything takes longer."""
LIMIT_S = 20 * PATIENCE
injected = pytest.mark.skipif(not inject.IS_POSSIBLE, reason="calls are put into processes of x86-64 only")


def serving(*args: str) -> AbstractContextManager[Daemon]:
    """A daemon that reads often."""
    return daemon_serving("--interval", str(INTERVAL_S), *args)


@pytest.fixture(scope="module")
def daemon(runner_in_root_cgroup: None) -> Iterator[Daemon]:
    with serving() as daemon:
        yield daemon


def threads(pid: int) -> list[dict[str, str]]:
    """/proc/PID/task/*/status of every thread."""
    found = []
    for path in Path(f"/proc/{pid}/task").iterdir():
        lines = (path / "status").read_text().splitlines()
        found.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    return found


def capabilities(mask: str) -> set[int]:
    return {bit for bit in range(64) if int(mask, 16) >> bit & 1}


def is_filtered(pid: int) -> bool:
    """The kernel filters system calls of all of its threads; kernels without seccomp do not say."""
    modes = {status.get("Seccomp") for status in threads(pid)}
    assert len(modes) == 1
    return modes == {"2"}


def has_seccomp() -> bool:
    """The kernel can filter system calls."""
    return Path("/proc/sys/kernel/seccomp/actions_avail").exists()


def bpf_descriptors(pid: int) -> set[str]:
    links = (str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())
    return {link for link in links if re.match(r"anon_inode:(\[?bpf|\[perf)", link)}


def test_the_http_process_has_no_privileges(daemon: Daemon) -> None:
    daemon.get("/metrics")  # threads that answer are there, too
    found = threads(daemon.http)
    assert len(found) > 1
    for status in found:
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert capabilities(status[name]) == set(), name
        assert set(status["Uid"].split() + status["Gid"].split()) == {NOBODY}
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
    assert is_filtered(daemon.http) is has_seccomp()


def test_the_reader_keeps_what_reading_needs(daemon: Daemon) -> None:
    found = threads(daemon.reader)
    assert len(found) > 1
    kept = capabilities(found[0]["CapEff"])
    assert kept in (set(), {CAP_BPF}), "CAP_BPF on kernels that want it for every bpf() call"
    for status in found:
        assert capabilities(status["CapEff"]) == capabilities(status["CapPrm"]) == kept
        assert capabilities(status["CapBnd"]) <= kept
        assert capabilities(status["CapInh"]) == capabilities(status["CapAmb"]) == set()
        assert status["NoNewPrivs"] == "1"
    assert is_filtered(daemon.reader) is has_seccomp()


def test_it_reads_on(daemon: Daemon, own_cgroup: Callable[..., OwnCgroup]) -> None:
    """Events, the walk, maps, programs that are run: all of it, long after the privileges are gone."""
    removed, online = daemon.metric("kmemwatch_cgroups_offlined_total"), daemon.metric("kmemwatch_online_cgroups")
    made = [own_cgroup() for _ in range(7)]
    wait_for(lambda: daemon.metric("kmemwatch_online_cgroups") >= online + 7, LIMIT_S)
    assert any(str(made[0].path.name) in line for line in daemon.get("/metrics").splitlines())
    for cgroup in made:
        cgroup.remove()
    wait_for(lambda: daemon.metric("kmemwatch_cgroups_offlined_total") >= removed + 7, LIMIT_S)
    assert daemon.metric("kmemwatch_snapshot_age_seconds") < LIMIT_S
    assert daemon.process.poll() is None


def test_descriptors_of_bpf_are_with_the_reader_alone(daemon: Daemon) -> None:
    assert any("bpf-map" in link for link in bpf_descriptors(daemon.reader))
    assert bpf_descriptors(daemon.http) == set()


@pytest.fixture
def http(daemon: Daemon) -> Iterator[Thread]:
    with stopped(daemon.http) as thread:
        yield thread


@pytest.fixture
def reader(daemon: Daemon) -> Iterator[Thread]:
    with stopped(daemon.reader) as thread:
        yield thread


def is_asleep(pid: int) -> bool:
    """It runs the program and waits; it is no longer our forked copy."""
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n" and state(pid) == "S"


@injected
def test_calls_that_are_put_into_a_process_work() -> None:
    """Otherwise the tests below would prove nothing: a process with our privileges can do all of it."""
    with subprocess.Popen(["sleep", "1000"]) as somebody:
        try:
            wait_for(lambda: is_asleep(somebody.pid), LIMIT_S, "sleep")
            with stopped(somebody.pid) as thread:
                assert thread.load_program(inject.RAW_TRACEPOINT) >= 3
                assert thread.load_program(inject.SOCKET_FILTER) >= 3
                assert thread.create_map() >= 3
                assert thread.call(inject.SOCKET, 2, 1, 0) >= 3
                assert thread.call(inject.OPENAT, -100, b"/etc/shadow\0", 0) >= 3
            assert somebody.poll() is None
        finally:
            somebody.kill()


def unprivileged_bpf_is_disabled() -> bool:
    return Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() != "0"


@injected
def test_the_http_process_cannot_load_programs(http: Thread) -> None:
    assert http.load_program(inject.RAW_TRACEPOINT) == -errno.EPERM
    if has_seccomp() or unprivileged_bpf_is_disabled():
        assert http.load_program(inject.SOCKET_FILTER) == -errno.EPERM
        assert http.create_map() == -errno.EPERM


@injected
def test_the_http_process_reaches_nothing(http: Thread, daemon: Daemon) -> None:
    for path in ("/etc/shadow", f"/proc/{daemon.reader}/mem", f"/proc/{daemon.reader}/fd/3"):
        assert os.path.lexists(path)
        # Where /proc is mounted with hidepid, the processes of others are not there for it.
        refusals = (-errno.EACCES, -errno.EPERM, -errno.ENOENT)
        assert http.call(inject.OPENAT, -100, path.encode() + b"\0", 0) in refusals, path
    if has_seccomp():
        assert http.call(inject.SOCKET, 2, 1, 0) == -errno.EPERM
        assert http.call(inject.EXECVE, b"/bin/true\0", 0, 0) == -errno.EPERM


@injected
def test_neither_starts_processes_or_signals_others(daemon: Daemon) -> None:
    if not has_seccomp():
        pytest.skip("the kernel cannot filter system calls")
    new_user, sigchld = 0x10000000, 17
    with subprocess.Popen(["sleep", "1000"]) as somebody:
        try:
            for pid in (daemon.http, daemon.reader):
                with stopped(pid) as thread:
                    for call in (
                        (inject.UNSHARE, new_user), (inject.FORK,), (inject.VFORK,), (inject.CLONE, sigchld),
                        (inject.CLONE, new_user | sigchld), (inject.KILL, somebody.pid, 9),
                        (inject.KILL, (1 << 64) - 1, 0),
                        (inject.TGKILL, somebody.pid, somebody.pid, 9), (inject.TKILL, somebody.pid, 9),
                        (inject.PIDFD_OPEN, somebody.pid, 0), (inject.PTRACE, 16, somebody.pid, 0, 0),
                    ):  # fmt: skip
                        assert thread.call(*call) in (-errno.EPERM, -errno.ENOSYS), call
            assert somebody.poll() is None
        finally:
            somebody.kill()


@injected
def test_the_reader_reads_and_makes_nothing(reader: Thread) -> None:
    assert reader.load_program(inject.RAW_TRACEPOINT) == -errno.EPERM
    if has_seccomp() or unprivileged_bpf_is_disabled():
        assert reader.load_program(inject.SOCKET_FILTER) == -errno.EPERM
        assert reader.create_map() == -errno.EPERM
    if has_seccomp():
        assert reader.bpf(inject.BPF_RAW_TRACEPOINT_OPEN, b"") == -errno.EPERM
        assert reader.call(inject.EXECVE, b"/bin/true\0", 0, 0) == -errno.EPERM
    # The filter allows it, and it fails because of its descriptor.
    assert reader.bpf(inject.BPF_MAP_LOOKUP_ELEM, b"\xff\xff\xff\x7f") == -errno.EBADF


@injected
def test_it_goes_on_after_all_this(daemon: Daemon) -> None:
    assert daemon.get("/-/ready") == "kmemwatch is ready.\n"
    wait_for(lambda: daemon.metric("kmemwatch_snapshot_age_seconds") < 3 * INTERVAL_S, LIMIT_S)


def test_nothing_is_missing_from_what_it_said(daemon: Daemon) -> None:
    """If system calls cannot be filtered, it says so, and nothing else."""
    assert len(daemon.told) == (1 if has_seccomp() else 3)


def test_nothing_in_the_current_directory_is_run(tmp_path: Path) -> None:
    """The process that attaches is root, and may start in another user's directory."""
    for name in ("json", "socket", "kmemwatch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    command = [sys.executable, "-c", "import sys; sys.path.pop(0); from kmemwatch.cli.main import main; main()"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # A checkout that is not installed, as in the lab, is found from outside as well.
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, "snapshot", "--duration", "0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ,
        check=False,
    )
    assert not (tmp_path / "run").exists()
    assert done.returncode == 0, done.stderr
