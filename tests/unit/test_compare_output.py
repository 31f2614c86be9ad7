# SPDX-License-Identifier: GPL-2.0-only
"""What compare prints: the text to the letter, JSON by its schema, HTML as one file without a network.

``python -m tests.unit.test_compare_output`` writes the text again that the first test compares with.
"""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kmemwatch.compare.comparison import Comparison, compare
from kmemwatch.compare.figures import Metric, figure
from kmemwatch.compare.html import charts, to_html
from kmemwatch.compare.output import MAX_POINTS, thinned, to_dict, to_json, to_text
from kmemwatch.compare.side import ReleaseDelays, Side
from kmemwatch.compare.workload import describe, read_workload
from kmemwatch.errors import UsageError
from tests.unit import fakes
from tests.unit.compare_sides import BOOT, delays, lives, objcg, patched, side, unpatched

GOLDEN = Path(__file__).parent / "compare_golden.txt"
SCHEMA = json.loads((Path(__file__).parents[2] / "kmemwatch/data/compare.schema.json").read_text())
NOW_NS = 1_800_000_300 * 10**9
EVIL = "</script><script>alert(1)</script>\"'&<b>"
ENOUGH_BYTES = 300_000
"""A mailing list takes no more."""


def workload(boot_id: str, **options: Any) -> dict[str, Any]:
    return {
        "host": {"boot_id": boot_id, "kernel": "6.1"},
        "options": {"mix": {"pipe": 1}, "objects": 3, "seed": 7, **options},
        "cgroups": {"made": 398, "removed": 398, "plan_sha256": str(options)},
        "objects": {},
        "started_at": "2027-01-15T08:00:01.000000000Z",
        "ended_at": "2027-01-15T08:03:00.000000000Z",
        "ended_by": "done",
    }


def example() -> Comparison:
    """Both kinds of kernels, with all that can be said of them."""
    probes = tuple(
        {"signal": p.signal, "attachment": p.attachment, "status": p.status, "why": p.why} for p in fakes.PROBES
    )
    return compare(
        unpatched(
            delays=delays([n / 7 for n in range(1, 40)], [n / 2 for n in range(359)]), probes=probes, kmemwatch="0.1.0",
            events=1200, workload=workload(BOOT["A"]), ids_reused_with_caches=0,
        ),
        patched(
            delays=delays([n / 40 for n in range(1, 397)], [0.1, 0.2]), probes=probes[:1], restarts=1,
            gaps=((50.0, 7.5),), clock_jumps_s=(-3600.0,), cut="B.kmw:201: recording cut off here; this is all of it",
            workload=workload(BOOT["B"]), events=0,
        ),
    )  # fmt: skip


ODD: dict[str, Callable[[], Comparison]] = {
    "example": example,
    "nothing": lambda: compare(side({}), side({}, label="B")),
    "empty": lambda: compare(side({}, seconds=0), side({}, seconds=0, label="B")),
    "stock kernels": lambda: compare(objcg("A"), objcg("B")),
    "one stock": lambda: compare(objcg("A"), patched("B")),
    "short and long": lambda: compare(patched("A", seconds=3), unpatched("B", seconds=5000)),
    "buckets": lambda: compare(patched("A", delays=ReleaseDelays(buckets={1.0: 3, float("inf"): 5})), patched("B")),
    "contradiction": lambda: compare(patched("A", contradictions=("x",)), patched("B")),
    "two hosts": lambda: compare(replace(patched("A"), hosts=patched("A").hosts + unpatched("B").hosts), patched("B")),
    "evil": lambda: compare(
        replace(side({figure(Metric.DYING): lambda t: t}, kernel=EVIL, notes=(EVIL,)), source=EVIL), patched("B")
    ),
}


def test_the_text_is_what_it_was() -> None:
    assert to_text(example()) == GOLDEN.read_text()


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("cells", [10, 60, 100])
def test_prose_is_wrapped(name: str, cells: int) -> None:
    text = to_text(ODD[name](), cells)
    assert text.endswith("\n")
    prose = [line for line in text.splitlines() if re.match(r" *(note:|[1-5]\. |[AB]  [A-Z ]+: )", line)]
    assert len(prose) >= 15
    assert all(len(line) <= max(cells, 40) or " " not in line.strip().removeprefix("note: ") for line in prose)


@pytest.mark.parametrize("name", ODD)
def test_json_is_as_its_schema_has_it(name: str) -> None:
    document = json.loads(to_json(ODD[name](), NOW_NS))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["created_at"] == "2027-01-15T08:05:00Z"


def test_the_schema_is_one_and_refuses_what_is_not() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    document = to_dict(example(), NOW_NS)
    document["claims"][0]["sides"][0]["verdict"] = "maybe"
    assert not validator.is_valid(document)


