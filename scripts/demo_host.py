# SPDX-License-Identifier: GPL-2.0-only
"""The work on the host of the demo recording: services, jobs that come and go, and dying cgroups with pins.

Runs inside a lab kernel (scripts/record-demo boots it): real cgroups, real kernel memory, invented names.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.live.cgroups import OwnCgroup
from tests.live.helpers import Workload

ROOT = Path("/sys/fs/cgroup")
DISK = Path("/var/tmp/demo")
SHM = Path("/dev/shm/demo")
SECONDS = 60
INTERVAL_S = 2


def slice_of(*names: str) -> Path:
    """A path of cgroups that all hand the memory controller down."""
    path = ROOT
    for name in names:
        path /= name
        path.mkdir(exist_ok=True)
        (path / "cgroup.subtree_control").write_text("+memory")
    return path


def in_cgroup(path: Path, name: str) -> tuple[OwnCgroup, Workload]:
    cgroup = OwnCgroup(path, name)
    return cgroup, Workload(cgroup)


def bury(cgroup: OwnCgroup, work: Workload) -> None:
    work.end()
    cgroup.path.rmdir()


def make_zombies(jobs: Path) -> list[object]:
    """Six dying cgroups that shmem, page cache, a socket and inotify pin while the returned objects live."""
    kept: list[object] = []
    for number, size in enumerate((24_000_000, 6_000_000)):
        cgroup, work = in_cgroup(jobs, f"render@{number + 41}.service")
        work.do(f"write {SHM}/frame-{number} {size}")
        bury(cgroup, work)
    for number, size in enumerate((18_000_000, 3_000_000)):
        cgroup, work = in_cgroup(jobs, f"backup@{number + 7}.service")
        work.do(f"write {DISK}/dump-{number} {size}")
        bury(cgroup, work)
    cgroup, work = in_cgroup(jobs, "upload@3.service")
    work.start("receive 60000")
    port = int(work.channel.recv(64))
    kept.append(connection := socket.create_connection(("127.0.0.1", port)))
    threading.Thread(target=connection.sendall, args=(bytes(60_000),)).start()
    kept.append(socket.socket(fileno=work.receive_fd()))
    work.finish()
    bury(cgroup, work)
    cgroup, work = in_cgroup(jobs, "watch@1.service")
    work.start("inotify")
    kept.append(work.receive_fd())
    work.finish()
    bury(cgroup, work)
    return kept


def services(system: Path, pods: Path) -> list[Workload]:
    names = [(system, "nginx.service"), (system, "postgresql.service"), (system, "sshd.service")]
    names += [(pods, f"cri-containerd-{name}.scope") for name in ("web-7d4b9", "cache-0", "queue-66f8c")]
    return [in_cgroup(path, name)[1] for path, name in names]


def serve_requests(works: list[Workload], end: float) -> None:
    """Each service does some of its work, at its own pace."""
    nginx, postgres, sshd, web, cache, queue = works
    rng = random.Random(17)
    for directory in ("pg", "web", "cache"):
        (SHM / directory).mkdir()
    turn = 0
    while time.monotonic() < end:
        turn += 1
        nginx.do(f"eventfd {rng.randrange(500, 3000)}")
        web.do(f"files {50 * turn} {SHM}/web")
        web.do(f"unlink {50 * turn} {SHM}/web")
        queue.do(f"eventfd {rng.randrange(50, 400)}")
        (SHM / f"cache/{turn}").mkdir()
        cache.do(f"files 120 {SHM}/cache/{turn}")  # and never gives them back
        if turn % 5 == 0:
            postgres.do(f"write {DISK}/wal-{turn} 500000")
            sshd.do("pipes 3")
            sshd.do("close")
        time.sleep(0.4)


def come_and_go(jobs: Path, end: float) -> None:
    number = 100
    while time.monotonic() < end:
        number += 1
        cgroup, work = in_cgroup(jobs, f"cron@{number}.service")
        work.do("eventfd 300")
        if number % 4 == 0:
            work.do(f"write {SHM}/cron-{number} 1500000")
        bury(cgroup, work)
        if number % 8 == 0:
            (SHM / f"cron-{number - 4}").unlink(missing_ok=True)
        time.sleep(1)


def main(recording: str) -> int:
    """Set the stage, record, end."""
    for directory in (DISK, SHM):
        directory.mkdir(parents=True)
    system, jobs = slice_of("system.slice"), slice_of("system.slice", "system-jobs.slice")
    pods = slice_of("kubepods.slice", "kubepods-burstable.slice", "kubepods-burstable-podb2c1.slice")
    kept = make_zombies(jobs)
    works = services(system, pods)
    recorder = subprocess.Popen([sys.executable, "-m", "kmemwatch", "record", recording, "--interval", str(INTERVAL_S)])
    time.sleep(25)  # compiling is slow in an emulated machine
    end = time.monotonic() + SECONDS
    threads = [
        threading.Thread(target=serve_requests, args=(works, end)),
        threading.Thread(target=come_and_go, args=(jobs, end)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.send_signal(signal.SIGINT)
    code = recorder.wait(timeout=60)
    assert kept
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))
