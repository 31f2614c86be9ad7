# SPDX-License-Identifier: GPL-2.0-only
"""The HTTP service in the test's own process, with its privileges, on a web configuration that the test writes."""

from __future__ import annotations

import base64
import http.client
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from kmemwatch.exporter.published import PublishedSnapshot, reader_cost
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.serve import messages
from kmemwatch.serve.http_service import HttpService
from kmemwatch.serve.messages import BrokenConfig, NewConfig, Settings
from kmemwatch.web.configfiles import WebConfigFiles
from kmemwatch.web.listening import listen
from tests.unit import fakes

EVERYTHING = SelectionOptions()
Answer = tuple[int, http.client.HTTPMessage, bytes]


class Site:
    """What is served, and how to ask it."""

    def __init__(self, directory: Path, text: str, selection: SelectionOptions) -> None:
        self.directory = directory
        self.path = directory / "web.yml"
        self.path.write_text(text)
        self.files = WebConfigFiles(str(self.path))
        self.logged: list[str] = []
        self.listener = listen("127.0.0.1:0")
        self.port = self.listener.getsockname()[1]
        settings = Settings(
            listeners=[os.dup(self.listener.fileno())],
            telemetry_path="/metrics",
            max_series=20_000,
            stale_s=60.0,
            selection=selection,
            reader=reader_cost({}),
            web=self.files.load(),
        )
        self.service = HttpService(settings, self.logged.append)
        self.service.start()
        self.service.handle(messages.pack(PublishedSnapshot(fakes.sample(), time.monotonic())))

    def ask(
        self,
        path: str = "/-/healthy",
        *,
        tls: ssl.SSLContext | None = None,
        user: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        address: str = "127.0.0.1",
    ) -> Answer:
        """One request on a connection of its own, from that address of this machine."""
        sent = dict(headers or {})
        if user is not None:
            sent["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode()
        with closing(self.connect(tls, address)) as connection:
            connection.request(method, path, headers=sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def connect(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        source = (address, 0)
        if tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10, source_address=source)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=tls, source_address=source)

    def write(self, text: str) -> None:
        """Change the configuration; with `reload` it is used."""
        self.path.write_text(text)

    def reload(self) -> None:
        """What `serve` does every second."""
        self.files.reload(
            lambda web: self.service.handle(NewConfig(web)), lambda why: self.service.handle(BrokenConfig(why))
        )

    def metric(self, name: str, **how: ssl.SSLContext | tuple[str, str]) -> str | None:
        """Value of a metric without labels."""
        text = self.ask("/metrics", **how)[2].decode()  # type: ignore[arg-type]
        return next((line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")), None)


Sites = Callable[..., Site]


@contextmanager
def sites(directory: Path) -> Iterator[Sites]:
    """``start(text)`` serves on the web configuration `text`."""
    with ExitStack() as stack:

        def start(text: str = "{}", selection: SelectionOptions = EVERYTHING) -> Site:
            site = Site(directory, text, selection)
            stack.callback(site.listener.close)
            stack.callback(site.service.stop)
            return site

        yield start
