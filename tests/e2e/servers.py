# SPDX-License-Identifier: GPL-2.0-only
"""The programs of the test, all on 127.0.0.1: kmemwatch, Prometheus, Alertmanager, and a webhook for its messages."""

from __future__ import annotations

import base64
import json
import queue
import re
import secrets
import socket
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import yaml

from tests.daemon import KMEMWATCH, ON_A_FREE_PORT
from tests.grafana import PROMETHEUS, ROOT, RULES
from tests.http_server import OwnServer, QuietHandler
from tests.needs import unpacked
from tests.waiting import wait_for

SCRAPE_S = 1
START_S = 60
USER = "prometheus"
"""As in the example."""


def free_address() -> str:
    """An address that nobody listens on: the distribution's programs cannot choose a free port themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def answers(url: str) -> bool:
    """Whether somebody answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


class Program:
    """A process whose output goes to a file, to find the cause of a failure."""

    def __init__(self, argv: Sequence[str | Path], log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)

    def runs(self) -> bool:
        """True. AssertionError with its output when it has ended."""
        assert self._process.poll() is None, f"{self.log.name} has ended:\n{self.log.read_text()[-2000:]}"
        return True

    def said(self, pattern: str) -> str | None:
        """The first group of `pattern` in its output so far."""
        found = re.search(pattern, self.log.read_text()) if self.runs() else None
        return found[1] if found else None

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _address(name: str, program: Program) -> str:
    found = wait_for(lambda: program.said(r"https?://([\d.:]+)"), START_S, f"address of {name}")
    assert found is not None
    return found


def serve(name: str, directory: Path, *options: str | Path) -> tuple[Program, str]:
    """`kmemwatch serve`, and the address that it serves on."""
    program = Program([*KMEMWATCH, "serve", *ON_A_FREE_PORT, *options], directory / f"{name}.log")
    try:
        return program, _address(name, program)
    except BaseException:
        program.stop()
        raise


@dataclass(frozen=True)
class Credentials:
    """Credentials to scrape with: a self-signed certificate, and a user with a password."""

    directory: Path
    certificate: Path
    password_file: Path
    web_config: Path
    """For ``--web.config.file``."""

    def job(self) -> dict[str, Any]:
        """Settings that replace those of the example's scrape configuration."""
        return {
            "tls_config": {"ca_file": str(self.certificate)},
            "basic_auth": {"username": USER, "password_file": str(self.password_file)},
        }

    def get(self, address: str, authorized: bool = True) -> str:
        """The metrics that are served at `address`. Raises HTTPError."""
        request = urllib.request.Request(f"https://{address}/metrics")
        if authorized:
            both = f"{USER}:{self.password_file.read_text()}".encode()
            request.add_header("Authorization", "Basic " + base64.b64encode(both).decode())
        context = ssl.create_default_context(cafile=str(self.certificate))
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return str(response.read().decode())


def make_credentials(directory: Path) -> Credentials:
    """With the commands of docs/prometheus.md."""
    key, certificate = directory / "server.key", directory / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=kmemwatch", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    password = secrets.token_urlsafe()
    password_file, web_config = directory / "password", directory / "web.yml"
    password_file.write_text(password)
    config = {
        "tls_server_config": {"cert_file": str(certificate), "key_file": str(key)},
        "basic_auth_users": {USER: bcrypt.hashpw(password.encode(), bcrypt.gensalt(10)).decode()},
    }
    web_config.write_text(yaml.safe_dump(config))
    return Credentials(directory, certificate, password_file, web_config)


class Webhook(OwnServer):
    """Receives the messages of Alertmanager."""

    def __init__(self) -> None:
        messages: queue.Queue[dict[str, Any]] = queue.Queue()

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

        self.messages = messages
        super().__init__(Handler)


def start_alertmanager(webhook: Webhook, directory: Path) -> tuple[Program, str]:
    """Alertmanager with the example configuration, except that it does not wait, and sends to `webhook`."""
    config = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    config["receivers"][0]["webhook_configs"][0]["url"] = webhook.url
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    subprocess.run([str(unpacked("amtool")), "check-config", path], check=True, stdout=subprocess.DEVNULL)
    address = free_address()
    argv = [str(unpacked("prometheus-alertmanager")), f"--config.file={path}", f"--web.listen-address={address}",
            f"--storage.path={directory}/alertmanager", "--cluster.listen-address="]  # fmt: skip
    program = Program(_with_share(argv), directory / "alertmanager.log")
    try:
        wait_for(lambda: program.runs() and answers(f"http://{address}/-/ready"), START_S, "answer of Alertmanager")
    except BaseException:
        program.stop()
        raise
    return program, address


def _with_share(argv: Sequence[str]) -> list[str]:
    """`argv` with /usr/share of its package, where Debian's Alertmanager looks for templates, if it is only unpacked.

    Nobody else sees that: it is mounted in a namespace of its own.
    """
    share = Path(argv[0]).parents[1] / "share"
    if str(share) == "/usr/share":
        return list(argv)
    return ["unshare", "--mount", "sh", "-c", f'mount --bind "{share}" /usr/share && exec "$@"', "sh", *argv]


class Prometheus:
    """Prometheus with the example configuration, except for hosts, files, and that it does everything each second."""

    def __init__(self, hosts: Mapping[str, str], alertmanager: str, job: Mapping[str, Any], directory: Path) -> None:
        """`hosts`: instance -> address; `job`: what its scrape configuration has instead of the example's."""
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
        config["scrape_configs"][0] |= job
        config["scrape_configs"][0]["static_configs"] = [
            {"targets": [address], "labels": {"instance": name}} for name, address in hosts.items()
        ]
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        # The same rules, evaluated more often.
        rules = re.sub(r"interval: 1m", f"interval: {SCRAPE_S}s", RULES.read_text())
        (directory / RULES.name).write_text(rules)
        promtool("check", "config", path)
        address = free_address()
        self.url = f"http://{address}"
        argv = [str(unpacked("prometheus")), f"--config.file={path}", f"--web.listen-address={address}",
                f"--storage.tsdb.path={directory}/tsdb", "--log.level=warn"]  # fmt: skip
        self.program = Program(argv, directory / "prometheus.log")

    def get(self, path: str, **parameters: str) -> Any:
        """Data of an answer of its HTTP API. Raises OSError when it does not answer, AssertionError for an error."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as exc:
            raise AssertionError(exc.read().decode()) from exc
        assert answer["status"] == "success"
        return answer["data"]

    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.program.runs() and answers(f"{self.url}/-/ready")

    def query(self, expr: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Series of an instant query; None: now."""
        at = {} if at_s is None else {"time": str(at_s)}
        found: list[dict[str, Any]] = self.get("query", query=expr, **at)["result"]
        return found

    def query_range(self, expr: str, start_s: float, end_s: float) -> list[dict[str, Any]]:
        """Series of a query, each second."""
        found: list[dict[str, Any]] = self.get(
            "query_range", query=expr, start=str(start_s), end=str(end_s), step=str(SCRAPE_S)
        )["result"]
        return found


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """What promtool prints; fails when it does."""
    done = subprocess.run(
        [str(unpacked("promtool")), *arguments], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
