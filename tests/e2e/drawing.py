# SPDX-License-Identifier: GPL-2.0-only
"""Draws a dashboard from its JSON and what Prometheus answered, with matplotlib: like Grafana, but not by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FixedLocator, MaxNLocator, MultipleLocator
from PIL import Image

from kmemwatch.units import bytes_human, count_human, seconds_human

Series = list[dict[str, Any]]
Answers = Sequence[tuple[Mapping[str, Any], Series]]
"""Targets of a panel, each with its series."""

COLUMN_IN, ROW_IN, DPI = 0.66, 0.36, 100
GAP_IN, TOP_IN = 0.09, 0.55
BACKGROUND, CARD, BORDER, TEXT, FAINT = "#f4f5f5", "#ffffff", "#d8d9da", "#24292e", "#6e7277"
COLORS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#37872d", "#e0b400", "#1f60c4", "#fa6400",
          "#c4162a", "#8f3bb8")  # fmt: skip
STEP_S = 10
"""Between the marks of the time axis."""
LEGEND_ROWS, LEGEND_IN = 6, 0.155
NAMED = {"green": "#37872d", "orange": "#e8710a", "red": "#c4162a"}


def short(value: float, unit: str) -> str:
    """A value with its unit, as kmemwatch's own screens write it."""
    if not math.isfinite(value):
        return "?"
    if unit in ("bytes", "binBps"):
        return bytes_human(round(value)) + ("/s" if unit == "binBps" else "")
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return (
            f"{value * 1000:.3g}ms" if abs(value) < 1 else f"{value:.2g}s" if abs(value) < 9.5 else seconds_human(value)
        )
    text = f"{value:.2g}" if 0 < abs(value) < 10 and value != int(value) else count_human(round(value))
    return text + ("/s" if unit == "cps" else "")


def legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Name of a series, from the target's legendFormat."""
    text = str(target["legendFormat"])
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def _cut(text: str, width: int) -> str:
    """The end of a long name says more than its beginning."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def draw(
    board: Mapping[str, Any], answers: Callable[[Mapping[str, Any]], Series], path: Path, subtitle: str
) -> list[str]:
    """Write a PNG of `board`; returns the panels without data. `answers`: target -> its series."""
    places = [panel["gridPos"] for panel in board["panels"]]
    width = 24 * COLUMN_IN + 2 * GAP_IN
    height = max(at["y"] + at["h"] for at in places) * ROW_IN + TOP_IN + 2 * GAP_IN
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    figure.text(
        2 * GAP_IN / width, 1 - 0.22 / height, board["title"], fontsize=13, color=TEXT, va="center", weight="bold"
    )
    figure.text(2 * GAP_IN / width, 1 - 0.45 / height, subtitle, fontsize=8, color=FAINT, va="center")
    empty = []
    for panel in board["panels"]:
        box = _Box(figure, panel, width, height)
        if panel["type"] == "row":
            box.heading()
            continue
        found = [(target, answers(target)) for target in panel["targets"]]
        if any(series for _, series in found):
            DRAWERS[panel["type"]](box, panel, found)
        else:
            box.say("No data")
            empty.append(panel["title"])
    figure.savefig(path, facecolor=BACKGROUND)
    with Image.open(path) as picture:  # as small as it can be without showing it
        small = picture.convert("RGB").quantize(256)
    small.save(path, optimize=True)
    return empty


class _Box:
    """The place of a panel."""

    def __init__(self, figure: Figure, panel: Mapping[str, Any], width: float, height: float) -> None:
        at = panel["gridPos"]
        self.figure, self.title = figure, panel["title"]
        self._page = (width, height)
        self.w, self.h = at["w"] * COLUMN_IN - GAP_IN, at["h"] * ROW_IN - GAP_IN
        self._x = at["x"] * COLUMN_IN + 1.5 * GAP_IN
        self._y = height - TOP_IN - (at["y"] + at["h"]) * ROW_IN

    def heading(self) -> None:
        self._text(0.05, self.h / 2, self.title, 10, weight="bold")

    def card(self) -> None:
        page_w, page_h = self._page
        frame = FancyBboxPatch((self._x / page_w, self._y / page_h), self.w / page_w, self.h / page_h,
                               boxstyle="square,pad=0", transform=self.figure.transFigure, facecolor=CARD,
                               edgecolor=BORDER, linewidth=0.8, zorder=-1)  # fmt: skip
        self.figure.add_artist(frame)
        self._text(0.1, self.h - 0.17, _cut(self.title, int(self.w * 13)), 8.5, weight="medium")

    def axes(self, left: float, bottom: float, right: float, top: float) -> Axes:
        """Axes that leave so many inches on each side."""
        page_w, page_h = self._page
        return self.figure.add_axes((
            (self._x + left) / page_w, (self._y + bottom) / page_h,
            (self.w - left - right) / page_w, (self.h - bottom - top) / page_h,
        ))  # fmt: skip

    def say(self, text: str) -> None:
        self.card()
        self._text(self.w / 2, self.h / 2, text, 9, color=FAINT, ha="center")

    def _text(self, x: float, y: float, text: str, size: float, **how: Any) -> None:
        page_w, page_h = self._page
        how = {"color": TEXT, "va": "center"} | how
        self.figure.text((self._x + x) / page_w, (self._y + y) / page_h, text, fontsize=size, **how)

    text = _text


def _unit(panel: Mapping[str, Any]) -> str:
    return str(panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "short"))


def _points(series: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    # A quotient of nothing by nothing, and a quantile of nothing, are NaN.
    values = [(float(at), float(value)) for at, value in series["values"] if math.isfinite(float(value))]
    return [at for at, _ in values], [value for _, value in values]


def _style(axes: Axes, unit: str) -> None:
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=6.5, colors=FAINT)
    axes.grid(visible=True, color="#ebecee", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: short(value, unit))


def _lines(box: _Box, panel: Mapping[str, Any], answers: Answers) -> None:
    box.card()
    unit, custom = _unit(panel), panel["fieldConfig"]["defaults"]["custom"]
    named = [(legend(target, one["metric"]), *_points(one)) for target, series in answers for one in series]
    named = [(name, at, values) for name, at, values in named if values]
    if len(answers) == 1:  # else the panel has an order of its own
        named.sort(key=lambda item: -item[2][-1])
    rows = min(len(named), LEGEND_ROWS)
    axes = box.axes(0.6, 0.36 + rows * LEGEND_IN, 0.12, 0.36)
    _style(axes, unit)
    if custom["stacking"]["mode"] == "normal":
        _stack(axes, named)
    else:
        for color, (_, at, values) in zip(COLORS, named, strict=False):
            axes.plot(at, values, color=color, linewidth=1.1)
    # Also for who has data in a part of it only.
    start = min(float(one["values"][0][0]) for _, series in answers for one in series)
    end = max(float(one["values"][-1][0]) for _, series in answers for one in series)
    axes.set_xlim(start, max(end, start + 1))
    axes.xaxis.set_major_locator(FixedLocator([start + after for after in range(0, int(end - start) + 1, STEP_S)]))
    axes.xaxis.set_major_formatter(lambda value, _: f"+{value - start:.0f}s")
    _limits(axes, panel, max(value for _, _, values in named for value in values))
    for place, (color, (name, _, values)) in enumerate(zip(COLORS, named[:rows], strict=False)):
        y = 0.1 + (rows - 1 - place) * LEGEND_IN
        box.text(0.14, y, "■", 6, color=color)
        more = f"  and {len(named) - rows} more" if place == rows - 1 and len(named) > rows else ""
        box.text(0.28, y, _cut(name, int(box.w * 11)) + more, 6.5)
        box.text(box.w - 0.12, y, short(values[-1], unit), 6.5, ha="right")


def _limits(axes: Axes, panel: Mapping[str, Any], highest: float) -> None:
    if panel["fieldConfig"]["defaults"].get("min") == 0:
        axes.set_ylim(0, axes.get_ylim()[1] if highest > 0 else 1)
    if _unit(panel) in ("bytes", "binBps"):
        low, high = axes.get_ylim()
        step = 2.0 ** math.ceil(math.log2(max(high - low, 1) / 6))
        axes.yaxis.set_major_locator(MultipleLocator(step))


def _stack(axes: Axes, named: Sequence[tuple[str, list[float], list[float]]]) -> None:
    times = sorted({at for _, ats, _ in named for at in ats})
    below = [0.0] * len(times)
    for color, (_, ats, values) in zip(COLORS, named, strict=False):
        known = dict(zip(ats, values, strict=True))
        above = [low + known.get(at, 0) for at, low in zip(times, below, strict=True)]
        axes.fill_between(times, below, above, color=color, alpha=0.35, linewidth=0)
        axes.plot(times, above, color=color, linewidth=1)
        below = above


def _number(box: _Box, panel: Mapping[str, Any], answers: Answers) -> None:
    box.card()
    ((_, (series, *_)), *_) = answers
    at, values = _points(series)
    defaults = panel["fieldConfig"]["defaults"]
    color = NAMED["green"]
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or values[-1] >= step["value"]:
            color = NAMED[step["color"]]
    axes = box.axes(0.03, 0.03, 0.03, box.h * 0.62)
    axes.fill_between(at, values, color=color, alpha=0.18, linewidth=0)
    axes.plot(at, values, color=color, linewidth=0.8)
    axes.set_ylim(0, max(*values, 1e-9) * 1.15)
    axes.set_xlim(at[0], max(at[-1], at[0] + 1))
    axes.axis("off")
    box.text(box.w / 2, box.h * 0.55, short(values[-1], _unit(panel)), 19, color=color, ha="center", weight="medium")


def _bars(box: _Box, panel: Mapping[str, Any], answers: Answers) -> None:
    box.card()
    unit = _unit(panel)
    rows = [(legend(target, one["metric"]), float(one["value"][1])) for target, series in answers for one in series]
    rows.sort(key=lambda item: item[1])
    axes = box.axes(box.w * 0.4, 0.08, 0.9, 0.34)
    axes.barh(range(len(rows)), [value for _, value in rows], color=[COLORS[n % len(COLORS)] for n in range(len(rows))])
    axes.axis("off")
    top = max(value for _, value in rows) or 1
    axes.set_xlim(0, top)
    for place, (name, value) in enumerate(rows):
        axes.text(-top * 0.01, place, _cut(name, int(box.w * 5)), fontsize=7, ha="right", va="center", color=TEXT)
        axes.text(value + top * 0.005, place, short(value, unit), fontsize=7, va="center", color=TEXT)


def _table(box: _Box, panel: Mapping[str, Any], answers: Answers) -> None:
    box.card()
    options = panel["transformations"][0]["options"]
    columns = sorted(options["includeByName"], key=options["indexByName"].__getitem__)
    rows = [
        [short(float(one["value"][1]), "short") if name == "Value" else one["metric"].get(name, "") for name in columns]
        for _, series in answers
        for one in series
    ]
    # The last column starts where all before it end; all are as wide as their longest text needs.
    needed = [max(len(options["renameByName"][name]), *(len(row[n]) for row in rows)) for n, name in enumerate(columns)]
    scale = min(0.085, (box.w - 0.3) / (sum(needed) + 2 * len(needed)))
    visible = int((box.h - 0.75) / 0.21)
    x = 0.14
    for place, name in enumerate(columns):
        width = int(needed[place] * scale / 0.075) + 2
        box.text(x, box.h - 0.45, options["renameByName"][name], 7, color="#1f60c4", weight="medium")
        for line, row in enumerate(rows[:visible]):
            box.text(x, box.h - 0.68 - line * 0.21, _cut(row[place], max(6, width)), 7)
        x += (needed[place] + 2) * scale
    if len(rows) > visible:
        box.text(box.w - 0.12, 0.12, f"and {len(rows) - visible} more", 6.5, color=FAINT, ha="right")


def _heat(box: _Box, panel: Mapping[str, Any], answers: Answers) -> None:
    """Buckets are cumulative, so each cell is what its bucket has more than the one below."""
    box.card()
    ((_, series), *_) = answers
    buckets = sorted(series, key=lambda one: float(one["metric"]["le"]))
    times = sorted({at for one in buckets for at in _points(one)[0]})
    cells, below = [], [0.0] * len(times)
    for one in buckets:
        known = dict(zip(*_points(one), strict=True))
        row = [known.get(at, 0.0) for at in times]
        cells.append([max(0.0, high - low) for high, low in zip(row, below, strict=True)])
        below = row
    axes = box.axes(0.6, 0.36, 0.12, 0.36)
    _style(axes, "short")
    axes.grid(visible=False)
    image = [[math.sqrt(value) for value in row] for row in cells]
    axes.imshow(image, aspect="auto", origin="lower", cmap="Oranges", interpolation="nearest")
    axes.set_yticks(range(len(buckets)), [_bound(one["metric"]["le"]) for one in buckets])
    axes.xaxis.set_major_formatter(lambda value, _: f"+{value:.0f}s")


def _bound(le: str) -> str:
    return "∞" if le == "+Inf" else short(float(le), "s")


DRAWERS: Mapping[str, Callable[[_Box, Mapping[str, Any], Answers], None]] = {
    "timeseries": _lines,
    "stat": _number,
    "bargauge": _bars,
    "table": _table,
    "heatmap": _heat,
}
