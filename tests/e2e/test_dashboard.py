"""The live page in a real browser: what it shows, how it keeps up, and what it lets in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmtrain_operator.ports import Rejected, Unavailable
from tests.support.browser import Tab
from tests.support.stage import Stage, job, pod, shown

NOW = "2026-01-01T00:10:00Z"
ATTACK = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def progress(step: int, **more: Any) -> dict[str, Any]:
    """Rank 0's report."""
    return {"step": step, "maxSteps": 100, "loss": 4.0 - step / 50, "stepSeconds": 0.5, "phase": "training", **more}


def trained(step: int, **more: Any) -> dict[str, Any]:
    """A job of two members on two nodes, after an incident."""
    members = [
        {
            "index": i,
            "incarnation": 1,
            "pod": f"gpt-{i}-1",
            "uid": f"pod-{i}",
            "host": "h",
            "storePort": 1,
            "buddies": [1 - i],
        }
        for i in range(2)
    ]
    status = {
        "nodes": "2/2",
        "progress": progress(step, eta="3m12s"),
        "goodput": "90.0%",
        "ledger": {"productive": 90.0, "restart": 4.0, "detect": 6.0},
        "timeline": [
            {"cause": "productive", "start": 0.0, "seconds": 50.0},
            {"cause": "detect", "start": 50.0, "seconds": 6.0},
            {"cause": "restart", "start": 56.0, "seconds": 4.0},
            {"cause": "productive", "start": 60.0, "seconds": 40.0},
        ],
        "history": {
            "times": [10.0, 20.0, 30.0],
            "steps": [10, 20, 30],
            "losses": [3.8, 3.6, 3.4],
            "stepSeconds": [0.6, 0.5, 0.5],
        },
        "round": {"number": 2, "procsPerMember": 1, "members": members, "startedAt": NOW},
        "incidents": [incident(1)],
        **more,
    }
    return job(**status)


def incident(number: int, **more: Any) -> dict[str, Any]:
    """A worker that was killed."""
    return {
        "number": number,
        "time": "2026-01-01T00:00:50Z",
        "kind": "process",
        "reason": "WorkerKilled",
        "message": "signal 9",
        "member": 1,
        "round": 1,
        "committedStep": 20,
        "detectSeconds": 0.2,
        "roundSeconds": 0.4,
        "trainSeconds": 1.5,
        "lostSteps": 0,
        "outcome": "Recovered",
        "badput": {"detect": 0.2, "restart": 1.3},
        **more,
    }


@pytest.fixture
def stage() -> Stage:
    """Jobs to show."""
    return Stage()


@pytest.fixture
def url(stage: Stage) -> Iterator[str]:
    """A dashboard of them."""
    with shown(stage) as address:
        yield address


def elements(tab: Tab) -> int:
    """Nodes of the document."""
    count: int = tab.page.evaluate("document.getElementsByTagName('*').length")
    return count


def test_the_list_follows_the_jobs_without_a_reload(stage: Stage, url: str, open_tab: Callable[..., Tab]) -> None:
    """Jobs appear, go on and vanish; bad news is marked; the filter stays while news comes in."""
    tab = open_tab(url)
    tab.shows("There are no jobs here yet")
    tab.page.evaluate("window.stays = true")
    bad = {
        "type": "Durable",
        "status": "False",
        "reason": "NoStorage",
        "message": "set storage",
        "lastTransitionTime": NOW,
    }
    stage.put(trained(40))
    stage.put(job("other", state="Pending", conditions=[bad]))
    tab.shows("40/100", "90.0%", "3m12s", "2/2", "NoStorage", "2 jobs, 1 running", "live")
    tab.page.get_by_label("Filter jobs").fill("gpt run")
    tab.counts("tbody tr", 1)
    stage.put(trained(60))
    tab.shows("60/100")
    assert tab.page.get_by_label("Filter jobs").input_value() == "gpt run"
    tab.page.get_by_label("Filter jobs").fill("")
    stage.remove("gpt")
    tab.lacks("gpt")
    tab.counts("tbody tr", 1)
    assert tab.page.evaluate("window.stays")


def test_a_job_s_page_tells_everything(stage: Stage, url: str, open_tab: Callable[..., Tab]) -> None:
    """Curves from the operator's record and from what was seen since, time by cause, members, incidents, failure."""
    failure = {
        "reason": "WorkerKilled",
        "message": "signal 9",
        "traceback": "Traceback\n  boom",
        "member": 1,
        "step": 20,
    }
    stage.put(trained(40, lastFailure=failure), pod(0, "node-a"), pod(1, "node-b"))
    tab = open_tab(url)
    tab.page.get_by_role("link", name="gpt").click()
    tab.shows("step 40/100 (40%)", "Goodput 90.0%", "node-a", "node-b", "gpt-1-1", "Newest failure: WorkerKilled")
    assert tab.page.locator("section[aria-label=Goodput] rect.cause").count() == 4 + 3  # the timeline and its legend
    assert tab.page.locator("section[aria-label=Incidents] rect.cause").count() == 3  # noticed, next round, next step
    assert tab.page.locator(".flag").count() == 1
    assert "3.8 at step 10, 3.2 at step 40" in (tab.page.locator("svg.chart").first.get_attribute("aria-label") or "")
    tab.page.get_by_text("Traceback", exact=True).click()
    tab.shows("boom")
    stage.put(
        trained(70, lastFailure=failure, incidents=[incident(1), incident(2, reason="PodLost", outcome="")]),
        pod(1, "node-b"),
    )
    tab.shows("step 70/100 (70%)", "PodLost")
    tab.lacks("node-a")
    tab.shows("boom")  # what was opened stays open
    tab.page.locator("svg.chart").first.focus()
    tab.page.keyboard.press("Home")
    tab.shows("step 10: 3.8")
    tab.page.keyboard.press("ArrowRight")
    tab.shows("step 20: 3.6")
    tab.page.get_by_role("link", name="All jobs").click()
    tab.shows("1 job, 1 running")


