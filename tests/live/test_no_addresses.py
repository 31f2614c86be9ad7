# SPDX-License-Identifier: GPL-2.0-only
"""Nothing that kmemwatch serves, prints or records has the address of a cache of this kernel."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kmemwatch.attach import warm_start
from kmemwatch.codec import snapshot_to_json
from kmemwatch.feeds.live import LiveFeed
from kmemwatch.source.bpf_source import BpfSource
from tests.live.helpers import snapshot
from tests.live.test_privileges import LIMIT_S, serving
from tests.waiting import wait_for

PAGES = ("/", "/metrics", "/api/v1/snapshot", "/-/healthy", "/-/ready")
POINTER = re.compile(r"0x[0-9a-f]{9,}|\bffff[0-9a-f]{12}\b|\b1844[67]\d{15}\b")
"""Of a kernel whose memory is in the upper half of the addresses, as on x86-64 and arm64."""


def run(*words: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "kmemwatch", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def assert_clean(text: str) -> None:
    assert POINTER.findall(text.lower()) == []


def ids_of(text: str) -> dict[tuple[str, str], str]:
    """(name, root) -> id of the caches in a document."""
    return {(c["name"], c["root"]): c["id"] for c in json.loads(text)["caches"]}


def test_where_the_caches_are_is_in_no_snapshot(feed: LiveFeed) -> None:
    source = feed._source
    assert isinstance(source, BpfSource)
    addresses = [cache.address for cache in source._read_caches() or ()]
    assert len(addresses) > 20
    text = snapshot_to_json(snapshot(feed)).decode()
    assert [one for one in addresses if f"{one:x}" in text or str(one) in text] == []
    assert_clean(text)


def test_what_is_served_recorded_and_printed(tmp_path: Path) -> None:
    with serving() as daemon:
        wait_for(lambda: "caches" in daemon.get("/api/v1/snapshot"), LIMIT_S)
        for page in PAGES:
            assert_clean(daemon.get(page))
        served = ids_of(daemon.get("/api/v1/snapshot"))
        assert_clean("".join(daemon.told))
    assert len(served) > 20
    path = tmp_path / "x.kmw"
    run("record", str(path), "--duration", "1", "--interval", "1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert_clean(path.read_text())
    printed = run("snapshot", "--duration", "0.5")
    assert_clean(printed)
    for view in ("cgroups", "caches", "zombies", "ids"):
        assert_clean(run("top", "--once", "--view", view, "--output", "csv"))
    later = ids_of(printed[: printed.rindex("}") + 1])
    common = served.keys() & later.keys()
    assert len(common) > 20
    assert {key: served[key] for key in common} == {key: later[key] for key in common}, "another start, the same ids"


@pytest.mark.skipif(os.geteuid() != 0, reason="the secret is root's")
def test_the_secret_is_closed_to_everybody_else() -> None:
    run("snapshot", "--duration", "0.1")
    status = (warm_start.DIRECTORY / "cache-ids").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert stat.S_IMODE(warm_start.DIRECTORY.stat().st_mode) == 0o700


@pytest.mark.parametrize("output", ["text", "json"])
def test_doctor_tells_them_only_when_it_is_asked_to(output: str) -> None:
    assert_clean(run("doctor", "--output", output))
    told = run("doctor", "--output", output, "--addresses")
    assert re.search(r"0xffff[0-9a-f]{12} kfree" if output == "text" else r'"kfree": 1844\d{16}', told)
