"""The live page of a real run on this machine, while its workers are killed.

With LLMTRAIN_PICTURE=FILE the run trains for longer, and the page is drawn into FILE: `make picture`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.browser import Tab
from tests.support.local import CODE, FOREVER, Local, spec

PICTURE: Final = os.environ.get("LLMTRAIN_PICTURE")
PATIENCE: Final = 240


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Local]:
    """A job of two members, that goes on for ever."""
    local = Local(tmp_path, spec(FOREVER), 2)
    yield local
    local.kill()


@pytest.fixture
def address(run: Local) -> Iterator[str]:
    """What `llmtrain dashboard --local j` prints; Ctrl-C ends it."""
    command = [sys.executable, "-c", CODE, "dashboard", "--local", "--no-browser", "j"]
    with subprocess.Popen(command, env=run._environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+", process.stdout.readline())
            assert found
            yield found.group()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


def test_an_incident_shows_while_it_happens(run: Local, address: str, open_tab: Callable[..., Tab]) -> None:
    """A worker is killed: the page tells the incident and its end, the curve goes on, nobody has reloaded anything."""
    tab = open_tab(address, color_scheme="light")
    run.until_training()
    tab.shows("nats per token", "j-0-1", "None: no round was lost.")
    tab.page.evaluate("window.stays = true")
    for number in range(2 if PICTURE else 1):
        train(run, tab, 40 if PICTURE else 3)
        os.kill(run.processes("llmtrain_trainer.train")[0], signal.SIGKILL)
        run.until(lambda number=number: recovered(run) > number, "the recovery")
    train(run, tab, 20 if PICTURE else 2)
    tab.counts("section[aria-label=Incidents] tbody tr", len(run.status["incidents"]))
    assert tab.page.evaluate("window.stays")
    if PICTURE:
        tab.page.screenshot(path=PICTURE, clip={"x": 0, "y": 0, "width": 1280, "height": 1200}, full_page=True)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PATIENCE) == 130
    tab.shows("Suspended")


def recovered(run: Local) -> int:
    """Incidents that are over."""
    return sum(bool(each.get("outcome")) for each in run.status.get("incidents", ()))


def train(run: Local, tab: Tab, seconds: float) -> None:
    """Let it train for so long, and see that the page goes with it."""
    then = time.monotonic()
    while True:
        step = run.status["progress"]["step"]
        run.until(lambda step=step: (run.status.get("progress") or {}).get("step", 0) > step, "steps")
        tab.page.get_by_text(re.compile(r"step [\d,]+/100,000")).first.wait_for()
        if time.monotonic() - then > seconds:
            return
