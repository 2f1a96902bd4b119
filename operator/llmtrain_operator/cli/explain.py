"""`llmtrain explain`: what the operator would do next and why, from the operator's own planner."""

from __future__ import annotations

import time
from typing import Any

import click

from llmtrain_operator.cli import foresight, view
from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.status import find, readable
from llmtrain_operator.state import PodView


@click.command()
@job_argument()
@click.option("--lose", type=click.IntRange(min=0), metavar="INDEX", help="Also: what if this member's pod were lost.")
@job_options
def explain(name: str, *, lose: int | None, access: Access) -> None:
    """Show what the operator would do about a job next, and why. Changes nothing."""
    job, pods = run(_look(access, access.resolved_namespace(), name))
    for line in explanation(job, pods, lose, time.time()):
        click.echo(line)


async def _look(access: Access, namespace: str, name: str) -> tuple[dict[str, Any], list[PodView]]:
    async with access.open() as source:
        return await find(source, namespace, name), await source.pods(namespace, name)


def explanation(job: dict[str, Any], pods: list[PodView], lose: int | None, now: float) -> list[str]:
    """The lines to print. `lose`: index of the member that is imagined away. `now`: seconds since 1970."""
    seen = readable(job)
    present = foresight.scene(job, pods, now)
    lines = [f"{seen.name} is {view.line(seen)}", *_indented(foresight.standing(present.status))]
    planned = foresight.in_words(present.status, foresight.next_plan(present))
    lines += ["", "Next the operator would", *_indented(planned or ["do nothing until something changes"])]
    if lose is not None:
        lines += ["", *_loss(present, lose)]
    return [*lines, "", foresight.CAVEAT]


def _loss(present: foresight.Scene, index: int) -> list[str]:
    current = present.status.round
    if current is None or all(member.index != index for member in current.members):
        members = ", ".join(str(member.index) for member in current.members) if current else "none"
        raise click.ClickException(f"member {index} is not in the current round; its members: {members}")
    lines, before = [f"If the pod of member {index} were lost now, the operator would"], present.status
    for number, decided in enumerate(foresight.after_loss(present, index)):
        lines += ["  and when those who are left have joined again"] if number else []
        lines += _indented(foresight.in_words(before, decided) or ["do nothing until something changes"])
        before = decided.status
    return lines


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