def test_json_has_the_figures_of_the_verdicts() -> None:
    document = to_dict(example(), NOW_NS)
    left = document["claims"][2]["sides"][0]["figures"]["left_share"]
    assert left["value"] == pytest.approx(1)
    assert left["low"] > 0.98
    a, b = document["sides"]
    assert (b["restarts"], b["clock_jumps_s"], b["gaps"]) == (1, [-3600.0], [{"elapsed_s": 50.0, "length_s": 7.5}])
    assert a["workload"]["text"] == "churn made 398 cgroups, kinds pipe=1, objects 3, seed 7"
    assert a["series"]["dying"][-1] == [199.0, 398]
    assert (a["delays"]["released"], a["delays"]["still_dying"]) == (39, 359)
    assert a["delays"]["curve"][0]["still_dying"] == 1
    assert a["delays"]["curve"][-1]["still_dying"] < 0.95


def test_a_workload_is_told_with_what_it_leaves() -> None:
    report = workload(BOOT["A"])
    report["options"] |= {"leave_percent": 1, "dead": 20}
    assert describe(report) == "churn made 398 cgroups, kinds pipe=1, objects 3, leave 1 %, dead 20, seed 7"


def test_thinning_keeps_ends_and_peaks() -> None:
    points = [(float(t), 1000.0 if t == 5555 else 1.0) for t in range(10_000)]
    found = thinned(points)
    assert len(found) <= MAX_POINTS
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert (5555.0, 1000.0) in found
    assert thinned(points[:50]) == points[:50]


def test_a_kind_that_only_one_side_has_is_in_its_place() -> None:
    kinds = [figure(Metric.DYING_BYTES, kind) for kind in ("anon", "file", "slab")]
    a = side(lives(2, 0) | {kinds[1]: lambda t: 5000})
    b = side(lives(2, 0) | dict.fromkeys((kinds[0], kinds[2]), lambda t: 5000), label="B")
    text = to_text(compare(a, b))
    places = [text.index(f"of it {kind}") for kind in ("anon", "slab", "file")]
    assert text.index("memory that they keep") < min(places)
    assert max(places) < text.index("trend of their number")


class Reader(html.parser.HTMLParser):
    """What is in a page, by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.opened: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        if tag == "script":
            self.scripts.append("")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        if self.opened and self.opened[-1] == "script" and self.scripts:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.opened.append("")


@pytest.mark.parametrize("name", ODD)
def test_the_page_is_one_file_that_asks_nobody(name: str) -> None:
    page = to_html(ODD[name](), NOW_NS)
    reader = Reader(page)
    assert len(reader.scripts) == 3
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!data:)", page)
    json.loads(reader.scripts[0])
    assert len(page.encode()) < ENOUGH_BYTES
    assert "Permission is hereby granted" in reader.scripts[1]


def test_names_cannot_become_markup() -> None:
    page = to_html(ODD["evil"](), NOW_NS)
    assert "<script>alert" not in page
    assert "<b>" not in Reader(page).text
    assert EVIL in "".join(Reader(page).text)


def test_charts_have_a_value_for_every_time() -> None:
    found = charts(example())
    assert [chart["key"] for chart in found] == ["dying", "slab", "delays", "caches", "ids"]
    for chart in found:
        assert chart["x"] == sorted(set(chart["x"]))
        assert all(len(line["y"]) == len(chart["x"]) for line in chart["lines"])
    dying = found[0]
    assert dying["lines"][0]["y"][-1] == 398
    in_gap = [y for x, y in zip(dying["x"], dying["lines"][1]["y"], strict=True) if 50 < x < 57.5]
    assert in_gap
    assert set(in_gap) == {None}


def test_a_page_of_a_long_recording_is_small() -> None:
    def long(label: str) -> Side:
        many = delays([n / 9 for n in range(20_000)], [1.0] * 50)
        return (patched if label == "B" else unpatched)(label, seconds=20_000, delays=many)

    assert len(to_html(compare(long("A"), long("B")), NOW_NS).encode()) < ENOUGH_BYTES


def test_doubts_about_the_workload_are_said() -> None:
    other = compare(patched("A", workload=workload("elsewhere")), patched("B", workload=workload(BOOT["B"], seed=8)))
    assert any("another host" in note for note in other.side_notes[0])
    assert "the workloads differ: seed" in other.notes
    late = workload(BOOT["A"]) | {"started_at": "2028-01-01T00:00:00Z", "ended_at": "2028-01-01T00:01:00Z"}
    assert any("another time" in note for note in compare(patched("A", workload=late), patched("B")).side_notes[0])
    more = workload(BOOT["A"])
    more["cgroups"]["removed"] = 5000
    assert any(
        "only 398 were seen" in note for note in compare(patched("A", workload=more), patched("B")).side_notes[0]
    )


@pytest.mark.parametrize(
    "text", ["", "[]", '{"host": 1}', '{"host":1,"options":1,"cgroups":1,"objects":1,"started_at":1,"ended_at":1}']
)
def test_what_is_no_report_of_churn_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "churn.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"churn\.json: not"):
        read_workload(str(path))


if __name__ == "__main__":
    GOLDEN.write_text(to_text(example()))
