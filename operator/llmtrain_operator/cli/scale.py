"""`llmtrain scale`: how many members a job should have."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from llmtrain_operator.cli.access import INTERVAL, Access, explain, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.report import JobReport
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.cli.status import Lines, find, readable
from llmtrain_operator.ports import Unavailable


@click.command()
@job_argument()
@click.argument("members", type=click.IntRange(min=1))
@click.option("--wait", is_flag=True, help="Stay until so many train, and print what happens (exit code 1 if it ends).")
@job_options
def scale(name: str, members: int, *, wait: bool, access: Access) -> None:
    """Have a job train with so many MEMBERS, between its nodes.min and nodes.max."""
    run(_scale(access, access.resolved_namespace(), name, members, wait=wait))


async def _scale(access: Access, namespace: str, name: str, members: int, *, wait: bool) -> None:
    async with access.open() as source:
        job = await find(source, namespace, name)
        if refusal := why_not_scale(job, members):
            raise click.ClickException(refusal)
        before = await _look(source, namespace, name)
        if wait and (obstacle := why_in_vain(before)):
            raise click.ClickException(obstacle)
        await source.scale(namespace, name, members)
        click.echo(f"{name} is to have {members} members")
        if wait:
            await _follow(source, before, members)


async def _follow(source: JobSource, before: JobReport, members: int) -> None:
    lines = Lines(told=before.events)
    seen = before
    while not reached(seen, members):
        if seen.ended:
            raise click.ClickException(f"{seen.name} ended before it had {members} members: it is {seen.state}")
        if obstacle := why_in_vain(seen):
            raise click.ClickException(obstacle)
        await asyncio.sleep(INTERVAL)
        try:
            seen = await _look(source, before.namespace, before.name)
        except Unavailable as error:
            click.echo(explain(error), err=True)
            continue
        lines.show([seen], None)


async def _look(source: JobSource, namespace: str, name: str) -> JobReport:
    job = await find(source, namespace, name)
    return readable(job, (), await source.events(namespace, job["metadata"]["uid"]))


def reached(seen: JobReport, members: int) -> bool:
    """Whether so many train, and no other number is wanted."""
    status = seen.status
    in_round = len(status.round.members) if status.round else 0
    return seen.state == "Running" and in_round == members == status.target_nodes


def why_in_vain(seen: JobReport) -> str | None:
    """Why the job will not come to train with any number of members; None if it may."""
    if seen.suspended:
        return f"{seen.name} is suspended, so nobody trains: `llmtrain resume {seen.name}` first, or leave out --wait"
    if seen.state == "Invalid":
        return f"{seen.name} is invalid, so nobody trains: `llmtrain status {seen.name}` says what to change"
    return None


def why_not_scale(job: dict[str, Any], members: int) -> str | None:
    """Why this cannot be asked of the job; None if it can."""
    seen = readable(job)
    nodes = job["spec"].get("nodes") or {}
    least = nodes.get("min", 1)
    most = nodes.get("max", least)
    if seen.ended:
        return f"{seen.name} is {seen.state}: there is nothing left to scale"
    if not least <= members <= most:
        wrong = "min" if members < least else "max"
        return (
            f"{seen.name} may have {least} to {most} members, and {members} are asked for: change spec.nodes.{wrong} "
            f"first (kubectl edit ltj {seen.name}); running members go on meanwhile"
        )
    return None
