# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch serve` as its two processes: how they start, what they tell each other, how they end."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given, settings

from kmemwatch.errors import KmemwatchError, ShortageError, UnsupportedError, UsageError
from kmemwatch.exporter.exposition import Exposition
from kmemwatch.exporter.published import LatestSnapshot, ProgramRuns, PublishedSnapshot, ReaderCost
from kmemwatch.model import Snapshot
from kmemwatch.serve import messages
from kmemwatch.serve.http_process import KEPT_VARIABLES, HttpProcess
from tests.unit import fakes, strategies
from tests.unit.certificates import Authority

ROOT = Path(__file__).parents[2]
READER = ReaderCost(1.5, 20 << 20, 90 << 20, 40, 1_700_000_000.0, {"alloc/raw_tp:kmalloc": ProgramRuns(3, 2_000)})


class Daemon:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().removesuffix("\n")

    def rest(self) -> list[str]:
        _, told = self.process.communicate(timeout=20)
        return told.splitlines()

    @property
    def http(self) -> int:
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)


@contextmanager
def serve(*args: str, cwd: Path | None = None, path: Path = ROOT) -> Iterator[Daemon]:
    command = [sys.executable, "-m", "kmemwatch", "serve", "--replay", "demo", "--web.listen-address", "127.0.0.1:0"]
    env = {**os.environ, "PYTHONPATH": f"{path}:{ROOT}"}
    with subprocess.Popen([*command, *args], stderr=subprocess.PIPE, text=True, env=env, cwd=cwd) as process:
        try:
            yield Daemon(process)
        finally:
            process.kill()


def is_gone(pid: int) -> bool:
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            threads = list(Path(f"/proc/{pid}/task").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z" and len(threads) <= 1:  # others may still hold its sockets
            return True
        time.sleep(0.01)
    return False


def get(url: str, path: str, **headers: str) -> bytes:
    connection = http.client.HTTPConnection(url.partition("//")[2].partition("/")[0], timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()
    finally:
        connection.close()


def test_tls_passwords_and_a_change_of_both(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    server = ours.sign("server", "IP:127.0.0.1")
    web = tmp_path / "web.yml"

    def write(password: str) -> None:
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        tls = f"tls_server_config: {{cert_file: {server.cert}, key_file: {server.key}}}\n"
        web.write_text(f"{tls}basic_auth_users: {{prometheus: {hashed}}}\n")

    def curl(url: str, password: str) -> str:
        command = ["curl", "-s", "--cacert", str(ours.cert), "-u", f"prometheus:{password}", "-w", "%{http_code}"]
        return subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout

    write("first")
    web.chmod(0o600)
    server.key.chmod(0o600)
    with serve("--web.config.file", str(web)) as daemon:
        line = daemon.line()
        found = re.fullmatch(r"kmemwatch: serving (https://127\.0\.0\.1:\d+/metrics)", line)
        assert found, line
        assert "kmemwatch_web_config_last_reload_successful 1.0" in curl(found[1], "first")
        assert curl(found[1], "second") == "401 unauthorized\n401"
        write("second")
        assert daemon.line() == f"kmemwatch: {web}: in use as it is now"
        assert "kmemwatch_build_info" in curl(found[1], "second")
        assert curl(found[1], "first").endswith("401")
        web.write_text("basic_auth_users: {prometheus: second}\n")
        assert daemon.line() == (
            f"kmemwatch: {web}:1: basic_auth_users.prometheus: is not a bcrypt hash"
            " (the last good configuration stays in use)"
        )
        assert "kmemwatch_web_config_last_reload_successful 0.0" in curl(found[1], "second")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tls_server_config: {cert_file: a, key_fil: b}", "web.yml:1: tls_server_config.key_fil: unknown key"),
        ("tls_server_config: {cert_file: a, key_file: b}", "web.yml: tls_server_config.cert_file: a: No such file"),
        ("tls_server_config: {cert: a, key: b}", "web.yml: tls_server_config.cert: has no certificate in PEM format"),
    ],
)
def test_a_broken_web_configuration_is_wrong_usage(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "web.yml").write_text(text)
    with serve("--web.config.file", "web.yml", cwd=tmp_path) as daemon:
        told = daemon.rest()
    assert daemon.process.returncode == 2
    assert told[0].startswith(f"kmemwatch: {message}")
    assert len(told) <= 2


def test_every_address_is_served_and_told(tmp_path: Path) -> None:
    path = tmp_path / "kmemwatch.sock"
    with serve("--web.listen-address", "127.0.0.2:0", "--web.listen-address", f"unix:{path}") as daemon:
        urls = [daemon.line().removeprefix("kmemwatch: serving ") for _ in range(3)]
        assert urls[0].startswith("http://127.0.0.1:")
        assert urls[1].startswith("http://127.0.0.2:")
        assert urls[2] == f"unix:{path}"
        for url in urls[:2]:
            assert get(url, "/-/ready") == b"kmemwatch is ready.\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.rest() == ["kmemwatch: stopping"]
        assert not path.exists()


def test_labels_and_selection_reach_the_other_process() -> None:
    with serve("--cgroup.name", "kubernetes", "--cgroup.include", "/.*", "--cache.exclude", "dentry") as daemon:
        text = get(daemon.line().split()[-1], "/metrics").decode()
    assert 'container_id=""' in text
    assert 'cache="dentry"' not in text
    assert "kmemwatch_excluded_caches 1.0" in text
    assert "kmemwatch_excluded_cgroups 0.0" in text


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_http_process_ends_with_the_other(signum: int) -> None:
    with serve() as daemon:
        assert "serving" in daemon.line()
        child = daemon.http
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
        time.sleep(0.2)
        assert not Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].startswith(" Z"), "not by itself"
        daemon.process.send_signal(signum)
        assert is_gone(child)
        assert daemon.process.wait(5) == (-9 if signum == signal.SIGKILL else 0)


