"""The demo's plot: train, lose a member, train on without it, take it back, finish, and say what it cost."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from devcluster.demo.faults import Fault
from devcluster.demo.stage import NAMESPACE, Stage, Status

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "gpt-tiny.yaml"
STRIKE_STEP: Final = 110
"""Step at which the fault strikes: after a checkpoint or two, with most of the training to come."""
STEPS_WITHOUT: Final = 40
"""Steps that the others train before the member comes back."""
SAMPLE_TOKENS: Final = 100


@dataclass(frozen=True)
class Incident:
    """What the fault cost: seconds until the next step was reported, and steps that had to be done again."""

    seconds: float
    members: int
    repeated: int


def play(stage: Stage, fault: Fault) -> None:
    """Apply the example, let the fault strike, see it through to generated text."""
    with stage.part("Apply the job"):
        stage.run("create", "namespace", NAMESPACE)
        stage.show("apply", "-f", str(EXAMPLE.relative_to(ROOT)))
    with stage.part("Train"):
        before = stage.follow(lambda status: _step(status) >= STRIKE_STEP)
    with stage.part("Lose a member"):
        incident = _lose(stage, fault, before)
    with stage.part("Train on with who is left"):
        stage.follow(lambda status: _step(status) >= STRIKE_STEP + STEPS_WITHOUT)
    with stage.part("Take it back"):
        fault.undo()
        stage.follow(lambda status: _members(status) == _members(before) and status.get("state") == "Running")
    with stage.part("Train to the end"):
        stage.follow(lambda _: False)
    with stage.part("Generate text with the exported model"):
        stage.console.print(_sample(stage))
    _sum_up(stage, incident)


def _lose(stage: Stage, fault: Fault, before: Status) -> Incident:
    moment = fault.strike()

    def trains_again(status: Status) -> bool:
        number = int((status.get("round") or {}).get("number", 0))
        begun = status.get("checkpoint") or {}
        newer = number > int(before["round"]["number"]) and begun.get("restoredRound") == number
        return newer and _step(status) > int(begun.get("restoredStep", 0))

    after = stage.follow(trains_again)
    restored = (after.get("checkpoint") or {}).get("restoredStep", 0)
    return Incident(time.monotonic() - moment, _members(after), after.get("bestStep", 0) - restored)


def _step(status: Status) -> int:
    return int((status.get("progress") or {}).get("step", 0))


def _members(status: Status) -> int:
    return len((status.get("round") or {}).get("members", []))


def _sample(stage: Stage) -> str:
    words = ["python3", "-m", "llmtrain_trainer.sample", "/models/gpt-tiny", "--prompt", "def forward(self"]
    container = {
        "name": "sample",
        "image": stage.trainer_image,
        "command": [*words, "--tokens", str(SAMPLE_TOKENS)],
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "sample"},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume]},
    }
    stage.run("apply", "-f", "-", stdin=json.dumps(pod))
    stage.run("wait", "pod/sample", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    return stage.run("logs", "sample").rstrip()


def _sum_up(stage: Stage, incident: Incident) -> None:
    status = stage.status()
    events = stage.run("get", "events", "--field-selector=reason=RoundStarted", "-o", "name").split()
    first = re.search(r"step 1/\d+ loss ([\d.]+)", stage.run("logs", status["round"]["members"][0]["pod"]))
    progress, ledger = status["progress"], status["ledger"]
    table = Table(title="What happened", show_header=False, title_justify="left")
    table.add_row("steps", f"{progress['step']} in {len(events)} rounds, the last with {_members(status)} members")
    if first:
        table.add_row("loss at the start", first.group(1))
    table.add_row("loss at the end", f"{progress['loss']} (validation {progress.get('validationLoss', 'n/a')})")
    table.add_row("fault to next step", f"{incident.seconds:.1f} s, with {incident.members} members")
    table.add_row("steps done again", str(incident.repeated))
    table.add_row("goodput", f"{status['goodput']} of {sum(ledger.values()):.0f} s")
    for cause, seconds in sorted(ledger.items(), key=lambda item: -item[1]):
        table.add_row(f"  {cause}", f"{seconds:.1f} s")
    for title, seconds in stage.times.items():
        table.add_row(title.lower(), f"{seconds:.1f} s")
    table.add_row("all", f"{sum(stage.times.values()):.1f} s")
    stage.console.print(table)
