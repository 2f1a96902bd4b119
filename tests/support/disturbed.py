"""Jobs on this machine that are struck by `llmtrain chaos` while they train, held against one that was left alone.

The loss of each step is read, to the last bit, from the heads of the snapshots in the members' memory, where it lies
for the next two steps or so; what is missed is not compared. The model at the end is compared as a whole: it is the sum
of all steps, also of those that nobody saw.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from safetensors.torch import load_file

from llmtrain_operator.local.folder import RunFolder
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.flash import header, slot
from tests.support.local import Local, spec

MEMBERS: Final = 3
PATIENCE: Final = 900.0
"""Seconds for anything: the machine may be busy."""
TOLERANCE: Final = 1e-5
"""Of a loss, relative, where the number of workers changed."""
_INTERVAL: Final = 0.01
_TURNS: Final = 20
"""Looks at snapshots for one at the status, which is written once a second."""
_SEED: Final = 20261130


def chaos_spec(steps: int, *, elastic: bool) -> dict[str, Any]:
    """A tiny model whose whole state is safe after each step, in memory alone. `elastic`: two may go on without the
    third; else the job waits for it, so that the number of workers is always the same."""
    training = {"maxSteps": steps, "globalBatchSize": 6, "precision": "fp32", "optimizer": {"lr": 1e-4}}
    return spec(
        steps,
        nodes={"min": MEMBERS - 1, "max": MEMBERS} if elastic else {"min": MEMBERS},
        training=training | {"seed": _SEED},
        checkpoint={"flash": {"everySteps": 1, "replicas": 1}},
        recovery={"maxRestarts": 10_000},
        output="pvc://models/j",
    )


@dataclass(frozen=True)
class Result:
    """How a job ended. `losses`: what was seen of each step, which may be done twice; `report`: the campaign's;
    `wrongs`: what should not be."""

    losses: dict[int, set[float]]
    facts: dict[str, Any]
    model: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """The names of those that were done."""
        return [each["fault"] for trial in self.report.get("trials", ()) for each in trial["faults"]]


class Watch:
    """Looks at a run's snapshots and status until the end of the context."""

    def __init__(self, run: Local, folder: RunFolder) -> None:
        self._run, self._folder = run, folder
        self._seen: set[bytes] = set()
        self._end = threading.Event()
        self.losses: dict[int, set[float]] = {}
        self.wrongs: list[str] = []
        self._safe: dict[int, int] = {}  # by round, the newest step that was told to be committed
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        for turn in itertools.count():
            if self._end.wait(_INTERVAL):
                return
            with contextlib.suppress(FileNotFoundError):  # a pod has just ended
                for path in self._folder.memories.glob(f"*/own-*{slot.HEAD}"):
                    with contextlib.suppress(FileNotFoundError, Damaged):
                        self._read(path)
            if turn % _TURNS == 0:
                self._hear(self._run.status)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        mark = data.partition(b"\n")[0]
        if mark in self._seen:
            return
        self._seen.add(mark)
        head = header.decode(data, path.name)
        step, loss = head.edition.step, head.training["loss"]
        self.losses.setdefault(step, set()).add(loss)

    def _hear(self, status: dict[str, Any]) -> None:
        """No round may begin before what was safe when it began; by other words than those of the incidents."""
        flash, saved = status.get("flash") or {}, status.get("checkpoint") or {}
        if flash.get("committedStep") is not None and flash.get("round") is not None:
            self._safe[flash["round"]] = max(flash["committedStep"], self._safe.get(flash["round"], 0))
        begun, at = saved.get("restoredRound"), saved.get("restoredStep")
        if begun is not None and begun > 1:
            safe = max((step for number, step in self._safe.items() if number < begun), default=0)
            if (at or 0) < safe:
                wrong = f"round {begun} began at step {at}, and step {safe} had been safe"
                self.wrongs += [wrong] if wrong not in self.wrongs else []


def undisturbed(folder: Path, steps: int) -> Result:
    """What comes of the job if nothing happens to it."""
    with _running(folder, steps, elastic=False) as (run, watch):
        run.ends_with(0, PATIENCE)
    return _result(folder, watch)


def disturbed(folder: Path, steps: int, seed: int, faults: int, *, elastic: bool) -> Result:
    """What comes of it under so many faults at most, drawn from `seed`; fewer if it ends before."""
    options = ("--seed", str(seed), "--faults", str(faults), "--pause", "2", "--patience", str(PATIENCE), "-o", "json")
    with _running(folder, steps, elastic=elastic) as (run, watch):
        run.until(lambda: run.status, "the job")
        told = run.ask("chaos", "j", *options, patience=PATIENCE * faults)
        assert told.stdout, told.stderr
        report = json.loads(told.stdout)
        run.ends_with(0, PATIENCE)
    return _result(folder, watch, report)


def differences(alone: Result, struck: Result, *, elastic: bool) -> list[str]:
    """Where a job's losses and model are not those of the one that was left alone: to the last bit where the number of
    workers never changed."""
    same = _is_close if elastic else float.__eq__
    both = alone.losses.keys() & struck.losses.keys()
    found = [
        f"step {step}: loss {loss!r}, undisturbed {undisturbed_loss!r}"
        for step in sorted(both)
        for undisturbed_loss in alone.losses[step]
        for loss in struck.losses[step]
        if not same(loss, undisturbed_loss)
    ][:3]
    if alone.losses and not both:
        found.append("no step was seen of both")
    for what in ("loss", "validationLoss"):
        if not same(struck.facts[what], alone.facts[what]):
            found.append(f"at the end: {what} {struck.facts[what]!r}, undisturbed {alone.facts[what]!r}")
    if not elastic:
        names = [name for name, tensor in alone.model.items() if not tensor.equal(struck.model[name])]
        found += [f"{', '.join(names)} of the model are not bit-identical"] if names else []
    return found


@contextlib.contextmanager
def _running(folder: Path, steps: int, *, elastic: bool) -> Iterator[tuple[Local, Watch]]:
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        run = Local(folder, chaos_spec(steps, elastic=elastic), MEMBERS, TMPDIR=scratch, OMP_NUM_THREADS="1")
        try:
            with Watch(run, RunFolder(folder / "local" / "jobs" / "j")) as watch:
                yield run, watch
            # Torch's own cache of compiled code is meant to stay.
            left = [path.name for path in Path(scratch).iterdir() if not path.name.startswith("torchinductor")]
            watch.wrongs += [f"left behind: {', '.join(left)}"] if left else []
        finally:
            run.kill()


def _result(folder: Path, watch: Watch, report: dict[str, Any] | None = None) -> Result:
    model = folder / "local" / "volumes" / "models" / "j"
    report = report or {}
    wrongs = [wrong for trial in report.get("trials", ()) for wrong in trial["wrongs"]]
    if (memories := RunFolder(folder / "local" / "jobs" / "j").memories).exists():
        wrongs.append(f"left behind: {memories}")
    return Result(
        watch.losses,
        json.loads((model / "llmtrain.json").read_text()),
        load_file(model / "model.safetensors"),
        report,
        [*wrongs, *watch.wrongs],
    )


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE)
