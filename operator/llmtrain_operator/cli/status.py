"""`llmtrain status`: how jobs are doing, once or live."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.live import Live

from llmtrain_operator.cli import view
from llmtrain_operator.cli.access import INTERVAL, Access, explain, is_local, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.report import Happening, JobReport, report
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.ports import Rejected, Unavailable

PLAIN_WIDTH: Final = 200


@click.command()
@job_argument(required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of all namespaces.")
@click.option(
    "-w", "--watch", is_flag=True, help="Stay and follow; with NAME until that job ends (exit code 1 if it failed)."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@job_options
def status(name: str | None, *, all_namespaces: bool, watch: bool, output: str, access: Access) -> None:
    """Show how training is going: all jobs, or everything about one."""
    if name and all_namespaces:
        raise click.UsageError("give either NAME or --all-namespaces")
    if access.local and all_namespaces:
        raise click.UsageError("--local knows no namespaces")
    run(_status(Look(access, name, all_namespaces), watch=watch, as_json=output == "json"))


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What is looked at."""

    access: Access
    name: str | None
    everywhere: bool

    async def take(self, cluster: JobSource) -> tuple[list[JobReport], Any]:
        """The reports, and what `-o json` prints."""
        if not self.name:
            namespace = "" if self.everywhere else self.access.resolved_namespace()
            jobs = await cluster.jobs(namespace)
            return [readable(each) for each in jobs], {"jobs": [_bare(each) for each in jobs]}
        namespace = self.access.resolved_namespace()
        job = await find(cluster, namespace, self.name)
        pods, events = await asyncio.gather(
            cluster.pods(namespace, self.name), cluster.events(namespace, job["metadata"]["uid"])
        )
        seen = readable(job, pods, events)
        members = [dataclasses.asdict(pod) for pod in pods]
        return [seen], {"job": _bare(job), "pods": members, "events": [dataclasses.asdict(e) for e in seen.events]}


async def find(cluster: JobSource, namespace: str, name: str) -> dict[str, Any]:
    """The job, or an error that helps to find it."""
    try:
        return await cluster.job(namespace, name)
    except Rejected as error:
        if f'"{name}" not found' not in str(error):
            raise
        words = f"there is no job {name} in namespace {namespace}; `llmtrain status -A` lists all"
        words += "; a run of that name on this machine is shown with --local" if is_local(name) else ""
        raise click.ClickException(words) from error


def readable(*about: Any) -> JobReport:
    """`report`, its complaint as an error of the command."""
    try:
        return report(*about)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _bare(job: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in job["metadata"].items() if key != "managedFields"}
    return {**job, "metadata": metadata}


async def _status(look: Look, *, watch: bool, as_json: bool) -> None:
    # Names and messages are shown as they are: brackets in them are no markup.
    plain = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=plain, markup=False, highlight=False, emoji=False)
    async with look.access.open() as cluster:
        if watch:
            await _watch(look, cluster, console, as_json=as_json)
            return
        reports, raw = await look.take(cluster)
        if as_json:
            click.echo(json.dumps(raw, indent=2))
        else:
            console.print(_text(look, reports, bar=console.is_terminal))


def _text(look: Look, reports: Sequence[JobReport], *, bar: bool) -> RenderableType:
    if look.name:
        return view.page(reports[0], time.time(), bar=bar)
    return view.jobs_table(reports, time.time(), namespaces=look.everywhere)


async def _watch(look: Look, cluster: JobSource, console: Console, *, as_json: bool) -> None:
    """Follow until the named job has ended, or for ever. A cluster that is away for a while does not end it."""
    live = console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False, transient=False) if live else Lines(as_json=as_json) as display:
        while True:
            try:
                reports, raw = await look.take(cluster)
            except Unavailable as error:
                click.echo(explain(error), err=True)
                await asyncio.sleep(INTERVAL)
                continue
            if isinstance(display, Live):
                display.update(_text(look, reports, bar=True), refresh=True)
            else:
                display.show(reports, raw)
            if look.name and reports[0].ended:
                break
            await asyncio.sleep(INTERVAL)
    if reports[0].state == "Failed":
        sys.exit(1)


class Lines:
    """The display where no terminal is: a line whenever something changed, and each event once."""

    def __init__(self, *, as_json: bool = False, told: Sequence[Happening] = ()) -> None:
        self._as_json = as_json
        self._lines: dict[tuple[str, str], str] = {}
        self._told = set(told)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, reports: Sequence[JobReport], raw: Any) -> None:
        """Print what is new."""
        changed = [each for each in reports if self._lines.get((each.namespace, each.name)) != view.line(each)]
        for each in reports:
            for event in each.events:
                if event not in self._told and not self._as_json:
                    click.echo(view.event_line(event))
                self._told.add(event)
        for each in changed:
            self._lines[each.namespace, each.name] = view.line(each)
            if not self._as_json:
                click.echo(f"{each.name}  {view.line(each)}")
        if self._as_json and changed:
            click.echo(json.dumps(raw))
        sys.stdout.flush()
