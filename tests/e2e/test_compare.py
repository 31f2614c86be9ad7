# SPDX-License-Identifier: GPL-2.0-only
"""compare reads a real Prometheus and real daemons, over TLS with a password, and finds what the recordings have."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.daemon import KMEMWATCH
from tests.e2e.conftest import HOSTS, LIVE, Fleet
from tests.e2e.invented import PATCHED, UNPATCHED
from tests.e2e.servers import USER
from tests.unit.test_compare_output import SCHEMA

pytestmark = pytest.mark.needs("root", "bcc", "a memory controller", "Prometheus")

SIDES = (UNPATCHED, PATCHED)
EXPECTED = {
    "caches-bounded": ["does not hold", "holds"],
    "ids-reused": ["does not hold", "holds"],
    "let-go": ["does not hold", "holds"],
    "recharged": ["does not hold", "holds"],
    "cost": ["cannot be told", "cannot be told"],
}
DURATION_S = 30


def compare(*arguments: str | Path) -> dict[str, Any]:
    """The JSON of `kmemwatch compare`."""
    done = subprocess.run(
        [*KMEMWATCH, "compare", "--output", "json", *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


def of_prometheus(fleet: Fleet, *selectors: str) -> dict[str, Any]:
    return compare(
        *(f"prometheus:{fleet.prometheus.url}?{selector}" for selector in selectors),
        "--from", f"{fleet.began_s:.0f}", "--to", f"{fleet.ended_s:.0f}", "--step", "1s",
    )  # fmt: skip


def verdicts(document: dict[str, Any]) -> dict[str, list[str]]:
    return {claim["key"]: [side["verdict"] for side in claim["sides"]] for claim in document["claims"]}


def figure(document: dict[str, Any], claim: int, side: int, key: str) -> float:
    found: float = document["claims"][claim - 1]["sides"][side]["figures"][key]["value"]
    return found


def test_two_hosts_of_a_prometheus_get_the_verdicts_of_their_recordings(fleet: Fleet) -> None:
    document = of_prometheus(fleet, *(f'instance="{HOSTS[kind]}"' for kind in SIDES))
    assert verdicts(document) == EXPECTED
    kernels = [side["hosts"][0] for side in document["sides"]]
    assert [(one["era"], one["patchset"]) for one in kernels] == [("per-memcg", False), ("recharge", True)]
    # What the daemons served between these times, asked of Prometheus itself.
    for n, kind in enumerate(SIDES):
        metric = f'kmemwatch_cgroups_offlined_total{{instance="{HOSTS[kind]}"}}'
        (series,) = fleet.prometheus.query_range(metric, round(fleet.began_s), round(fleet.ended_s))
        first, last = (float(series["values"][place][1]) for place in (0, -1))
        assert figure(document, 3, n, "removed") == last - first > 50
        buckets = document["sides"][n]["delays"]["buckets"]
        assert buckets[-1]["released"] == figure(document, 3, n, "released")


def test_a_selector_of_all_hosts_adds_them_up(fleet: Fleet) -> None:
    each = of_prometheus(fleet, *(f'instance="{HOSTS[kind]}"' for kind in SIDES))
    document = of_prometheus(fleet, 'instance=~"invented-.*"', f'{{instance="{LIVE}"}}')
    both, live = document["sides"]
    assert sorted(host["hostname"] for host in both["hosts"]) == sorted(HOSTS.values())
    assert figure(document, 3, 0, "removed") == sum(figure(each, 3, n, "removed") for n in (0, 1))
    # The host that runs this: its jobs were removed one after the other, and bpf_stats_enabled is set.
    assert live["hosts"][0]["kernel"] is not None
    assert figure(document, 3, 1, "removed") > 20
    assert 0 < figure(document, 5, 1, "bpf_run") < 1e6
    assert any("2 and 1 hosts" in note for note in document["notes"])


def test_a_selector_that_finds_nothing_is_2(fleet: Fleet) -> None:
    nothing = f'prometheus:{fleet.prometheus.url}?instance="nobody"'
    done = subprocess.run([*KMEMWATCH, "compare", nothing, nothing], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no metrics of kmemwatch between" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_daemons_are_asked_over_tls_with_a_password(fleet: Fleet) -> None:
    credentials = fleet.credentials
    access = [
        text
        for label in "ab"
        for text in (f"--ca-{label}", credentials.certificate, f"--user-{label}", USER,
                     f"--password-file-{label}", credentials.password_file)
    ]  # fmt: skip
    urls = [f"https://{fleet.addresses[HOSTS[kind]]}" for kind in SIDES]
    began = time.monotonic()
    document = compare(*urls, *map(str, access), "--duration", str(DURATION_S), "--interval", "1")
    assert DURATION_S <= time.monotonic() - began < 3 * DURATION_S
    assert [side["kind"] for side in document["sides"]] == ["daemon", "daemon"]
    assert all(side["samples"] > DURATION_S / 2 for side in document["sides"])
    removed = [figure(document, 3, n, "removed") for n in (0, 1)]
    # About three a second; on a busy machine more of them fall between the first sample and the last.
    assert all(DURATION_S < number < 6 * DURATION_S for number in removed)


def test_a_wrong_password_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    url = f"https://{fleet.addresses[HOSTS[PATCHED]]}"
    for extra, said in (
        (
            ["--ca-a", fleet.credentials.certificate, "--user-a", USER, "--password-file-a", tmp_path / "password"],
            "401",
        ),
        (["--user-a", USER, "--password-file-a", tmp_path / "password"], "certificate verify failed"),
    ):
        done = subprocess.run(
            [*KMEMWATCH, "compare", url, "demo", *map(str, extra), "--duration", "1"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
