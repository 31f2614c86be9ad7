# SPDX-License-Identifier: GPL-2.0-only
"""A range of a Prometheus server as a side, over real sockets: targets, restarts, refusals, passwords.

The server here answers query_range from a table; that a real one gives the same is tested in tests/e2e.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from kmemwatch.compare.comparison import compare
from kmemwatch.compare.figures import Metric
from kmemwatch.compare.prometheus import PrometheusServer, TimeRange, parse, read_prometheus
from kmemwatch.compare.side import Side
from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.feeds.http_client import ANYBODY, Access
from tests.http_server import OwnServer, QuietHandler

T0 = 1_800_000_000
DB1 = {"job": "kmemwatch", "instance": "db1:10777"}
DB2 = {"job": "kmemwatch", "instance": "db2:10777"}
Points = list[tuple[float, float]]


class FakePrometheus(OwnServer):
    """`series`: (metric, labels, points); sums over labels that a query does not keep are the test's business."""

    def __init__(self) -> None:
        self.series: list[tuple[str, dict[str, str], Points]] = []
        self.queries: list[str] = []
        self.authorization: list[str | None] = []
        self.refusal: tuple[int, bytes] | None = None
        fake = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                fake.authorization.append(self.headers["Authorization"])
                fake.queries.append(form["query"][0])
                status, body = fake.refusal or (200, json.dumps(fake.answer(form["query"][0])).encode())
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)

    def answer(self, query: str) -> dict[str, Any]:
        match = re.search(r"([a-z_]+)\{", query)
        assert match is not None
        found = [
            {"metric": labels, "values": [[t, str(value)] for t, value in points]}
            for metric, labels, points in self.series
            if metric == match[1]
        ]
        return {"status": "success", "data": {"resultType": "matrix", "result": found}}

    def add(self, metric: Metric | str, labels: dict[str, str], *values: float | None, **more: str) -> None:
        points = [(T0 + 10.0 * n, value) for n, value in enumerate(values) if value is not None]
        name = metric if isinstance(metric, str) else metric.value.metric
        self.series.append((name, {**labels, **more}, points))


@pytest.fixture
def server() -> Iterator[FakePrometheus]:
    fake = FakePrometheus()
    yield fake
    fake.stop()


def read(server: FakePrometheus, selector: str = 'job="kmemwatch"', access: Access = ANYBODY) -> Side:
    return read_prometheus(
        "A", "prometheus:x", PrometheusServer(server.url, access), selector, TimeRange.of(T0, T0 + 100, 10)
    )


def test_targets_are_hosts_and_their_counters_add_up(server: FakePrometheus) -> None:
    server.add(Metric.OFFLINED, DB1, 100, 110, 120)
    server.add(Metric.OFFLINED, DB2, 5, 6, 9)
    server.add(Metric.DYING, DB1, 1, 2, 3)
    server.add(Metric.DYING, DB2, 10, 10, 10)
    server.add("kmemwatch_kernel_info", DB1, 1, 1, 1, release="6.1.0", era="recharge", patchset="true")
    side = read(server)
    assert [host.name for host in side.hosts] == ["db1:10777", "db2:10777"]
    assert (side.hosts[0].kernel, side.hosts[0].era, side.hosts[0].patchset) == ("6.1.0", "recharge", True)
    assert (side.hosts[1].kernel, side.hosts[1].patchset) == (None, None)
    assert side.increase(Metric.OFFLINED) == 20 + 4
    assert side.dying() == [(0, 11), (10, 12), (20, 13)]
    assert all('{job="kmemwatch"}' in q or '{job="kmemwatch",cgroup="/"}' in q for q in server.queries)


def test_series_that_begin_later_began_at_zero(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1, 1, 1, 1)
    server.add(Metric.RECHARGES, DB1, None, 7, 7, 9, from_state="dying")
    assert read(server).increase(Metric.RECHARGES) == 9


def test_a_restart_that_a_counter_does_not_show_is_seen_by_the_start_time(server: FakePrometheus) -> None:
    server.add(Metric.OFFLINED, DB1, 10, 20, 25, 30)
    server.add("process_start_time_seconds", DB1, 1000, 1000, 1715, 1715)
    server.add("process_start_time_seconds", {"job": "node", "instance": "db1:9100"}, 1, 2, 3, 4)
    side = read(server)
    assert side.restarts == 1
    assert side.increase(Metric.OFFLINED) == 10 + 30
    assert len(side.hosts) == 1


def test_a_counter_that_falls_without_a_start_time_is_said(server: FakePrometheus) -> None:
    server.add(Metric.OFFLINED, DB1, 10, 20, 3, 8)
    side = read(server)
    assert side.increase(Metric.OFFLINED) == 10 + 8
    assert any("counters fell once" in note for note in compare(side, side).side_notes[0])


def test_times_without_samples_are_gaps(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1, 1, None, None, None, None, 2, 2, 2)
    assert read(server).gaps == ((10.0, 50.0),)


