"""`llmtrain simulate`: the autoscaler on traces, beside the best that hindsight finds and beside fixed sizes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import IO

import click
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from llmtrain_operator.autoscale.trace import Trace
from llmtrain_operator.autoscale.verdict import Verdict, judge
from llmtrain_operator.cli.status import PLAIN_WIDTH
from llmtrain_operator.progress import duration


@click.command()
@click.argument("traces", nargs=-1, type=click.File("r", encoding="utf-8"), metavar="[TRACE]...")
@click.option("--bundled", is_flag=True, help="The bundled traces, also if TRACEs are given.")
@click.option("--decisions", is_flag=True, help="Also every change of size, with its reason.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Machine-readable, with every change of size.")
def simulate(traces: Sequence[IO[str]], *, bundled: bool, decisions: bool, output: str | None) -> None:
    """Try the autoscaler on TRACEs: capacity, faults and step times over time (docs/autoscaling.md). Without any: on
    the bundled ones."""
    given = [read(each, each.name) for each in traces]
    if bundled or not given:
        given += bundled_traces()
    verdicts = [verdict for trace in given for verdict in judge(trace)]
    if output == "json":
        click.echo(json.dumps([each.as_record() for each in verdicts], indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)
    console.print(_table(verdicts))
    for line in _changes(verdicts) if decisions else ():
        click.echo(line)


def bundled_traces() -> list[Trace]:
    """Those that come with the package, by name."""
    folder = resources.files("llmtrain_operator.autoscale") / "traces"
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".yaml")), key=lambda each: each.name)
    return [read(each.read_text(encoding="utf-8"), each.name) for each in files]


def read(text: str | IO[str], name: str) -> Trace:
    """A trace in YAML or JSON. Raises `click.ClickException` that names the field."""
    try:
        return Trace.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'trace'}: {each['msg']}" for each in error.errors())
        raise click.ClickException(f"{name}: {said}") from error


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("TRACE", "JOB", "TIME", "ORACLE", "REGRET", "FIXED MIN", "FIXED MAX", "MEMBER HOURS", "PAUSES"):
        table.add_column(head, justify="left" if head in ("TRACE", "JOB") else "right")
    for each in verdicts:
        table.add_row(*_row(each))
    return table


def _row(each: Verdict) -> tuple[str, ...]:
    regret = "-" if each.regret is None else f"{each.regret:.1%}"
    hours = f"{each.member_seconds / 3600:.1f} of {each.largest_member_seconds / 3600:.1f}"
    share = each.course.paused / each.seconds if each.seconds else 0.0
    times = (each.smallest, each.largest)
    fixed = ("over twice" if time is None and each.seconds else _time(time) for time in times)
    job, own = each.course.job.name, _time(each.seconds)
    return (each.trace, job, own, _time(each.oracle), regret, *fixed, hours, f"{share:.1%}")


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)


def _changes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for each in verdicts:
        yield f"\n{each.trace}, {each.course.job.name}"
        for change in each.course.changes:
            yield f"  {duration(change.time):>8}  {change.decision.reason}: {change.decision.message}"
