# SPDX-License-Identifier: GPL-2.0-only
"""Plain text of the views: golden tables, and names that try to break them."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kmemwatch.errors import UsageError
from kmemwatch.model import EVENT_KINDS, LATENCY_KINDS, Event, Latency, LatencyHistogram
from kmemwatch.units import printable
from kmemwatch.views.batch import csv_header, csv_rows, ndjson_rows
from kmemwatch.views.eventlines import EventLines
from kmemwatch.views.rows import Frame, frame
from kmemwatch.views.select import check_scope, select, sort_rows
from kmemwatch.views.tables import VIEWS
from kmemwatch.views.texttable import char_width, cut_head, cut_tail, fit, layout, summary, table, width
from tests.unit import fakes, strategies

SAMPLE = frame(fakes.sample(), fakes.sample(3))
PATCHED = frame(fakes.patched(), fakes.patched(3))
NAMES = [view.name for view in VIEWS]

CGROUPS_80 = """\
kmemwatch db1 · kernel 6.18.44 (objcg) · attached 10m03s · live
memcgs 217 online, 4 dying · kernel memory 1.8G · lost 0
figures include child cgroups, except OWN ..., ALLOCATED FROM and TOP CACHE

CGROUP                 STATE   KERNEL  MEMORY CHARGED/s ALLOC/s ALLOCATED FROM
/                      online    1.8G   13.9G     27.6M   15.0k dentry
/kubepods.slice        online    1.3G    8.8G     17.6M    5000 dentry
…/pod3f9c/cri-ctr-0b71 online  702.0M    2.2G      6.1M    1000 ext4_inode_cache
/system.slice          online  402.0M    2.8G    624.6K    7000 filp
…/pod8e21/cri-ctr-77aa online  303.0M    1.8G      2.7M    1000 filp
…resql@15-main.service online  241.0M    1.9G    307.2K    1000 filp
….slice/docker.service online  118.0M  610.0M    102.4K    1000 dentry
…slice/session-4.scope online   21.0M  377.0M     20.5K    1000 dentry
/init.scope            online    9.0M   41.0M        0B    1000 -
…temd-journald.service online    6.0M  122.0M     10.2K    1000 ext4_inode_cache
…lice/run-u981.service dying     2.0M    2.0M        0B    1000 -
…pod-a1/cri-ctr-dead01 dying     1.0M   12.0M        0B    1000 -
…pod-a2/cri-ctr-dead02 dying       0B  310.0M        0B    1000 -
…ice/apt-daily.service dying       0B      0B        0B    1000 -
"""

ZOMBIES_FULL = """\
kmemwatch db1 · kernel 6.18.44 (objcg) · attached 10m03s · live
memcgs 217 online, 4 dying · kernel memory 1.8G · lost 0

CGROUP                                                               AGE  MEMORY  REFS  PINNED BY
/kubepods.slice/kubepods-besteffort.slice/pod-a2/cri-ctr-dead02    6m43s  310.0M    19  file 310.0M
/kubepods.slice/kubepods-besteffort.slice/pod-a1/cri-ctr-dead01    8m23s   12.0M    18  shmem 10.0M, file 2.0M, slab 80.0K
/system.slice/run-u981.service                                   >10m03s    2.0M    20  slab 1.5M, percpu 448.0K, kernel 36.0K
/system.slice/apt-daily.service                                    3m23s      0B    21  references only
"""  # noqa: E501 - a golden screen


IDS_80 = """\
kmemwatch db1 · kernel 6.18.44 (recharge) · attached 10m03s · live
memcgs 217 online, 4 dying · kernel memory 1.8G · lost 0
ids 2 in use, 5 reuses · peak 239 online · child caches 6, max 3 (dentry)

CGROUP                STATE      ID    AGE CACHES    SIZE PREVIOUS
…slice/docker.service online      0      ?      2   11.3M -
…pod3f9c/cri-ctr-0b71 online      3 10m02s      3    3.3M …pod-a1/cri-ctr-dead01
-                     -           4  3m23s      1    1.5M …lice/run-u981.service
"""
RECHARGES_100 = """\
kmemwatch db1 · kernel 6.18.44 (recharge) · attached 10m03s · live
memcgs 217 online, 4 dying · kernel memory 1.8G · lost 0
checks 91.5k (500/s) · recharges 450 (2.0/s), 1.8M · failures 2 · lost races 1

