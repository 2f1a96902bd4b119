"""`llmtrain goodput`: the table, the timeline in letters, the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from rich.console import Console

from llmtrain_operator import goodput
from llmtrain_operator.api import SegmentStatus
from llmtrain_operator.cli import goodput_page, goodput_view
from llmtrain_operator.cli.report import report
from tests.support.specs import job

STATUS = {
    "observedGeneration": 1,
    "state": "Running",
    "startTime": "2026-01-01T00:00:00Z",
    "goodput": "88.0%",
    "restarts": 1,
    "ledger": {"starting": 5.0, "productive": 88.0, "detect": 3.0, "restart": 4.0, "ofTomorrow": 0.0},
    "acceleratorLedger": {"starting": 15.0, "productive": 264.0, "detect": 9.0, "restart": 12.0, "idle": 7.0},
    "timeline": [
        {"cause": "starting", "start": 0.0, "seconds": 5.0},
        {"cause": "productive", "start": 5.0, "seconds": 44.0},
        {"cause": "detect", "start": 49.0, "seconds": 3.0},
        {"cause": "restart", "start": 52.0, "seconds": 4.0},
        {"cause": "productive", "start": 56.0, "seconds": 44.0},
    ],
    "history": {"times": [6.0, 99.0], "steps": [1, 90], "losses": [5.5, 3.25], "stepSeconds": [1.0, 1.0]},
    "incidents": [
        {
            "number": 1,
            "time": "2026-01-01T00:00:49Z",
            "kind": "process",
            "reason": "Killed",
            "round": 1,
            "outcome": "Recovered",
            "badput": {"detect": 3.0, "restart": 4.0},
        }
    ],
}


def seen(**changes):
    raw = job("job", {})
    raw["metadata"] |= {"namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return report({**raw, "status": STATUS | changes})


def text(thing, width=80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(thing)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_table_and_the_timeline_need_no_colour() -> None:
    """Productive first, then what took most; fault and restart are where they were, in letters that are explained."""
    lines = text(goodput_view.view(seen(), 82), 82)
    assert lines[0] == "job  goodput 88.0% of 1m40s"
    causes = [line.split()[0] for line in lines[3:8]]
    assert causes == ["productive", "starting", "restart", "detect", "idle"]
    assert lines[3].split() == ["productive", "1m28s", "88.0%", "4m24s"]
    bar = lines[9].strip("|")
    assert (bar.index("!"), bar.index("R"), len(bar)) == (39, 42, 80)
    assert lines[10].split() == ["0s", "1m40s"]
    assert lines[11].split("  ") == ["# productive", "! detect", "R restart", "- starting"]
    assert lines[13] == "#1 2026-01-01T00:00:49Z Killed: 7.0 s lost: detect 3.0 s, restart 4.0 s"


def test_a_job_that_has_not_begun() -> None:
    """One line, and a page all the same."""
    young = seen(ledger={}, acceleratorLedger={}, timeline=[], incidents=[], history=None, goodput=None)
    assert text(goodput_view.view(young, 80)) == ["job: nothing is booked yet"]
    assert "goodput <b>unknown</b>" in goodput_page.page(young)


def test_every_cause_has_a_sign_and_a_colour_of_its_own() -> None:
    """Or the timeline could not be read."""
    assert tuple(goodput_view.LOOKS) == tuple(goodput_page.COLOURS) == goodput.CAUSES
    assert len({sign for sign, _ in goodput_view.LOOKS.values()}) == len(goodput.CAUSES)
    assert len(set(goodput_page.COLOURS.values())) == len(goodput.CAUSES)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        pytest.param([("productive", 4.0)], ["productive"] * 4, id="one"),
        pytest.param([("productive", 2.9), ("detect", 1.1)], ["productive"] * 3 + ["detect"], id="the-most-wins"),
        pytest.param([("productive", 3.99), ("detect", 0.01)], ["productive"] * 4, id="too-short-to-be-seen"),
    ],
)
def test_each_place_shows_what_took_most_of_it(segments, expected) -> None:
    """Whatever the segments' bounds are."""
    start, made = 0.0, []
    for cause, seconds in segments:
        made.append(SegmentStatus(cause=cause, start=start, seconds=seconds))
        start += seconds
    assert goodput_view.cells(made, 4) == expected


def test_the_facts_are_json() -> None:
    """With the share as a number."""
    told = json.loads(json.dumps(goodput_view.facts(seen())))
    assert (told["goodput"], told["seconds"]) == (0.88, 100.0)
    assert told["incidents"][0]["badput"] == {"detect": 3.0, "restart": 4.0}
    assert told["history"]["stepSeconds"] == [1.0, 1.0]


class Page(HTMLParser):
    """Tags, whether all are closed, and what it would fetch."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetches: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.fetches += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, _) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone() -> None:
    """No script, nothing to fetch; the timeline, both curves, the incident in each; names are no markup."""
    incidents = [STATUS["incidents"][0] | {"reason": "<script>alert(1)</script>"}]
    source = goodput_page.page(seen(incidents=incidents))
    found = Page(source)
    assert (found.open, found.fetches, "script" in found.tags, "@import" in source) == ([], [], False, False)
    assert (found.tags.count("svg"), found.tags.count("polyline"), found.tags.count("line")) == (3, 2, 3)
    assert found.tags.count("rect") == len(STATUS["timeline"])
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "&lt;script&gt;alert(1)" in source
