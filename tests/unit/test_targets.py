"""Which pods are scraped, and that Prometheus' file follows them."""

import json
from pathlib import Path

from dashboards import targets


def pod(ip: str, phase: str = "Running", port: str = "metrics") -> dict:
    container = {"ports": [{"name": "other", "containerPort": 1}, {"name": port, "containerPort": 9402}]}
    return {"status": {"phase": phase, "podIP": ip}, "spec": {"containers": [container, {}]}}


def test_only_running_pods_with_a_port_for_metrics_are_scraped() -> None:
    """By address and number."""
    pods = [pod("10.0.0.2"), pod("10.0.0.1"), pod("10.0.0.3", "Pending"), pod("10.0.0.4", port="http")]
    starting = {"status": {"phase": "Running"}, "spec": {"containers": []}}
    assert targets.targets([*pods, starting]) == ["10.0.0.1:9402", "10.0.0.2:9402"]


def test_the_file_follows_the_pods(tmp_path, monkeypatch) -> None:
    """It is there before Prometheus is, and written anew when the pods have changed."""
    monkeypatch.setattr(targets, "_INTERVAL", 0.01)
    asked = []

    def pods():
        asked.append(None)
        return [pod("10.0.0.1")] if len(asked) < 3 else [pod("10.0.0.2")]

    with targets.followed(tmp_path, pods) as scrape:
        [file] = scrape["file_sd_configs"][0]["files"]
        assert json.loads(Path(file).read_text()) == [{"targets": ["10.0.0.1:9402"]}]
        while len(asked) < 5:
            pass
    assert json.loads(Path(file).read_text()) == [{"targets": ["10.0.0.2:9402"]}]
