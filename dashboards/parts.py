# SPDX-License-Identifier: GPL-2.0-only
"""What all dashboards are made of: variables, queries and panels that look alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "kmemwatch"
ALL = ".*"

BYTES, BYTES_PER_S, COUNT, PER_S, SECONDS, SHARE = "bytes", "binBps", "short", "cps", "s", "percentunit"
"""Names of Grafana's units."""

WIDE, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4
"""Of the 24 columns of Grafana's grid."""

GOOD, WARN, BAD = "green", "orange", "red"


AGES = (
    ("0s", "less than 1 min"),
    ("1m", "1 to 10 min"),
    ("10m", "10 min to 1 h"),
    ("1h", "1 to 6 h"),
    ("6h", "6 to 24 h"),
    ("1d", "24 h and more"),
)
"""`at_least` of kmemwatch_dying_cgroups_by_age -> what to call it; Grafana would sort 10m before 1m."""


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str = ""
    """Name of a series: ``{{label}}`` stands for the value of a label."""


def ages(selector: str) -> list[Query]:
    """Dying cgroups by the time since they were removed, the youngest first."""
    return [
        Query(f'sum(kmemwatch_dying_cgroups_by_age{{{selector}, at_least="{at_least}"}})', name)
        for at_least, name in AGES
    ]


def dashboard(uid: str, title: str, description: str, span: str = "now-6h") -> builders.Dashboard:
    """An empty dashboard with a variable for the data source and links to the others."""
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .time(span, "now")
        .refresh("1m")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("kmemwatch")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )


def host_variable(
    name: str, label: str, selector: str = "kmemwatch_build_info", several: bool = False
) -> builders.QueryVariable:
    """A choice among the instances that have a series of `selector`; with `several`, of any number of them."""
    variable = (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": f"label_values({selector}, instance)", "refId": f"variable-{name}"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
    )
    if several:
        everything = models.VariableOption(selected=True, text="All", value="$__all")
        variable = variable.multi(True).include_all(True).all_value(ALL).current(everything)
    return variable


def row(title: str) -> builders.Row:
    """A heading; the panels that follow are below it."""
    return builders.Row(title)


def _targets(queries: Sequence[Query], instant: bool, format_: PromQueryFormat) -> list[Builder[Dataquery]]:
    targets: list[Builder[Dataquery]] = []
    for place, query in enumerate(queries):
        target = (
            prometheus.Dataquery()
            .ref_id(chr(ord("A") + place))
            .datasource(DATASOURCE)
            .expr(query.expr)
            .format(format_)
            .legend_format(query.legend or "__auto")
        )
        targets.append(target.instant() if instant else target.range())
    return targets


def _steps(steps: Sequence[tuple[float | None, str]]) -> builders.ThresholdsConfig:
    return (
        builders.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    width: int = HALF,
    stacked: bool = False,
    minimum: float | None = 0,
) -> timeseries.Panel:
    """Series over time; `stacked` when their sum means something."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, False, PromQueryFormat.TIME_SERIES))
        .unit(unit)
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(25 if stacked else 8)
        .show_points(look.VisibilityMode.NEVER)
        .stacking(common.StackingConfig().mode(look.StackingMode.NORMAL if stacked else look.StackingMode.NONE))
        .legend(
            common.VizLegendOptions()
            .display_mode(look.LegendDisplayMode.TABLE)
            .placement(look.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
    )
    return panel if minimum is None else panel.min(minimum)


def number(
    title: str,
    description: str,
    expr: str,
    unit: str,
    steps: Sequence[tuple[float | None, str]] = ((None, GOOD),),
    width: int = SIXTH,
) -> stat.Panel:
    """One figure with its graph behind it. `steps`: the value from which each color applies."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([Query(expr, title)], False, PromQueryFormat.TIME_SERIES))
        .unit(unit)
        .span(width)
        .height(4)
        .min(0)
        .thresholds(_steps(steps))
        .graph_mode(look.BigValueGraphMode.AREA)
        .color_mode(look.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    )


def bars(title: str, description: str, expr: str, legend: str, unit: str, width: int = HALF) -> bargauge.Panel:
    """The present values of several series, as horizontal bars."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([Query(expr, legend)], True, PromQueryFormat.TIME_SERIES))
        .unit(unit)
        .span(width)
        .height(8)
        .min(0)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .orientation(look.VizOrientation.HORIZONTAL)
        .display_mode(look.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    )


def grid(
    title: str,
    description: str,
    expr: str,
    columns: Sequence[tuple[str, str]],
    width: int = WIDE,
    height: int = 7,
) -> table.Panel:
    """A table of the labels of the present series: (label, title of its column), in this order; `Value` is one, too."""
    order = {label: place for place, (label, _) in enumerate(columns)}
    hidden = {"Time", "__name__", "job", "instance", "Value"} - set(order)
    options = {
        "excludeByName": dict.fromkeys(sorted(hidden), True),
        "includeByName": {label: True for label, _ in columns},
        "indexByName": order,
        "renameByName": dict(columns),
    }
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([Query(expr)], True, PromQueryFormat.TABLE))
        .span(width)
        .height(height)
        .with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
        .show_header(True)
    )


def heat(title: str, description: str, expr: str, unit: str, width: int = HALF) -> heatmap.Panel:
    """A histogram over time: `expr` gives its buckets, by `le`."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets([Query(expr, "{{le}}")], False, PromQueryFormat.HEATMAP))
        .span(width)
        .height(8)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(look.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(look.HeatmapCellLayout.AUTO))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmaps.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .fill("dark-orange")
            .exponent(0.5)
            .steps(64)
            .scale(heatmaps.HeatmapColorScale.EXPONENTIAL)
            .reverse(False)
        )
        .cell_gap(1)
        .show_legend()
    )
