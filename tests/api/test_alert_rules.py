"""Alert rules under Prometheus' own `promtool`: each fires in its case and stays silent in what comes near to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from dashboards import alerts, shipped
from tests.support.chart import render

ROOT = Path(__file__).parents[2]
CASES = sorted((ROOT / "tests/support/alerts").glob("*.yaml"))


def promtool(*words: str, directory: Path) -> str:
    """What it says; an error with that if it is not content."""
    done = subprocess.run(["promtool", *words], cwd=directory, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("cases", CASES, ids=[path.stem for path in CASES])
def test_alerts_fire_when_they_should_and_not_before(cases: Path, tmp_path: Path) -> None:
    """On series that were written by hand, with the thresholds that the chart has by default."""
    (tmp_path / "rules.yaml").write_text((ROOT / shipped.PLAIN_RULES).read_text())
    (tmp_path / cases.name).write_text(cases.read_text())
    assert "SUCCESS" in promtool("test", "rules", cases.name, directory=tmp_path)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    checks = [
        (check["alertname"], bool(check.get("exp_alerts")))
        for path in CASES
        for case in yaml.safe_load(path.read_text())["tests"]
        for check in case["alert_rule_test"]
    ]
    names = {alert.name for alert in alerts.ALERTS}
    assert {name for name, fires in checks if fires} == names
    assert {name for name, fires in checks if not fires} == names


def test_the_rules_of_the_chart_are_rules(tmp_path: Path) -> None:
    """As rendered, with thresholds of other forms."""
    ours = {"goodputRatio": 1, "checkpointAgeSeconds": 31536000, "recoveryFor": "1h30m"}
    [made] = [each for each in render({"alerts": {"rules": "always", "thresholds": ours}}) if "Rule" in each["kind"]]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(made["spec"]))
    assert f"{len(alerts.ALERTS)} rules found" in promtool("check", "rules", "rules.yaml", directory=tmp_path)
