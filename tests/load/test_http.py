# SPDX-License-Identifier: GPL-2.0-only
"""The daemon of a large host that is made up, with 100,000 series, and those who ask it: many, slowly, or nonsense."""

from __future__ import annotations

import gzip
import random
import resource
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest

from kmemwatch.web.server import _AT_ONCE, MAX_CONNECTIONS
from tests.daemon import Daemon
from tests.load.clients import TIMEOUT_S, Address, Client, Crowd, repeating, scraping
from tests.load.daemon import LIMIT_S, serving
from tests.processes import cpu_s, descriptors, memory
from tests.waiting import wait_for

CGROUPS = 6250
SERIES = 100_000
HOST = ("tests.load.host", str(CGROUPS), "serve", "--replay", "demo", "--max-series", "200000")
CLIENTS = 16
LONG_S = 30.0
"""Six intervals."""
SLOW = 2 * MAX_CONNECTIONS
PEAK_MB = 350
"""At most, of the process that answers."""
Figure = Callable[[str], None]


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> Iterator[None]:
    """For the slow clients, which are all in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4 * SLOW, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with serving(*HOST) as daemon:
        yield daemon
        assert daemon.is_healthy()
        assert daemon.ends(signal.SIGTERM) == (0, ["kmemwatch: stopping"]), "nothing was worth a line"


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_sixteen_clients_at_once(daemon: Daemon, is_long: bool, figure: Figure, packed: bool) -> None:
    """Each asks again as soon as it has its answer."""
    crowd, seconds = Crowd(), LONG_S if is_long else 2.0
    before_s = cpu_s(daemon.http)
    with repeating(CLIENTS, scraping(CLIENTS, lambda: Client(daemon.address, packed=packed), crowd)):
        time.sleep(seconds / 2)
        halfway_mb = memory(daemon.http).resident
        time.sleep(seconds / 2)
        resident = memory(daemon.http).resident
    used = (cpu_s(daemon.http) - before_s) / seconds
    answer = Client(daemon.address, packed=packed).get(keep=True)
    text = gzip.decompress(answer.body) if packed else answer.body
    assert text.endswith(b"# EOF\n")
    assert sum(not line.startswith(b"#") for line in text.splitlines()) >= SERIES
    assert (crowd.cut, set(crowd.statuses)) == ([], {200})
    assert len(crowd.seconds) >= CLIENTS
    assert max(crowd.seconds) < TIMEOUT_S
    assert memory(daemon.http).peak < PEAK_MB
    if is_long:
        assert resident < 1.25 * halfway_mb + 20, "it grows"
    figure(
        f"{answer.size / 1e6:.1f} MB each, {crowd.figures}, in {seconds:.0f} s; RSS {resident:.0f} MB,"
        f" at most {memory(daemon.http).peak:.0f} MB; {used:.2f} processors"
    )


class Loris:
    """Sockets that say a byte at a time, and are opened again when they are closed."""

    def __init__(self, address: Address, number: int) -> None:
        self._address, self._number = address, number
        self._selector = selectors.DefaultSelector()
        self.opened = 0

    def step(self, index: int) -> None:
        """A moment of it."""
        while len(self._selector.get_map()) < self._number:
            one = socket.create_connection(self._address, TIMEOUT_S)
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ)
            self.opened += 1
            self._say(one, b"GET /metrics HTTP/1.1\r\nX: ")
        for key, _ in self._selector.select(0):
            self._drop(key.fileobj)  # an answer, or the end: nobody asked for either
        for key in list(self._selector.get_map().values()):
            self._say(key.fileobj, b"a")
        time.sleep(0.2)

    def _say(self, one: object, text: bytes) -> None:
        assert isinstance(one, socket.socket)
        try:
            one.send(text)
        except OSError:
            self._drop(one)

    def _drop(self, one: object) -> None:
        assert isinstance(one, socket.socket)
        self._selector.unregister(one)
        one.close()

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            self._drop(key.fileobj)
        self._selector.close()


def test_slow_clients_are_in_nobodys_way(daemon: Daemon, is_long: bool, figure: Figure) -> None:
    """More of them than there may be connections at all."""
    before, crowd, seconds = descriptors(daemon.http), Crowd(), int(LONG_S) if is_long else 3
    loris, most = Loris(daemon.address, SLOW), 0

    def scrape(index: int) -> None:
        client = Client(daemon.address)
        crowd.ask(client, "/metrics")
        client.close()
        time.sleep(0.05)

    with repeating(1, loris.step), repeating(2, scrape):
        for _ in range(seconds):
            time.sleep(1)
            most = max(most, descriptors(daemon.http))
    assert (crowd.cut, set(crowd.statuses)) == ([], {200})
    # Those that are closed go a moment after others have come.
    assert MAX_CONNECTIONS <= most - before < MAX_CONNECTIONS + 5 * _AT_ONCE < SLOW
    assert max(crowd.seconds) < TIMEOUT_S / 2
    loris.close()
    wait_for(lambda: descriptors(daemon.http) <= before + 1, LIMIT_S)
    figure(
        f"{loris.opened} slow connections in {seconds} s, at most {most - before} of all at a time;"
        f" scrapes meanwhile: {crowd.figures}"
    )


KNOWN = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: y\r\nConnection: close\r\n\r\n",
    b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(100_000)) + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + bytes(range(1, 10)) + b"\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n" + b"a" * 1_000_000,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" + b"a" * 0xFFFFF,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 200,
)
VALID = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"


def nonsense(chance: random.Random) -> bytes:
    """A request that is wrong, too large, or both."""
    damaged = bytearray(VALID)
    for _ in range(chance.randrange(1, 4)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return chance.choice([*KNOWN, chance.randbytes(chance.randrange(1, 10_000)), bytes(damaged), bytes(damaged)])


def exchange(address: Address, request: bytes) -> str:
    """The status; ``cut`` without one."""
    start = b""
    try:
        with socket.create_connection(address, TIMEOUT_S) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 20):
                start = (start + part)[:12]
    except TimeoutError:
        raise
    except OSError:
        pass  # it need not take all that we say
    return start[9:].decode() or "cut"


def test_nonsense_harms_nobody(daemon: Daemon, is_long: bool, figure: Figure) -> None:
    before, crowd, seconds = descriptors(daemon.http), Crowd(), LONG_S if is_long else 2.0
    found: Counter[str] = Counter()
    chances = [random.Random(seed) for seed in range(8)]

    def shout(index: int) -> None:
        found[exchange(daemon.address, nonsense(chances[index]))] += 1

    with repeating(8, shout), repeating(1, scraping(1, lambda: Client(daemon.address), crowd)):
        time.sleep(seconds)
    assert found["400"] > 20
    # Some of it is a request after all, as a byte of a header may be any, and of a Host another name.
    assert set(found) <= {"200", "400", "404", "405", "421", "cut"}
    assert (crowd.cut, set(crowd.statuses)) == ([], {200})
    assert memory(daemon.http).peak < PEAK_MB
    wait_for(lambda: descriptors(daemon.http) <= before + 1, LIMIT_S)
    told = ", ".join(f"{number} {status}" for status, number in sorted(found.items()))
    figure(f"{found.total()} requests in {seconds:.0f} s ({told}); scrapes meanwhile: {crowd.figures}")


def test_wrong_passwords_at_speed(is_long: bool, figure: Figure, tmp_path: Path) -> None:
    web, seconds = tmp_path / "web.yml", LONG_S if is_long else 2.0
    web.write_text(f"basic_auth_users: {{prometheus: {bcrypt.hashpw(b'right', bcrypt.gensalt(10)).decode()}}}\n")
    with serving(*HOST, "--web.config.file", str(web)) as daemon:
        right, wrong = Crowd(), Crowd()
        user = Client(daemon.address, user=("prometheus", "right"))
        assert user.get().status == 200
        before, number = descriptors(daemon.http), iter(range(10**9))

        def guess(index: int) -> None:
            one = Client(daemon.address, user=("prometheus", f"guess {next(number)}"))
            wrong.ask(one, "/metrics")
            one.close()

        with repeating(CLIENTS + 4, guess), repeating(1, lambda index: right.ask(user, "/metrics")):
            time.sleep(seconds)
            later = Client(daemon.address, user=("prometheus", "right"))
            assert later.get().status == 200, "it is remembered"
        assert set(right.statuses) == {200}
        assert (right.cut, wrong.cut) == ([], [])
        assert set(wrong.statuses) == {401, 429}
        wait_for(lambda: descriptors(daemon.http) <= before + 1, LIMIT_S)
        assert user.get("/-/healthy").status == 200
    told = ", ".join(f"{count / seconds:.0f} a second {status}" for status, count in sorted(wrong.statuses.items()))
    figure(f"wrong ones: {told}; scrapes with the right one meanwhile: {right.figures}")


def test_sigterm_during_scrapes(figure: Figure) -> None:
    """Answers that have begun come whole; they have a second."""
    with serving(*HOST) as daemon:
        crowd = Crowd()
        work = scraping(CLIENTS, lambda: Client(daemon.address), crowd)

        def until_it_ends(index: int) -> None:
            if daemon.process.poll() is None:
                work(index)

        with repeating(CLIENTS, until_it_ends):
            wait_for(lambda: len(crowd.seconds) >= CLIENTS, LIMIT_S)
            began = time.monotonic()
            assert daemon.ends(signal.SIGTERM) == (0, ["kmemwatch: stopping"])
            took = time.monotonic() - began
    assert took < 5
    assert [cut for cut in crowd.cut if cut.is_begun] == []
    figure(f"ended after {took:.2f} s; {len(crowd.seconds)} answers came whole, none in part")
