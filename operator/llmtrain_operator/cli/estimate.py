"""`llmtrain estimate`: what a job will take, before anything is started. Needs no cluster."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from typing import IO, Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmtrain_operator.api.problem import Problem
from llmtrain_operator.api.validation import parse
from llmtrain_operator.cli.offline import jobs_in, problems_of
from llmtrain_operator.cli.status import PLAIN_WIDTH
from llmtrain_operator.estimate.layout import Wanted
from llmtrain_operator.estimate.report import Estimate, Question, estimate

_POWERS: Final = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


class _Large(click.ParamType[float]):
    """A number such as 150e9, 150B or 1.4T."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Fails with what may be written."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)([KMGBT]?)", str(value), re.IGNORECASE)
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no number such as 150e9, 150B or 1.4T", param, ctx)
        return float(found[1]) * _POWERS[found[2].upper()]


_ONE = click.IntRange(min=1)


@click.command("estimate")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--accelerator", metavar="NAME", help="Such as H100 or A100-80GB; default: the node selector's, if any.")
@click.option("--nodes", type=_ONE, help="Members; default: nodes.desired, or nodes.max.")
@click.option("--stage", type=click.IntRange(0, 3), help="What if: another ZeRO stage.")
@click.option("--tensor-parallel", "tensor", type=_ONE, default=1, help="What if: accelerators that share each layer.")
@click.option("--pipeline-parallel", "pipeline", type=_ONE, default=1, help="What if: stages that share the layers.")
@click.option("--recompute", type=click.Choice(["none", "selective", "full"]), help="What if: other recomputation.")
@click.option("--offload", type=click.Choice(["none", "optimizer", "parameters"]), help="What if: to host memory.")
@click.option(
    "--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of the peak that model FLOPs reach, such as 0.45."
)
@click.option(
    "--tflops",
    "tera_flops",
    type=click.FloatRange(0, min_open=True),
    help="In place of --mfu: TFLOP/s that each accelerator achieves, recomputation included.",
)
@click.option("--price", type=click.FloatRange(0), help="Of an accelerator per hour, in any currency.")
@click.option("--tokens", type=_Large(), help="To train on, such as 150e9 or 1.4T; default: by training.maxSteps.")
@click.option("--vocabulary", type=_ONE, help="Tokens of the tokenizer, where the spec does not tell.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def estimate_command(file: IO[str], *, output: str, **options: Any) -> None:
    """Estimate what the jobs in FILE (- for standard input) take: parameters, FLOPs, memory, time, checkpoints.

    Tensor and pipeline parallelism are what-if questions: the operator's own trainer does data parallelism only. Exit
    code 1 if there is no estimate, or the job does not fit the accelerator.
    """
    if options["mfu"] is not None and options["tera_flops"] is not None:
        raise click.UsageError("give either --mfu or --tflops")
    asked = _question(options)
    found = {job["metadata"]["name"]: _estimated(job, asked) for job in jobs_in(file)}
    if output == "json":
        click.echo(json.dumps({name: as_json(each) for name, each in found.items()}, indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
        for name, each in found.items():
            console.print(page(name, each))
    if any(each.fits is False for each in found.values()):
        sys.exit(1)


def _question(options: Mapping[str, Any]) -> Question:
    wanted = {field.name for field in dataclasses.fields(Wanted)}
    what_if = {name: value for name, value in options.items() if name in wanted}
    return Question(Wanted(**what_if), **{name: value for name, value in options.items() if name not in wanted})


def _estimated(job: dict[str, Any], asked: Question) -> Estimate:
    name, problems = job["metadata"]["name"], tuple(problems_of(job))
    spec = None if problems else parse(name, job.get("spec") or {})[0]
    found = estimate(spec, asked) if spec else problems
    if isinstance(found, Estimate):
        return found
    raise click.ClickException("\n".join(f"{name}: {_sentence(problem)}" for problem in found))


def _sentence(problem: Problem) -> str:
    return f"{problem.path}: {problem.message} (is {problem.value!r}). {problem.remedy}"


def as_json(found: Estimate) -> dict[str, Any]:
    """Values in base units with their reasons, by section and name."""
    sections = {
        title: {fact.name: {"value": fact.value, "unit": fact.unit, "reason": fact.reason} for fact in facts}
        for title, facts in found.sections.items()
    }
    return {**sections, "warnings": list(found.warnings), "fits": found.fits}


def page(name: str, found: Estimate) -> Table:
    """One line for each fact, with what it rests on."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), title=name, title_justify="left")
    for _ in range(4):
        table.add_column()
    for title, facts in found.sections.items():
        for number, fact in enumerate(facts):
            style = "bold red" if fact.value is False else ""
            table.add_row(
                "" if number else Text(title, "bold"), fact.name, Text(fact.shown, style), Text(fact.reason, "dim")
            )
    for text in found.warnings:
        table.add_row(Text("warning", "bold yellow"), "", "", Text(text, "yellow"))
    return table