CACHE                 ID FROM                   WAS    TO                      SLABS SLABS/s   BYTES
dentry(3)              3 …pod-a1/cri-ctr-dead01 dying  …/pod3f9c/cri-ctr-0b71     37     2.0  148.0K
filp(3)                3 (nobody)               none   …/pod3f9c/cri-ctr-0b71     10       0   40.0K
dentry(0)              0 …slice/session-4.scope online ….slice/docker.service      3       0   12.0K
"""


def test_ids_at_80_columns() -> None:
    assert table(PATCHED, select("ids"), 80, title="live") == IDS_80


def test_recharges_at_100_columns() -> None:
    assert table(PATCHED, select("recharges"), 100, title="live") == RECHARGES_100


def test_cgroups_at_80_columns() -> None:
    assert table(SAMPLE, select("cgroups"), 80, title="live") == CGROUPS_80


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (((3, 2_700), (0, 0), (8, 4_001)), "allocation 900 ns, with a check ?, check 500 ns"),
        (((2, 24_691_356),), "allocation 12,345,678 ns"),
    ],
)
def test_times_of_allocations_are_told_where_they_are_measured(rows: tuple[tuple[int, int], ...], said: str) -> None:
    histograms = tuple(LatencyHistogram(kind, *row, ()) for kind, row in zip(LATENCY_KINDS, rows, strict=False))
    timed = replace(fakes.sample(), latency=Latency(64, {}, {}, histograms))
    assert summary(Frame(timed)) == f"memcgs 217 online, 4 dying · kernel memory 1.8G · {said} · lost 0"


def test_zombies_uncut() -> None:
    assert table(SAMPLE, select("zombies"), None, title="live") == ZOMBIES_FULL


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ("ids", "ids: a kmemcg_id on this kernel: the number of the memcg itself"),
        ("recharges", "recharges: no __memcg_kmem_rech"),
    ],
)
def test_views_that_this_kernel_cannot_have_say_why(view: str, said: str) -> None:
    assert said in table(SAMPLE, select(view), None, title="live")


@pytest.mark.parametrize("cells", [1, 5, 20, 40, 79, 80, 100, 140, 300])
@pytest.mark.parametrize("view", NAMES)
@pytest.mark.parametrize("make", [fakes.sample, fakes.odd, fakes.unknown, fakes.patched, fakes.private, fakes.empty])
def test_no_line_is_wider_than_the_terminal(make: object, view: str, cells: int) -> None:
    assert callable(make)
    shown = frame(make(), make(3))
    for line in table(shown, select(view), cells, title="live").splitlines():
        assert width(line) <= cells


@pytest.mark.parametrize("cells", [80, None])
@pytest.mark.parametrize("view", ["cgroups", "caches"])
def test_odd_names_never_change_the_number_of_rows(view: str, cells: int | None) -> None:
    shown = frame(fakes.odd(), fakes.odd(3))
    lines = table(shown, select(view), cells, title="live").splitlines()
    said = VIEWS[[v.name for v in VIEWS].index(view)].summary(shown) is not None
    assert len(lines) == 3 + said + 1 + len(fakes.ODD_NAMES)
    assert all(line.isprintable() for line in lines)


@given(name=st.text(max_size=300), cells=st.integers(1, 120), right=st.booleans(), tail=st.booleans())
def test_fit_takes_exactly_the_cells_it_got(name: str, cells: int, right: bool, tail: bool) -> None:
    text = fit(printable(name), cells, right=right, keep_tail=tail)
    assert width(text) == cells
    assert text.isprintable()


def test_cutting_keeps_the_telling_end() -> None:
    assert cut_head("/kubepods.slice/pod/ctr", 9) == "…/pod/ctr"
    assert cut_tail("shmem 10.0M, file 2.1M", 9) == "shmem 10…"
    assert cut_head("漢字", 3) == "…字"
    assert cut_head("漢字", 2) == "…"
    assert cut_head("ae\u0301x", 2) == "…x"
    assert fit("漢字", 3) == "漢…"
    assert fit("漢字", 2) == "… "
    assert cut_tail("x", 0) == cut_head("x", 0) == ""


def test_width_of_wide_and_combining() -> None:
    assert [char_width(c) for c in "a漢\u0301é"] == [1, 2, 0, 1]


def test_narrow_terminals_lose_the_least_important_columns_first() -> None:
    titles = {cells: [c.field.title for c in layout(VIEWS[0], cells).columns] for cells in (30, 60, 80, 110, 220)}
    assert titles[30] == ["CGROUP", "KERNEL"]
    assert titles[60] == ["CGROUP", "STATE", "KERNEL", "CHARGED/s", "ALLOC/s"]
    assert "ALLOCATED FROM" in titles[80], "known of every cgroup, unlike TOP CACHE"
    assert {"ALLOCATED FROM", "TOP CACHE"} <= set(titles[110])
    assert titles[220] == [f.title for f in VIEWS[0].columns]


def test_sort_is_stable_and_unknown_is_last_in_either_direction() -> None:
    known = fakes.sample().cgroups[:3]
    cgroups = (
        replace(known[0], kernel_bytes=None),
        replace(known[1], kernel_bytes=1),
        replace(known[2], kernel_bytes=2),
    )
    shown = Frame(replace(fakes.sample(), cgroups=cgroups))
    field = VIEWS[0].field("kernel_bytes")
    assert field is not None
    rows = VIEWS[0].rows(shown) or ()
    assert [r.cgroup.kernel_bytes for r in sort_rows(rows, field, reverse=False)] == [2, 1, None]
    assert [r.cgroup.kernel_bytes for r in sort_rows(rows, field, reverse=True)] == [1, 2, None]


def test_sort_by_text_is_alphabetical() -> None:
    rows = select("caches", "cache").rows(SAMPLE) or []
    names = [row.cache.name for row in rows]
    assert names == sorted(names)
    assert [row.cache.name for row in select("caches", "-cache").rows(SAMPLE) or []] == sorted(names, reverse=True)


def test_sort_takes_titles_too() -> None:
    assert select("cgroups", "charged/s").sort.key == "subtree_charged_bytes_per_s"
    assert select("cgroups", "OWN charged/s").sort.key == "charged_bytes_per_s"


def test_filter_matches_the_name_as_it_is_shown() -> None:
    rows = select("cgroups", regex="pod.*dead").rows(SAMPLE) or []
    assert [row.cgroup.id for row in rows] == [4001, 4002]
    odd = frame(fakes.odd(), fakes.odd(3))
    assert len(select("cgroups", regex=r"^/new\\nline").rows(odd) or []) == 1
    assert "no name matches" in table(SAMPLE, select("cgroups", regex="nothing"), 80, title="live")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("cgroup", None, None), "no view 'cgroup'", "cgroups, caches, zombies, ids, recharges"),
        (("caches", "speed", None), "has no field 'speed'", "allocations_per_s"),
        (("caches", None, "("), "'(' is not a regular expression", "backslash"),
    ],
)
def test_wrong_words_name_the_valid_ones(words: tuple[str, str | None, str | None], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(*words)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_unknown_scope_is_refused() -> None:
    check_scope(fakes.sample(), "/kubepods.slice")
    check_scope(fakes.sample(), None)
    with pytest.raises(UsageError, match="no memory cgroup '/nope' on db1"):
        check_scope(fakes.sample(), "/nope")


@pytest.mark.parametrize("view", NAMES)
@pytest.mark.parametrize("make", [fakes.sample, fakes.odd, fakes.unknown, fakes.patched, fakes.private])
def test_csv_has_one_line_a_row_and_one_cell_a_field(make: object, view: str) -> None:
    assert callable(make)
    shown, selection = frame(make(), make(3)), select(view)
    text = csv_header(selection.view) + csv_rows(shown, selection)
    header, *rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(selection.rows(shown) or [])
    assert len(text.splitlines()) == len(rows) + 1
    assert header == ["taken_at", *(f.key for f in selection.view.fields)]
    assert all(len(row) == len(header) for row in rows)


def test_csv_tells_unknown_from_none_and_0() -> None:
    selection = select("zombies")
    rows = {
        row["cgroup"]: row
        for row in csv.DictReader(io.StringIO(csv_header(selection.view) + csv_rows(SAMPLE, selection)))
    }
    assert rows["/system.slice/apt-daily.service"]["pins"] == "none"
    assert rows["/system.slice/run-u981.service"]["age_s"] == ""
    assert rows["/system.slice/run-u981.service"]["age_at_least_s"] == "603.0"
    blind = frame(None, fakes.unknown())
    (row,) = csv.DictReader(io.StringIO(csv_header(selection.view) + csv_rows(blind, selection)))
    assert row["memory_bytes"] == row["pins"] == row["references"] == ""


@pytest.mark.parametrize("view", NAMES)
@pytest.mark.parametrize("make", [fakes.sample, fakes.odd, fakes.unknown, fakes.patched, fakes.private])
def test_ndjson_is_json_line_by_line(make: object, view: str) -> None:
    assert callable(make)
    shown, selection = frame(make(), make(3)), select(view)
    rows = [json.loads(line) for line in ndjson_rows(shown, selection).splitlines()]
    assert len(rows) == len(selection.rows(shown) or [])
    assert all(set(row) >= {"taken_at", "host", "view", *(f.key for f in selection.view.fields)} for row in rows)


def test_ndjson_unknown_is_null() -> None:
    row = json.loads(ndjson_rows(frame(None, fakes.unknown()), select("zombies")))
    assert row["cgroup"] == "/gone"
    assert row["memory_bytes"] is None
    assert row["interval_s"] is None


DEAD = "/kubepods.slice/pod-a1/cri-ctr-dead01"
EVENT_LINES = rf"""
2026-11-22T20:00:00.000000Z online          {DEAD} id=4001 pid=811 comm=runc:[2:INIT]
2026-11-22T20:00:01.000000Z id_given        {DEAD} id=4001 pid=811 comm=runc:[2:INIT] kmemcg_id=3
2026-11-22T20:00:02.000000Z cache_created   {DEAD} id=4001 pid=77 comm=kworker/1:2 cache=dentry(3) kmemcg_id=3
2026-11-22T20:00:03.000000Z id_freed        {DEAD} id=4001 pid=1 comm=systemd kmemcg_id=3
2026-11-22T20:00:04.000000Z offline         {DEAD} id=4001 pid=1 comm=systemd
2026-11-22T20:00:05.000000Z id_reused       /a b\nc id=2101 pid=900 comm=sh kmemcg_id=3 previous={DEAD} previous_id=4001
2026-11-22T20:00:06.000000Z recharge        /a b\nc id=2101 pid=901 comm=find cache=dentry(3) kmemcg_id=3 from={DEAD} from_id=4001 bytes=4.0K
2026-11-22T20:00:07.000000Z recharge        /a b\nc id=2101 pid=901 comm=find cache=dentry(3) kmemcg_id=3 from=nobody bytes=8.0K
2026-11-22T20:00:08.000000Z recharge_failed /a b\nc id=2101 pid=901 comm=find cache=dentry(3) kmemcg_id=3 from_id=2900
2026-11-22T20:00:09.000000Z released        {DEAD} id=4001
2026-11-22T20:00:10.000000Z cache_destroyed cache=dentry(3) kmemcg_id=3
2026-11-22T20:00:11.000000Z id_reused       ? pid=900 comm=sh kmemcg_id=7 previous=?
"""  # noqa: E501 - golden lines


def test_event_lines() -> None:
    lines = EventLines()
    assert [lines.line(event) for event in fakes.EVENTS] == EVENT_LINES.strip().splitlines()
    assert {event.kind for event in fakes.EVENTS} == set(EVENT_KINDS)


def test_event_lines_name_cgroups_that_were_there_before() -> None:
    lines = EventLines()
    lines.learn(fakes.sample().cgroups)
    event = Event(0, "recharge", 2101, None, cache="dentry(3)", other_cgroup_id=4005)
    path = "/kubepods.slice/kubepods-burstable.slice/pod3f9c/cri-ctr-0b71"
    assert lines.line(event).endswith(
        f" {path} id=2101 cache=dentry(3) from=/system.slice/logrotate.service from_id=4005"
    )


def test_event_lines_remember_the_latest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.views.eventlines._MAX_PATHS", 2)
    lines = EventLines()
    for id_ in (1, 2, 1, 3):
        lines.line(Event(0, "online", id_, f"/{id_}"))
    shown = [lines.line(Event(0, "recharge", id_)).split()[2] for id_ in (1, 2, 3)]
    assert shown == ["/1", "?", "/3"]


@given(path=strategies.names, comm=strategies.names, other=strategies.names)
def test_an_event_is_always_one_line(path: str, comm: str, other: str) -> None:
    lines = EventLines()
    assert lines.line(Event(0, "offline", 2, other)).isprintable()
    for kind in EVENT_KINDS:
        assert lines.line(Event(0, kind, 1, path, 2, comm, path, 3, 2, 4096)).isprintable()
