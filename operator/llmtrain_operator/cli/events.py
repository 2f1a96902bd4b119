"""`llmtrain events`: what happened to a job and its members, once or as it happens."""

from __future__ import annotations

import asyncio
import sys
import time

import click
from rich.console import Console

from llmtrain_operator.cli import view
from llmtrain_operator.cli.access import INTERVAL, Access, explain, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.report import Happening, in_order
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.cli.status import PLAIN_WIDTH, find
from llmtrain_operator.ports import Unavailable


@click.command()
@job_argument()
@click.option("-w", "--watch", is_flag=True, help="Stay and print new ones until the job ends.")
@job_options
def events(name: str, *, watch: bool, access: Access) -> None:
    """Show what happened to a job and to its members' pods, the newest last."""
    run(_events(access, access.resolved_namespace(), name, watch=watch))


async def _events(access: Access, namespace: str, name: str, *, watch: bool) -> None:
    async with access.open() as source:
        happenings, ended = await _look(source, namespace, name)
        console = Console(
            width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False
        )
        console.print(view.events_table(happenings, time.time()))
        told = set(happenings)
        while watch and not ended:
            sys.stdout.flush()
            await asyncio.sleep(INTERVAL)
            try:
                happenings, ended = await _look(source, namespace, name)
            except Unavailable as error:
                click.echo(explain(error), err=True)
                continue
            for each in happenings:
                if each not in told:
                    click.echo(view.event_line(each))
            told.update(happenings)


async def _look(source: JobSource, namespace: str, name: str) -> tuple[tuple[Happening, ...], bool]:
    """All events, and whether the job has ended, so that hardly more will come."""
    job = await find(source, namespace, name)
    pods = await source.pods(namespace, name)
    found = await asyncio.gather(
        source.events(namespace, job["metadata"]["uid"]),
        source.pod_events(namespace, {pod.uid for pod in pods}),
    )
    return in_order(event for part in found for event in part), bool(job.get("status", {}).get("completionTime"))
