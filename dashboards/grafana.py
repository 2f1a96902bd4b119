"""Boards as Grafana takes them: JSON of dashboards for Grafana 11, built with Grafana's own Foundation SDK. Pure."""

from __future__ import annotations

import json
from typing import Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, stat, timeseries
from grafana_foundation_sdk.builders import prometheus as prometheus_builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panel import Board, Panel, Query

TAG: Final = "llmtrain"
_HEIGHT: Final = 8
_SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_LETTERS: Final = "ABCDEFGH"
_OF_JOBS: Final = "llmtrain_job_members"

AnyPanel = timeseries.Panel | stat.Panel | bargauge.Panel


def text(board: Board) -> str:
    """The dashboard's JSON, with a newline at its end; the same board gives the same text."""
    return json.dumps(build(board), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def build(board: Board) -> model.Dashboard:
    """The dashboard: its variables, then its panels row by row."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(f"llmtrain-{board.name}")
        .description(board.description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            dashboard.DashboardLink("llmtrain")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("namespace", f"label_values({_OF_JOBS}, namespace)", every=True))
        .with_variable(
            _variable("job", f'label_values({_OF_JOBS}{{namespace=~"$namespace"}}, job)', every=not board.one_job)
        )
    )
    for row in board.rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made.with_panel(_panel(panel))
    return made.build()


def _variable(name: str, query: str, *, every: bool) -> dashboard.QueryVariable:
    """A choice of label values, of all at first if `every`."""
    made = (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .query(query)
        .datasource(_SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    if every:
        everything = model.VariableOption(selected=True, text="All", value="$__all")
        made.multi(True).include_all(True).all_value(".+").current(everything)
    return made


def _panel(panel: Panel) -> AnyPanel:
    made = _empty(panel)
    made.title(panel.title).description(panel.description).datasource(_SOURCE).unit(panel.unit)
    made.height(_HEIGHT).span(panel.width).min(panel.least if panel.least else 0)
    if panel.unit == "percentunit" and panel.most == 1.0:
        made.max(1.0)
    if panel.colors:
        made.thresholds(_thresholds(panel)).color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    for letter, query in zip(_LETTERS, panel.queries, strict=False):
        made.with_target(_target(letter, query, over_time=panel.over_time))
    return made


def _empty(panel: Panel) -> AnyPanel:
    if panel.kind == "stat":
        newest = common.ReduceDataOptions().calcs(["lastNotNull"])
        return stat.Panel().reduce_options(newest).graph_mode(shapes.BigValueGraphMode.NONE)
    if panel.kind == "bars":
        newest = common.ReduceDataOptions().calcs(["lastNotNull"])
        return bargauge.Panel().reduce_options(newest).orientation(shapes.VizOrientation.HORIZONTAL)
    lines = (
        timeseries.Panel()
        .legend(
            common.VizLegendOptions()
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
        .line_width(1)
    )
    if panel.kind == "stacked":
        lines.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL)).fill_opacity(40)
    return lines


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    first, *others = panel.colors
    steps = [model.Threshold(None, first[1]), *(model.Threshold(value, color) for value, color in others)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _target(letter: str, query: Query, *, over_time: bool) -> prometheus_builders.Dataquery:
    made = prometheus_builders.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend)
    return made.datasource(_SOURCE).range() if over_time else made.datasource(_SOURCE).instant()
