"""`llmtrain incidents`: what broke, how long training stood still for it, and what it cost."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from llmtrain_operator.cli import view
from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.report import JobReport
from llmtrain_operator.cli.status import PLAIN_WIDTH, find, readable


@click.command()
@job_argument()
@job_options
def incidents(name: str, *, access: Access) -> None:
    """Show a job's last incidents: fault, detection, next round, next step, and the steps that were lost."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)
    console.print(view.incidents_table(run(_look(access, access.resolved_namespace(), name))))


async def _look(access: Access, namespace: str, name: str) -> JobReport:
    async with access.open() as source:
        return readable(await find(source, namespace, name))
