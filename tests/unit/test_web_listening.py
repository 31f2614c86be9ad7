# SPDX-License-Identifier: GPL-2.0-only
"""Addresses of all kinds, and sockets that somebody else has made."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.web.listening import listen, listen_all, parse_address, remove_unix, take_inherited, url_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        (":9000", ("", 9000)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%lo]:1", ("fe80::1%lo", 1)),
        ("node1.example:65535", ("node1.example", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "9000", "host", "host:", "host:x", "host:65536", "host:-1", "::1:9000", "h:1_0", "h: 1", "a b:1", "a\n:1"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="not an address to listen on"):
        listen(text)


@given(st.text())
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except UsageError:
        return
    assert 0 <= port <= 65535
    assert host.isprintable()


def test_a_port_in_use_is_one_line_with_a_hint() -> None:
    with listen("127.0.0.1:0") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            KmemwatchError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
        ) as caught:
            listen(f"127.0.0.1:{port}")
    assert caught.value.exit_code == 1
    assert "--web.listen-address" in str(caught.value.hint)


@pytest.mark.parametrize("address", ["203.0.113.1:0", "no.such.host.invalid:0", f"{'x' * 70}.example:0", "..:0"])
def test_an_address_that_is_not_ours(address: str) -> None:
    with pytest.raises(KmemwatchError, match=f"cannot listen on {address}"):
        listen(address)


def test_every_interface_and_ipv6() -> None:
    with listen(":0") as everywhere:
        port = everywhere.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this host")
    with listen("[::1]:0") as listener:
        assert url_of(listener).startswith("http://[::1]:")
        assert url_of(listener, "https").startswith("https://[::1]:")


def test_several_or_none() -> None:
    made = listen_all(["127.0.0.1:0", "127.0.0.2:0"])
    ports = [one.getsockname()[1] for one in made]
    for one in made:
        one.close()
    with listen(f"127.0.0.2:{ports[1]}"), pytest.raises(KmemwatchError):
        listen_all([f"127.0.0.1:{ports[0]}", f"127.0.0.2:{ports[1]}"])
    listen(f"127.0.0.1:{ports[0]}").close()  # it was not kept


# Unix sockets


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "kmemwatch.sock"
    for address in (f"unix:{path}", f"unix://{path}"):  # what an earlier daemon has left is no obstacle
        with listen(address) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert url_of(listener) == f"unix:{path}"
            with pytest.raises(KmemwatchError, match="Address already in use"):
                listen(address)
    remove_unix([address, "127.0.0.1:0"])
    assert not path.exists()
    remove_unix([address])


def test_what_is_in_the_way_of_a_unix_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(KmemwatchError, match=f"cannot listen on unix:{path}: Address already in use"):
        listen(f"unix:{path}")
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("unix:", "not an address"),
        ("unix:relative", "not an address"),
        ("unix:/no/such/directory/socket", "No such file or directory"),
        ("unix:/tmp/" + "x" * 200, "path too long"),
    ],
)
def test_unix_sockets_that_cannot_be(address: str, message: str) -> None:
    with pytest.raises(KmemwatchError, match=message):
        listen(address)


# Sockets of systemd


def test_variables_for_somebody_else_are_removed() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "OTHER": "x"}
    assert take_inherited(environ, pid=5) == []
    assert environ == {"OTHER": "x"}


@pytest.mark.parametrize("number", ["", "x", "-1", "²"])
def test_variables_that_say_nothing(number: str) -> None:
    assert take_inherited({"LISTEN_PID": "5", "LISTEN_FDS": number}, pid=5) == []


def test_fewer_sockets_than_were_told() -> None:
    with pytest.raises(KmemwatchError, match=r"descriptor [0-9]+: Bad file descriptor"):
        take_inherited({"LISTEN_PID": "5", "LISTEN_FDS": "100000"}, pid=5)


_LAUNCH = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
for to, fd in enumerate(fds, 100):
    os.dup2(fd, to)
for place in range(len(fds)):
    os.dup2(100 + place, 3 + place, inheritable=True)
os.closerange(3 + len(fds), 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "kmemwatch", "serve", "--replay", "demo", *sys.argv[3:]])
"""
"""What systemd does: descriptors from 3 on, and the pid of who is executed."""


@contextmanager
def activated(fds: list[int], names: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _LAUNCH, ",".join(map(str, fds)), names, *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("args", "which"),
    [
        (("--web.listen-address", "fd://"), (0, 1)),
        (("--web.systemd-socket",), (0, 1)),
        (("--web.listen-address", "fd://second"), (1,)),
        (("--web.listen-address", "fd://3"), (0,)),
        (("--web.listen-address", "fd://first", "--web.listen-address", "fd://4"), (0, 1)),
    ],
)
def test_sockets_that_are_handed_over_are_served(args: tuple[str, ...], which: tuple[int, ...]) -> None:
    with ExitStack() as stack:
        ours = [stack.enter_context(listen("127.0.0.1:0")) for _ in range(2)]
        process = stack.enter_context(activated([one.fileno() for one in ours], "first:second", *args))
        assert process.stderr is not None
        for index in which:
            assert process.stderr.readline() == f"kmemwatch: serving {url_of(ours[index])}/metrics\n"
        for index in which:
            with urllib.request.urlopen(f"{url_of(ours[index])}/-/ready", timeout=5) as answer:
                assert answer.status == 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--web.listen-address", "fd://third"), "no such socket was handed over; there are: 3 (first), 4 (second)"),
        (("--web.listen-address", "fd://second"), "descriptor 4 is not a listening stream socket"),
    ],
)
def test_sockets_that_are_not_as_they_should(args: tuple[str, ...], message: str) -> None:
    with (
        listen("127.0.0.1:0") as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        activated([ours.fileno(), other.fileno()], "first:second", *args) as process,
    ):
        _, told = process.communicate(timeout=20)
    assert process.returncode == 2
    assert message in told.splitlines()[0]
    assert len(told.splitlines()) == 2


def test_no_sockets_at_all() -> None:
    with pytest.raises(UsageError, match="fd://: no such socket was handed over; there are: none"):
        listen_all(["fd://"], {})
