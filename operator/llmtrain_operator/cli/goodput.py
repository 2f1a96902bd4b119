"""`llmtrain goodput`: what a job's time went to, as a table, a timeline in the terminal, or a page to keep."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from llmtrain_operator.cli import goodput_page, goodput_view
from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.report import JobReport
from llmtrain_operator.cli.status import PLAIN_WIDTH, find, readable


@click.command()
@job_argument()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of its own to this file."
)
@job_options
def goodput(name: str, *, output: str, page: Path | None, access: Access) -> None:
    """Show how much of a job's time was training, and what the rest went to."""
    seen = run(_look(access, access.resolved_namespace(), name))
    if page:
        try:
            page.write_text(goodput_page.page(seen), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"--html {page}: {error.strerror}; choose a file that you may write") from error
        click.echo(f"written to {page}", err=output == "json")
    if output == "json":
        click.echo(json.dumps(goodput_view.facts(seen), indent=2))
    elif not page:
        plain = None if sys.stdout.isatty() else PLAIN_WIDTH
        console = Console(width=plain, markup=False, highlight=False, emoji=False)
        console.print(goodput_view.view(seen, min(console.width, 120)))


async def _look(access: Access, namespace: str, name: str) -> JobReport:
    async with access.open() as source:
        return readable(await find(source, namespace, name))
