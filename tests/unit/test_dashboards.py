"""What the chart ships of boards and alerts is what the code says, and both speak of metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from dashboards import alerts, grafana, shipped
from dashboards.boards import BOARDS
from dashboards.panel import Board, Panel, filled, job, metrics
from tests.support.chart import render
from tests.support.exported import exported

ROOT = Path(__file__).parents[2]
PANELS = [pytest.param(board, panel, id=f"{board.name}: {panel.title}") for board in BOARDS for panel in board.panels]
ALERTS = [pytest.param(alert, id=alert.name) for alert in alerts.ALERTS]
VARIABLES = {"namespace", "job", "__rate_interval"}


def test_the_committed_files_are_those_that_would_be_written():
    """`python -m dashboards` writes them."""
    assert shipped.outdated(ROOT, shipped.files(ROOT)) == []


def test_what_is_outdated_is_found_and_mended(tmp_path):
    """A changed file, a missing one, and a board that is not wanted any more."""
    wanted = shipped.files(ROOT)
    shipped.write(tmp_path, wanted)
    assert shipped.outdated(tmp_path, wanted) == []
    fleet, old = shipped.BOARDS_AT / "fleet.json", shipped.BOARDS_AT / "old.json"
    (tmp_path / fleet).write_text("{}")
    (tmp_path / old).write_text("{}")
    (tmp_path / shipped.RULES).unlink()
    assert shipped.outdated(tmp_path, wanted) == sorted([fleet, old, shipped.RULES])
    shipped.write(tmp_path, wanted)
    assert shipped.outdated(tmp_path, wanted) == []


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_every_query_asks_for_metrics_that_are_exported(board: Board, panel: Panel):
    """A name that is spelt wrongly gives an empty panel, and no error."""
    for query in panel.queries:
        assert metrics(query.expr)
        assert metrics(query.expr) <= exported()
        assert set(re.findall(r"\$(\w+)", query.expr)) <= VARIABLES


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_every_panel_explains_itself(board: Board, panel: Panel):
    """A sentence that says what it shows, a legend for each query, a range of plausible values."""
    assert panel.description.endswith(".")
    assert panel.description.rstrip(".") != panel.title
    assert all(query.legend for query in panel.queries)
    assert panel.least < panel.most
    assert [value for value, _ in panel.colors] == sorted({value for value, _ in panel.colors})


@pytest.mark.parametrize("board", BOARDS, ids=[board.name for board in BOARDS])
def test_a_board_is_laid_out_without_gaps_or_overlap(board: Board):
    """Rows are as wide as the board, panels have titles of their own, and Grafana's JSON has all of them."""
    titles = [panel.title for panel in board.panels]
    assert len(set(titles)) == len(titles)
    for row in board.rows:
        assert sum(panel.width for panel in row.panels) % 24 == 0, row.title
    made = json.loads(grafana.text(board))
    drawn = [panel for panel in made["panels"] if panel["type"] != "row"]
    assert [panel["title"] for panel in drawn] == titles
    assert [[target["expr"] for target in panel["targets"]] for panel in drawn] == [
        [query.expr for query in panel.queries] for panel in board.panels
    ]
    assert {variable["name"] for variable in made["templating"]["list"]} == {"datasource", "namespace", "job"}
    assert made["uid"] == f"llmtrain-{board.name}"
    places = {(x, y) for panel in made["panels"] for x, y in _cells(panel["gridPos"])}
    assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in made["panels"])


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    x, y = place.get("x", 0), place.get("y", 0)
    return [(x + i, y + j) for i in range(place["w"]) for j in range(place["h"])]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_about_metrics_that_are_exported_and_has_a_runbook(alert: alerts.Alert):
    """Its section in docs/alerts.md says what it means, what to look at, and what to do."""
    assert metrics(alert.expr)
    assert metrics(alert.expr) <= exported()
    sections = re.split(r"^### ", (ROOT / "docs/alerts.md").read_text(), flags=re.MULTILINE)
    [section] = [each for each in sections if each.partition("\n")[0] == alert.name]
    for part in ("**Means**", "**Look**", "**Do**"):
        assert part in section


def test_the_runbook_has_no_section_of_an_alert_that_is_gone():
    headings = set(re.findall(r"^### (LLMTrain\w+)$", (ROOT / "docs/alerts.md").read_text(), flags=re.MULTILINE))
    assert headings == {alert.name for alert in alerts.ALERTS}


def test_every_threshold_of_the_chart_is_used_and_every_one_used_is_known():
    values = yaml.safe_load((ROOT / shipped.VALUES).read_text())["alerts"]
    assert alerts.named(alerts.text()) == {*values["thresholds"], "runbookUrl"}
    with pytest.raises(KeyError, match="goodputRatio"):
        alerts.filled(alerts.text(), {})


def test_the_chart_puts_the_users_thresholds_into_the_rules():
    """Everything else is as in the plain file."""
    ours = {"goodputRatio": 0.5, "checkpointAgeSeconds": 600}
    given = {"rules": "always", "labels": {"release": "p"}, "runbookUrl": "https://wiki/alerts", "thresholds": ours}
    [made] = [each for each in render({"alerts": given}) if each["kind"] == "PrometheusRule"]
    assert made["metadata"]["labels"]["release"] == "p"
    values = yaml.safe_load((ROOT / shipped.VALUES).read_text())["alerts"]
    known = alerts.settings({**values, "runbookUrl": "https://wiki/alerts", "thresholds": values["thresholds"] | ours})
    assert made["spec"] == yaml.safe_load(alerts.filled(alerts.text(), known))


@pytest.mark.parametrize("rules", ["auto", "never"])
def test_there_are_no_rules_where_nobody_takes_them(rules):
    """A cluster without the Prometheus operator, which is what a chart is rendered for here."""
    assert not [each for each in render({"alerts": {"rules": rules}}) if each["kind"] == "PrometheusRule"]


def test_every_board_is_in_a_config_map_that_grafanas_sidecar_finds():
    made = [each for each in render({}) if each["kind"] == "ConfigMap"]
    boards = {name: text for each in made for name, text in each["data"].items()}
    assert boards == {f"llmtrain-{board.name}.json": grafana.text(board) for board in BOARDS}
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in made} == {"1"}
    assert {each["metadata"]["namespace"] for each in made} == {"ops"}
    elsewhere = {"namespace": "grafana", "labels": {"board": "yes"}, "annotations": {"grafana_folder": "Training"}}
    for each in (each for each in render({"dashboards": elsewhere}) if each["kind"] == "ConfigMap"):
        assert each["metadata"]["namespace"] == "grafana"
        assert each["metadata"]["labels"]["board"] == "yes"
        assert each["metadata"]["annotations"] == {"grafana_folder": "Training"}
    assert not [each for each in render({"dashboards": {"enabled": False}}) if each["kind"] == "ConfigMap"]


def test_variables_are_replaced_and_unknown_ones_are_not_left_over():
    expr = f"rate({job('step')}[$__rate_interval])"
    assert filled(expr, {"namespace": "a", "job": "b", "__rate_interval": "1m"}) == (
        'rate(llmtrain_job_step{namespace=~"a",job=~"b"}[1m])'
    )
    with pytest.raises(KeyError):
        filled("$nothing", {})
