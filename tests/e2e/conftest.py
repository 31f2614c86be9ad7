# SPDX-License-Identifier: GPL-2.0-only
"""A fleet of three hosts: this machine, and two invented ones that play recordings, scraped by a real Prometheus."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cgroup_mounts import MemoryMount
from tests.e2e.invented import PATCHED, UNPATCHED, record
from tests.e2e.servers import START_S, Credentials, Prometheus, Webhook, make_credentials, serve, start_alertmanager
from tests.live.cgroups import OwnCgroup
from tests.needs import require
from tests.waiting import wait_for

BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
LIVE = "this-machine"
HOSTS = {PATCHED: "invented-patched", UNPATCHED: "invented-unpatched"}
"""Kind of an invented host -> its name in Prometheus."""
TOP = "kmw-e2e"
"""Above all cgroups of the test."""
SERVICES = {
    "find": "find /usr/share/doc /proc/self",
    "files": "i=0; while [ $i -lt 200 ]; do : >files-$i; i=$((i+1)); done; rm files-*",
    "pipes": "i=0; while [ $i -lt 30 ]; do echo $i | cat; i=$((i+1)); done",
    "grow": "mkdir -p kept; i=0; while [ $i -lt 100 ]; do : >kept/$$-$i-$(date +%N); i=$((i+1)); done",
}
"""Name -> what it does again and again."""
INTERVAL_S = 2
"""Between snapshots of this machine: three of these late, and there are no figures."""
RATE_S = 4 * INTERVAL_S
"""What Grafana fills in for $__rate_interval where Prometheus scrapes as often."""
WORK_S = 40
"""How long the fleet is scraped before the tests query it."""
LATE_S = 30


@dataclass(frozen=True)
class Fleet:
    """The running programs, and when the work began and ended."""

    prometheus: Prometheus
    webhook: Webhook
    credentials: Credentials
    addresses: dict[str, str]
    """Instance -> where it is served."""
    began_s: float
    ended_s: float
    """When the work of this machine's cgroups ended; dashboards are queried up to that time."""

    def variables(self) -> dict[str, str]:
        """What Grafana would fill in to show this machine, or the two invented hosts side by side."""
        return {
            "host": LIVE,
            "patched": HOSTS[PATCHED],
            "unpatched": HOSTS[UNPATCHED],
            "__rate_interval": f"{RATE_S}s",
            "__range": f"{int(self.ended_s - self.began_s)}s",
        }


@pytest.fixture(scope="session")
def fleet(memory: MemoryMount, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet, after it has worked for a while."""
    require("Prometheus")
    directory = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        # So that the kernel counts the time of BPF programs; it does not by itself.
        stack.callback(BPF_STATS.write_text, BPF_STATS.read_text())
        BPF_STATS.write_text("1")
        addresses = {}
        recordings = {kind: record(kind, 2 * WORK_S, directory) for kind in HOSTS}
        credentials = make_credentials(directory)
        web = ("--web.config.file", credentials.web_config)
        # Other cgroups of this machine are nobody's business.
        only = ("--cgroup.include", f"/|/{TOP}(/.*)?")
        program, addresses[LIVE] = serve(LIVE, directory, "--interval", str(INTERVAL_S), *web, *only)
        stack.callback(program.stop)
        for kind, name in HOSTS.items():
            program, addresses[name] = serve(name, directory, "--interval", "1", "--replay", recordings[kind], *web)
            stack.callback(program.stop)
        webhook = Webhook()
        stack.callback(webhook.stop)
        alertmanager, alerts = start_alertmanager(webhook, directory)
        stack.callback(alertmanager.stop)
        prometheus = Prometheus(addresses, alerts, credentials.job(), directory)
        stack.callback(prometheus.program.stop)
        wait_for(prometheus.is_ready, START_S, "answer of Prometheus")
        began_s = time.time()

        def is_fresh() -> bool:
            # On a busy machine snapshots may be late, just when the dashboards are asked for the present.
            return bool(prometheus.query(f'kmemwatch_snapshot_age_seconds{{instance="{LIVE}"}} < {INTERVAL_S}'))

        ended_s = work(memory.path, directory, WORK_S, is_fresh)
        # A scrape is stored later than its samples say: whoever asks for this time now would not get the last of them.
        later = f"min(timestamp(up)) > {ended_s + 1}"
        wait_for(lambda: prometheus.query(later), START_S, "scrapes after the work")
        yield Fleet(prometheus, webhook, credentials, addresses, began_s, ended_s)


def work(root: Path, directory: Path, seconds: int, may_end: Callable[[], bool]) -> float:
    """Services that work all the time, and jobs that come and go; every fourth leaves a file, so stays dying.

    Returns when they ended, as `time.time` counts.
    """
    tmpfs = directory / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "kmw-e2e", str(tmpfs)], check=True)
    top = OwnCgroup(root, TOP)
    try:
        top.open_for_children()
        for name, command in SERVICES.items():
            loop = f"cd {tmpfs}; while :; do {command}; sleep 0.3; done"
            top.child(f"{name}.service").popen(["/bin/sh", "-c", loop], stdout=subprocess.DEVNULL)
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end or not may_end():
            assert time.monotonic() < end + LATE_S, "no fresh figures of this machine"
            job = top.child(f"job-{number}.scope")
            job.run(["/bin/sh", "-c", f"head -c {100 + number % 7 * 50}K /dev/zero >{tmpfs}/{number}"])
            if number % 4:
                (tmpfs / str(number)).unlink()
            job.remove()
            number += 1
            time.sleep(0.2)
        return time.time()
    finally:
        top.remove()
        subprocess.run(["umount", "-l", str(tmpfs)], check=True)