def test_the_end_of_the_http_process_is_told() -> None:
    with serve() as daemon:
        assert "serving" in daemon.line()
        os.kill(daemon.http, signal.SIGKILL)
        assert daemon.rest() == [
            "kmemwatch: stopping",
            "kmemwatch: the process that serves HTTP ended: SIGKILL",
        ]
        assert daemon.process.returncode == 1


def test_an_http_process_that_is_stopped_does_not_stop_the_other() -> None:
    with serve("--interval", "0.1") as daemon:
        url = daemon.line().split()[-1]
        child = daemon.http
        os.kill(child, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(child, signal.SIGCONT)
        assert get(url, "/-/ready") == b"kmemwatch is ready.\n"
        os.kill(child, signal.SIGSTOP)
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 0, "it is killed when it does not end"
        assert time.monotonic() - began < 6
        assert is_gone(child)


def test_an_http_process_that_is_stopped_does_not_outlive_the_other() -> None:
    with serve() as daemon:
        url = daemon.line().split()[-1]
        child = daemon.http
        os.kill(child, signal.SIGSTOP)
        daemon.process.kill()
        assert is_gone(child)
        with pytest.raises(ConnectionRefusedError):
            get(url, "/-/ready")


def test_an_http_process_that_hangs_ends_the_service() -> None:
    with serve() as daemon:
        assert "serving" in daemon.line()
        child = daemon.http
        os.kill(child, signal.SIGSTOP)
        began = time.monotonic()
        told = daemon.rest()
        assert time.monotonic() - began < 12, "ten seconds, and what a busy machine takes"
        assert told[:2] == ["kmemwatch: stopping", "kmemwatch: the process that serves HTTP does not answer"]
        assert daemon.process.returncode == 1
        assert is_gone(child)


@pytest.mark.parametrize("users", [0, 6000], ids=["", "more settings than a socket holds"])
def test_an_http_process_that_is_stopped_while_it_begins_ends_the_service(tmp_path: Path, users: int) -> None:
    web = tmp_path / "web.yml"
    hashed = "$2y$10$" + "a" * 53
    web.write_text("basic_auth_users:\n" + "".join(f"  u{n}: {hashed}\n" for n in range(users)) if users else "{}")
    with serve("--web.config.file", str(web)) as daemon:
        child = 0
        while not child:
            with suppress(ValueError, OSError):  # it is not there yet
                child = daemon.http if b"http_service" in Path(f"/proc/{daemon.http}/cmdline").read_bytes() else 0
        os.kill(child, signal.SIGSTOP)
        began = time.monotonic()
        assert daemon.rest()[:1] == ["kmemwatch: the process that serves HTTP does not answer"]
        assert time.monotonic() - began < 12, "ten seconds, and what a busy machine takes"
        assert daemon.process.returncode == 1
        assert is_gone(child)


NO_THREADS = """
import threading

start = threading.Thread.start


def refuse(thread):
    if thread.name.startswith("NAME"):
        raise RuntimeError("can't start new thread")
    start(thread)


threading.Thread.start = refuse
"""


def test_an_http_process_without_threads_says_what_is_short(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_THREADS.replace("NAME", "http"))
    with serve(path=tmp_path) as daemon:
        assert daemon.rest() == [
            "kmemwatch: out of processes or threads",
            "  hint: raise the limit: pids.max of the cgroup, or ulimit -u",
        ]
        assert daemon.process.wait() == 1


def test_signs_of_life_without_an_end_keep_nobody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a process that somebody has taken over."""
    http_process = HttpProcess.__new__(HttpProcess)
    http_process._beats = 0
    reads = iter([b".", b".", AssertionError])
    monkeypatch.setattr("kmemwatch.serve.http_process.os.read", lambda fd, size: next(reads))
    assert http_process._has_beaten()
    assert next(reads) == b"."


def test_both_may_be_stopped_for_long() -> None:
    """As by a frozen container, or Ctrl-Z."""
    with serve("--interval", "0.1") as daemon:
        url = daemon.line().split()[-1]
        both = (daemon.process.pid, daemon.http)
        for pid in both:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(12)
        for pid in both:
            os.kill(pid, signal.SIGCONT)
        time.sleep(2.5)
        assert get(url, "/-/ready") == b"kmemwatch is ready.\n"
        os.kill(daemon.http, signal.SIGTSTP)
        assert get(url, "/-/ready") == b"kmemwatch is ready.\n", "Ctrl-Z is for the other one alone"


def test_the_environment_stays_with_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2-in-the-environment")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify-test")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    with serve() as daemon:
        assert "serving" in daemon.line()
        assert b"hunter2" in Path(f"/proc/{daemon.process.pid}/environ").read_bytes()
        given = Path(f"/proc/{daemon.http}/environ").read_bytes()
        memory = strings_in_memory(daemon.http, b"hunter2-in-the-environment")
    names = {item.partition(b"=")[0].decode() for item in given.split(b"\0") if item}
    assert "LC_TIME" in names
    assert names <= {*KEPT_VARIABLES, *(name for name in names if name.startswith("LC_"))}
    assert not memory


def strings_in_memory(pid: int, text: bytes) -> int:
    """How often it is there."""
    found = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "r" in line.split()[1] and "[v" not in line:
                with contextlib.suppress(OSError):
                    memory.seek(start)
                    found += memory.read(end - start).count(text)
    return found


def test_modules_in_the_current_directory_are_not_run(tmp_path: Path) -> None:
    """We may be root in a directory of somebody else's."""
    for name in ("asyncio", "uvicorn", "kmemwatch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it was run')\n")
    command = [sys.executable, "-c", "import sys; sys.path.pop(0); from kmemwatch.cli.main import main; main()"]
    command += ["serve", "--replay", "demo", "--web.listen-address", "127.0.0.1:0"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as process:
        try:
            assert "serving" in Daemon(process).line()
        finally:
            process.kill()


_NO_MORE_IMPORTS = """
import sys, time
import kmemwatch.serve.http_service, kmemwatch.web.tls, bcrypt
before = set(sys.modules)
import base64, encodings.idna, http.client, os, ssl, pathlib, tempfile, subprocess  # of the test itself, from here on
from tests.unit.certificates import Authority
from tests.unit.web import sites
import kmemwatch.web.configformat  # which the other process imports
directory = pathlib.Path(tempfile.mkdtemp())
ours = Authority(directory, "ours")
server = ours.sign("server", "IP:127.0.0.1")
text = f"tls_server_config: {{cert_file: {server.cert}, key_file: {server.key}}}\\n"
text += "basic_auth_users: {a: " + bcrypt.hashpw(b"b", bcrypt.gensalt(4)).decode() + "}\\n"
of_test = set(sys.modules) - before
with sites(directory) as start:
    site = start(text)
    context = ssl.create_default_context(cafile=str(ours.cert))
    for path in ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready", "/none"):
        for headers in ({}, {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}):
            site.ask(path, tls=context, user=("a", "b"), headers=headers)
            site.ask(path, tls=context, user=("a", "c"), headers=headers)
    site.write(text + "# changed\\n")
    site.reload()
    site.ask("/metrics", tls=context, user=("a", "b"))
print(*sorted(set(sys.modules) - before - of_test))
"""


def test_nothing_is_imported_after_privileges_are_given_up() -> None:
    """Nobody may be unable to read Python's files."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _NO_MORE_IMPORTS], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], done.stdout


_LOADED_BEFORE = """
import sys
from types import SimpleNamespace
from kmemwatch.serve import http_service

def confine(*args):
    print(*("loaded" if name in sys.modules else f"no {name}" for name in ("kmemwatch.web.tls", "bcrypt")))
    raise SystemExit

http_service.confine = confine
http_service._serve(SimpleNamespace(selection=SimpleNamespace(has_expressions=False), web=object()), 0, 0)
"""


def test_a_web_configuration_needs_no_file_of_pythons_afterwards() -> None:
    """A checkout in a home directory that only root may read."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _LOADED_BEFORE], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["loaded", "loaded"]


# What goes over the wire


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    asking, answering = socket.socketpair()
    with answering:
        asking.close()
        messages.answer(answering, None)
        assert messages.receive(answering) is None


@given(strategies.snapshots)
@settings(max_examples=100)
def test_a_frame_comes_out_as_it_went_in(snapshot: Snapshot) -> None:
    frame = PublishedSnapshot(snapshot, 12.5, READER)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(True)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        messages.send(ours, messages.pack(frame))
        found = messages.receive(theirs)
        ours.close()
        assert messages.receive(theirs) is None
    assert isinstance(found, messages.SnapshotMessage)
    assert found.published.snapshot == snapshot
    assert (found.published.published_s, found.published.reader) == (12.5, READER)


@pytest.mark.parametrize("make", [fakes.sample, fakes.patched, fakes.odd, fakes.lossy, fakes.unknown, fakes.empty])
def test_every_kind_of_snapshot_goes_through(make: Callable[[], Snapshot]) -> None:
    assert messages.pack(PublishedSnapshot(make(), 0.0)).open() == make()


def test_half_a_message_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"\x10\0\0\0\0\0\0\0half")
        assert messages.receive(theirs) is None


@pytest.mark.parametrize("kind", [KmemwatchError, ShortageError, UsageError, UnsupportedError])
def test_errors_come_back_as_what_they_were(kind: type[KmemwatchError]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        messages.answer(theirs, kind("it broke", "mend it"))
        messages.answer(theirs, None)
        with pytest.raises(kind, match="it broke") as caught:
            messages.receive_answer(ours)
        assert caught.value.hint == "mend it"
        assert messages.receive_answer(ours), "the next one is left where it is"


def test_no_answer() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert not messages.receive_answer(ours)


# Frames


class Scraped:
    def __init__(self) -> None:
        self.latest = LatestSnapshot(60.0)
        self.exposition = Exposition(self.latest.current, 20_000, reader=lambda: self.latest.reader)

    def take(self, frame: PublishedSnapshot) -> None:
        """As the HTTP service does."""
        self.exposition.prepare(frame, self.latest.last())
        self.latest.publish(frame)

    def text(self) -> str:
        return b"".join(self.exposition.render("", compressed=False)[1]).decode()


class Counted:
    """A packed snapshot that counts how often it is opened."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.opened = 0

    def open(self) -> Snapshot:
        self.opened += 1
        return self.snapshot


def test_a_snapshot_is_opened_only_if_somebody_asks() -> None:
    scraped, packed = Scraped(), [Counted(fakes.sample(i)) for i in range(4)]
    for one in packed[:2]:
        scraped.take(PublishedSnapshot(one, time.monotonic()))
    assert [one.opened for one in packed] == [0, 0, 0, 0]
    scraped.text()
    scraped.text()
    assert [one.opened for one in packed] == [0, 1, 0, 0], "once, however many ask"
    scraped.take(PublishedSnapshot(packed[2], time.monotonic()))
    assert [one.opened for one in packed] == [0, 1, 1, 0], "nobody shall wait for it: the one before was asked for"
    scraped.take(PublishedSnapshot(packed[3], time.monotonic()))
    assert [one.opened for one in packed] == [0, 1, 1, 0], "nobody asked for the one before"


def test_what_is_prepared_is_what_would_be_written() -> None:
    prepared, asked = Scraped(), Scraped()
    for i in range(4):
        prepared.take(PublishedSnapshot(fakes.sample(i), time.monotonic()))
        prepared.text()
        prepared.exposition.render("application/openmetrics-text; version=1.0.0", compressed=True)
    asked.take(PublishedSnapshot(fakes.sample(0), time.monotonic()))
    asked.text()
    asked.take(PublishedSnapshot(fakes.sample(3), time.monotonic()))

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if not re.match("(kmemwatch_)?(process|scrape|snapshot_age)", line)]

    assert lines(prepared.text()) == lines(asked.text())
    _, parts = prepared.exposition.render("", compressed=True)
    assert lines(gzip.decompress(b"".join(parts)).decode()) == lines(asked.text())


def test_what_the_daemon_costs_is_the_sum_of_its_processes() -> None:
    alone, both = Scraped(), Scraped()
    for scraped, reader in ((alone, None), (both, READER)):
        scraped.take(PublishedSnapshot(fakes.sample(), time.monotonic(), reader))

    def value(scraped: Scraped, name: str) -> float | None:
        found = [line.split()[-1] for line in scraped.text().splitlines() if line.startswith(f"{name} ")]
        return float(found[0]) if found else None

    for name, more, slack in (
        ("process_cpu_seconds_total", 1.5, 0.5),
        ("process_resident_memory_bytes", 20 << 20, 8 << 20),
        ("process_virtual_memory_bytes", 90 << 20, 8 << 20),
        ("process_open_fds", 40, 3),
    ):
        without, with_reader = value(alone, name), value(both, name)
        assert without is not None
        assert with_reader is not None
        assert abs(with_reader - without - more) <= slack, name
    assert value(both, "process_start_time_seconds") == READER.start_time_s
    assert value(both, 'kmemwatch_process_cpu_seconds_total{process="reader"}') == 1.5
    assert value(alone, 'kmemwatch_process_cpu_seconds_total{process="reader"}') is None
    assert value(both, 'kmemwatch_process_resident_memory_bytes{process="reader"}') == 20 << 20
    assert value(both, 'kmemwatch_bpf_run_seconds_total{program="alloc/raw_tp:kmalloc"}') == pytest.approx(2e-6)
    assert value(both, 'kmemwatch_bpf_runs_total{program="alloc/raw_tp:kmalloc"}') == 3.0
    assert "kmemwatch_bpf_run" not in alone.text(), "not counted is not 0"


def test_what_the_reader_costs_stays_known_when_its_snapshots_are_old() -> None:
    scraped = Scraped()
    scraped.take(PublishedSnapshot(fakes.sample(), time.monotonic() - 100, READER))
    text = scraped.text()
    assert "kmemwatch_cgroup_kernel_bytes" not in text
    assert 'kmemwatch_process_cpu_seconds_total{process="reader"} 1.5' in text
    scraped.take(PublishedSnapshot(fakes.sample(), time.monotonic(), replace(READER, cpu_s=2.5)))
    assert 'kmemwatch_process_cpu_seconds_total{process="reader"} 2.5' in scraped.text()