def test_caches_that_go_take_no_allocations_with_them(server: FakePrometheus) -> None:
    server.add(Metric.ALLOCATIONS, DB1, 100, 110, 120, cache="dentry")
    server.add(Metric.ALLOCATIONS, DB1, 50, 70, None, cache="gone")
    assert read(server).increase(Metric.ALLOCATIONS) == 20 + 20


def test_delays_come_from_the_histogram(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1, 1, 1)
    for bound, counts in (("1.0", (5, 6, 9)), ("10.0", (5, 7, 11)), ("+Inf", (5, 7, 13))):
        server.add("kmemwatch_cgroup_release_delay_seconds_bucket", DB1, *counts, le=bound)
    side = read(server)
    assert dict(side.delays.buckets) == {1.0: 4, 10.0: 6, float("inf"): 8}
    assert not side.delays.exact


def test_bpf_time_is_known_from_the_exporter(server: FakePrometheus) -> None:
    server.add(Metric.BPF_SECONDS, DB1, 1.0, 1.5)
    server.add(Metric.BPF_RUNS, DB1, 1_000_000, 2_000_000)
    facts = {f.key: f for f in compare(read(server), read(server)).claims[4].verdicts[0].facts}
    assert facts["bpf_run"].value == pytest.approx(500)


def test_several_kernels_in_the_range_are_said(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1, 1, 1, 1)
    server.add("kmemwatch_kernel_info", DB1, 1, 1, release="6.1.0", era="per-memcg", patchset="false")
    server.add("kmemwatch_kernel_info", DB1, None, None, 1, 1, release="6.1.1", era="recharge", patchset="true")
    side = read(server)
    assert side.hosts[0].kernel == "6.1.1"
    assert "6.1.0, 6.1.1" in side.notes[0]


def test_targets_of_one_name_are_not_mixed_up(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1, 1)
    for cluster in ("east", "west"):
        server.add("kmemwatch_kernel_info", DB1, 1, 1, release="6.1", era="recharge", patchset="true", cluster=cluster)
    with pytest.raises(UsageError, match="several targets are named db1:10777, they differ in cluster"):
        read(server)


def test_values_that_are_no_numbers_are_unknown(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1, float("nan"), float("inf"), 4)
    assert read(server).dying() == [(0, 1), (30, 4)]


def test_nothing_found_names_selector_and_time(server: FakePrometheus) -> None:
    with pytest.raises(UsageError, match=r"no metrics of kmemwatch between 2027-01-15T08:00:00Z and 2027-") as caught:
        read(server)
    assert "selector" in (caught.value.hint or "")


def test_the_password_is_sent(server: FakePrometheus) -> None:
    server.add(Metric.DYING, DB1, 1)
    read(server, access=Access(user="me", password="söcret"))
    expected = "Basic " + base64.b64encode("me:söcret".encode()).decode()
    assert set(server.authorization) == {expected}


@pytest.mark.parametrize(
    ("refusal", "error", "text"),
    [
        ((400, b'{"status":"error","error":"parse error: unexpected"}'), UsageError, "refused the query: parse error"),
        ((404, b"<html>"), UsageError, "answered with 404"),
        ((401, b""), KmemwatchError, "401 Unauthorized"),
        ((200, b"<html>"), UsageError, "not one of Prometheus"),
        ((200, b'{"status":"success","data":{"result":[{"metric":{},"values":[[1]]}]}}'), UsageError, "not one of"),
    ],
)
def test_other_answers_are_one_line(
    server: FakePrometheus, refusal: tuple[int, bytes], error: type[Exception], text: str
) -> None:
    server.refusal = refusal
    with pytest.raises(error, match=text) as caught:
        read(server)
    assert server.url in str(caught.value)


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(KmemwatchError, match=r"127\.0\.0\.1:1: cannot ask Prometheus: Connection refused"):
        PrometheusServer("http://127.0.0.1:1", Access()).query_range("up", TimeRange.of(0, 1))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("prometheus:http://p:9090", ("http://p:9090", "")),
        ('prometheus:http://p:9090?{job="k"}', ("http://p:9090", 'job="k"')),
        ('prometheus:https://p/x?a="1",b=~"x|{y}", c != \'z\',', ("https://p/x", 'a="1",b=~"x|{y}", c != \'z\'')),
        ("prometheus:p:9090?", ("p:9090", "")),
    ],
)
def test_selectors(argument: str, expected: tuple[str, str]) -> None:
    assert parse(argument) == expected


@pytest.mark.parametrize("selector", ["job", 'job="k"} or up{', "{job=k}", 'job="k" x="y"', "job=~'a\"", '1a="b"'])
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(UsageError, match="not a selector of Prometheus"):
        parse(f"prometheus:http://p:9090?{selector}")


@pytest.mark.parametrize("url", ["ftp://p", "http://", "http://p:x", "http://p q", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not a URL of a Prometheus server"):
        PrometheusServer(url, Access())


def test_the_step_gives_a_bounded_number_of_points() -> None:
    assert TimeRange.of(0, 60).step_s == 1
    week = TimeRange.of(0, 7 * 86400)
    assert 400 <= 7 * 86400 / week.step_s <= 500
    assert TimeRange.of(0, 60, 0.5).step_s == 0.5