def test_text_of_others_is_never_markup(stage: Stage, url: str, open_tab: Callable[..., Tab]) -> None:
    """Names, messages, nodes, tracebacks: everything that a job or a node can say."""
    bad = {"type": "Valid", "status": "False", "reason": ATTACK, "message": ATTACK, "lastTransitionTime": NOW}
    failure = {"reason": ATTACK, "message": ATTACK, "traceback": ATTACK, "member": 0}
    evil = trained(
        40,
        conditions=[bad],
        lastFailure=failure,
        incidents=[incident(1, reason=ATTACK, message=ATTACK)],
        ledger={ATTACK: 1.0, '"><b>': 1.0},
        timeline=[{"cause": ATTACK, "start": 0, "seconds": 1}],
        nodes=ATTACK,
        goodput=ATTACK,
        progress=progress(40, eta=ATTACK),
    )
    evil["metadata"]["name"] = ATTACK
    stage.put(evil, pod(0, ATTACK, name=ATTACK, phase="Pending", scheduled=False, unschedulable_message=ATTACK))
    tab = open_tab(url)
    tab.shows(ATTACK)
    tab.page.get_by_role("link", name=ATTACK).click()
    tab.shows("step 40/100", f"Newest failure: {ATTACK}")
    assert tab.page.evaluate("document.querySelectorAll('main img, main script, main b b').length") == 0


def test_what_is_wrong_is_said_with_the_remedy(stage: Stage, url: str, open_tab: Callable[..., Tab]) -> None:
    """The last look stays in view meanwhile; it ends by itself."""
    stage.put(trained(40))
    tab = open_tab(url)
    tab.shows("40/100")
    stage.error = Unavailable("list /apis: Cannot connect")
    tab.shows(
        "No answer from the cluster", "$KUBECONFIG (or --kubeconfig, --context) right?", "40/100", "not up to date"
    )
    stage.error = Rejected('llmtrainjobs is forbidden: User "x" cannot list (HTTP 403)')
    tab.shows("No right to see this", "the roles view, edit and admin")
    stage.error = Rejected("the server could not find the requested resource (HTTP 404)")
    tab.shows("No LLMTrainJobs in this cluster", "install the operator's chart")
    stage.error = None
    stage.put(trained(60))
    tab.shows("60/100", "live")
    tab.counts(".problem", 0)


def test_an_open_page_goes_on_after_the_command_was_started_again(stage: Stage, open_tab: Callable[..., Tab]) -> None:
    """At the same port; meanwhile it says what to do."""
    stage.put(trained(40))
    with shown(stage) as url:
        tab = open_tab(url)
        tab.shows("40/100")
        tab.page.evaluate("window.stays = true")
    tab.shows("No connection", "Is it still running?", "40/100")
    stage.remove("gpt")
    stage.put(job("next", progress=progress(5)))
    with shown(stage, int(url.split(":")[2].split("/")[0])):
        tab.shows("5/100", "live")
        tab.lacks("gpt")
        assert tab.page.evaluate("window.stays")


def test_the_page_is_bounded(stage: Stage, url: str, open_tab: Callable[..., Tab]) -> None:
    """Hundreds of jobs and a long watch leave the document as large as it was."""
    for number in range(300):
        stage.put(job(f"many-{number:03}"))
    tab = open_tab(url)
    tab.shows("300 jobs, 300 running, 200 of them shown")
    assert tab.page.locator("tbody tr").count() == 200
    stage.put(trained(1), pod(0, "node-a"))
    tab.page.goto(f"{url}#/ns/gpt")
    tab.shows("node-a")
    size = elements(tab)
    for step in (2, 3, 4):
        stage.put(trained(30 + step), pod(0, "node-a"))
        tab.shows(f"step {30 + step}/100")
    assert elements(tab) <= size + 20


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(246, 247, 249)"), ("dark", "rgb(18, 22, 29)")])
def test_light_and_dark_are_the_browser_s_choice(
    stage: Stage, url: str, open_tab: Callable[..., Tab], scheme: str, ground: str
) -> None:
    """And a narrow screen is wide enough for everything but tables, which scroll in themselves."""
    stage.put(trained(40), pod(0, "node-a"))
    tab = open_tab(f"{url}#/ns/gpt", color_scheme=scheme, viewport={"width": 380, "height": 800})
    tab.shows("node-a")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
