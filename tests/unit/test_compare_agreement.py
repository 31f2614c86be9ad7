# SPDX-License-Identifier: GPL-2.0-only
"""What compare says and the interval beside it never contradict each other: in figures, text, JSON and HTML."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmemwatch.compare import verdict
from kmemwatch.compare.comparison import Comparison, compare
from kmemwatch.compare.figures import Metric, figure
from kmemwatch.compare.html import to_html
from kmemwatch.compare.output import to_json, to_text
from kmemwatch.compare.side import Side
from kmemwatch.compare.stats import FLAT, GROWING, SHRINKING, UNCLEAR, direction
from kmemwatch.compare.verdict import BYTES_PER_HOUR, FAILS, HOLDS, PER_HOUR, Fact, written
from tests.unit.compare_sides import lives, patched, side, unpatched

UNITS = sorted(verdict._WRITTEN)
TREND_ROWS = ("dying_trend", "dying_trend_late", "pinned_trend")
STEPS = {"": 1, "B": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4, "P": 1024**5}
COUNTS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
AGES = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}
KEPT = figure(Metric.DYING_BYTES, "slab")


def read(text: str, unit: str) -> float:
    """What a reader takes a printed figure for."""
    text = text.removesuffix("/h")
    if text[0] in "<>":  # closer to where it points than what is behind it
        bound = read(text[1:], unit)
        return bound * (1 + 5e-4) if bound > 50 else bound / 2
    if unit == verdict.SECONDS:
        return sum(float(n) * AGES[letter] for n, letter in re.findall(r"(-?[\d.e+-]+?) ?(ms|[smhd])", text))
    match = re.fullmatch(r"(-?[\d.]+(?:e[-+]\d+)?)(?: (?:%|ns)|([kKMGTPB]?))", text)
    assert match is not None, text
    return float(match[1]) * (STEPS if unit in (verdict.BYTES, BYTES_PER_HOUR) else COUNTS)[match[2] or ""]


def numbers(unit: str) -> st.SearchStrategy[float]:
    if unit == verdict.SHARE:
        return st.floats(0, 1)
    least = -1e12 if unit in (PER_HOUR, BYTES_PER_HOUR) else 0
    return st.floats(least, 1e12) | st.floats(max(least, -2), 2) | st.integers(int(max(least, -20)), 20).map(float)


@pytest.mark.parametrize("unit", UNITS)
@given(st.data())
def test_rounding_changes_neither_the_order_nor_the_sign(unit: str, data: st.DataObject) -> None:
    values = sorted(data.draw(st.lists(numbers(unit), min_size=3, max_size=3)))
    printed = [read(written(value, unit), unit) for value in values]
    assert printed == sorted(printed)
    if unit != verdict.RATIO:
        assert [(one > 0) - (one < 0) for one in printed] == [(one > 0) - (one < 0) for one in values]


@pytest.mark.parametrize("unit", [PER_HOUR, BYTES_PER_HOUR])
@given(st.data())
def test_the_word_beside_a_printed_interval_is_what_the_interval_says(unit: str, data: st.DataObject) -> None:
    low, value, high = sorted(data.draw(st.lists(numbers(unit), min_size=3, max_size=3)))
    small = data.draw(st.floats(0, 1e12) | st.floats(0, 2))
    check_cell(Fact("k", "t", value, unit, low, high, direction(low, high, small), small).text, unit)


def check_cell(text: str, unit: str) -> None:
    """The cell of a trend, read as people read it."""
    match = re.fullmatch(
        r"(\S+)(?: \((\S+) to (\S+)\))? (growing|shrinking|flat|not certain)(?:, by less than (\S+))?", text
    )
    assert match is not None, text
    value, low, high = (read(one or match[1], unit) for one in match.groups()[:3])
    word, limit = match[4], match[5]
    assert low <= value <= high, text
    assert {GROWING: low > 0, SHRINKING: high < 0, FLAT: low <= 0 <= high, UNCLEAR: low <= 0 <= high}[word], text
    if limit is not None:
        assert word in (GROWING, SHRINKING)
        assert max(abs(low), abs(high)) <= read(limit, unit), text


@st.composite
def sides(draw: st.DrawFn, label: str) -> Side:
    """Memcgs die and are released as they like; what stays is dying, and keeps memory."""
    count = draw(st.integers(8, 40))
    one = st.sampled_from([0, 0, 1, 2, 5, 50])
    removed = list(itertools.accumulate(draw(st.lists(one, min_size=count, max_size=count))))
    left, released = 0, []
    for total, wanted in zip(removed, draw(st.lists(one, min_size=count, max_size=count)), strict=True):
        left = min(total, left + wanted)
        released.append(left)
    before = draw(st.sampled_from([0, 3, 1000]))

    def at(values: Sequence[int], t: int) -> int:
        return values[t]

    series = lives(2, 0) | {
        figure(Metric.OFFLINED): lambda t: at(removed, t),
        figure(Metric.RELEASED): lambda t: at(released, t),
        figure(Metric.DYING): lambda t: before + removed[t] - released[t],
        KEPT: lambda t: 4096 * (before + removed[t] - released[t]),
    }
    return side(series, count, label)


@settings(max_examples=60, deadline=None)
@given(sides("A"), sides("B"))
def test_no_report_contradicts_itself(a: Side, b: Side) -> None:
    check(compare(a, b))


@pytest.mark.parametrize("pair", [(patched("A"), unpatched("B")), (unpatched("A"), unpatched("B", seconds=900))])
def test_nor_do_those_of_known_kernels(pair: tuple[Side, Side]) -> None:
    check(compare(*pair))


def check(found: Comparison) -> None:
    document = json.loads(to_json(found, 0))
    claim = next(one for one in document["claims"] if one["key"] == "let-go")
    page = html.unescape(to_html(found, 0)).replace("\N{NO-BREAK SPACE}", " ")
    text = " ".join(to_text(found).split())
    for one, judged in zip(claim["sides"], found.claims[2].verdicts, strict=True):
        for key in TREND_ROWS:
            check_trend(one["figures"][key])
        check_verdict(one)
        assert one["reason"] in text
        assert one["reason"] in page
        for fact in judged.facts:
            if fact.trend is not None:
                check_cell(fact.text, fact.unit)
                assert fact.text in text
                assert fact.text in page
    check_difference(claim)
    assert str(claim["difference"]) in text


def check_trend(figure: dict[str, float | str | None]) -> None:
    if figure["value"] is None:
        assert "trend" not in figure
        return
    low, high, small = (float(figure[key] or 0) for key in ("low", "high", "small"))
    assert low <= float(figure["value"]) <= high
    inside = max(abs(low), abs(high)) <= small
    said = {GROWING: low > 0, SHRINKING: high < 0, FLAT: low <= 0 <= high and inside, UNCLEAR: low <= 0 <= high}
    assert said[str(figure["trend"])]


def check_verdict(one: dict[str, object]) -> None:
    """The clause about the second half, and the verdict, against the figures of the same document."""
    found = one["figures"]
    assert isinstance(found, dict)
    late, left, reason = found["dying_trend_late"], found["left_share"], str(one["reason"])
    said = {"grows by": GROWING, "shrinks by": SHRINKING, "is flat": FLAT, "not certain whether": UNCLEAR}
    for words, trend in said.items():
        if words in reason:
            assert late["trend"] == trend
    if "by less than" in reason:
        assert max(abs(late["low"]), abs(late["high"])) <= late["small"] * (1 + 1e-9)
    if one["verdict"] == HOLDS:
        assert left["high"] < 0.2
        assert late["low"] <= 0 or late["high"] <= late["small"] * (1 + 1e-9)
    if one["verdict"] == FAILS:
        assert left["low"] > 0.05
    for part in re.findall(r"(?:grows|shrinks) by (\S+) \((\S+) to (\S+)\)", reason):
        value, low, high = (read(word, PER_HOUR) for word in part)
        assert 0 < low <= value <= high


def check_difference(claim: dict[str, object]) -> None:
    words, both = str(claim["difference"]), claim["sides"]
    assert isinstance(both, list)
    a, b = (one["figures"] for one in both)
    if "stay;" in words:
        apart = a["left_share"]["low"] > b["left_share"]["high"] or b["left_share"]["low"] > a["left_share"]["high"]
        assert apart == ("the intervals are apart" in words)
        shown = re.search(r"of the removed, (.*) and (.*) stay;", words)
        assert shown is not None
        assert (shown[1] != shown[2]) or not apart
    a, b = (one["dying_trend"] for one in (a, b))
    for verb, side_, more, less in (
        ("grows", "first", a, b), ("grows", "second", b, a), ("shrinks", "second", a, b), ("shrinks", "first", b, a),
    ):  # fmt: skip
        if f"{verb} faster on the {side_} side" in words:
            assert more["low"] > less["high"]
            assert more["low"] > 0 if verb == "grows" else less["high"] < 0
    if "the intervals of the trends overlap" in words:
        assert a["low"] <= b["high"]
        assert b["low"] <= a["high"]
