"""`llmtrain suspend` and `resume`."""

from __future__ import annotations

from typing import Any

import click

from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.report import JobReport
from llmtrain_operator.cli.status import find, readable
from llmtrain_operator.conditions import is_true
from llmtrain_operator.contract import names


@click.command()
@job_argument()
@click.option("--discard-progress", is_flag=True, help="Suspend although the steps trained so far will be lost.")
@job_options
def suspend(name: str, *, discard_progress: bool, access: Access) -> None:
    """Save a job's state, stop its members and keep the job; `resume` goes on with it."""
    run(_suspend(access, access.resolved_namespace(), name, discard=discard_progress))
    click.echo(f"suspending {name}; `llmtrain status {name}` shows when its state is saved and it is done")


@click.command()
@job_argument()
@job_options
def resume(name: str, *, access: Access) -> None:
    """Start a suspended job."""
    run(_resume(access, access.resolved_namespace(), name))
    click.echo(f"resuming {name}")


async def _suspend(access: Access, namespace: str, name: str, *, discard: bool) -> None:
    async with access.open() as cluster:
        job = await find(cluster, namespace, name)
        if refusal := why_not_suspend(job, discard=discard):
            raise click.ClickException(refusal)
        annotations = {names.ANNOTATION_DISCARD_PROGRESS: "true"} if discard else {}
        await cluster.patch(namespace, name, {"metadata": {"annotations": annotations}, "spec": {"suspend": True}})


async def _resume(access: Access, namespace: str, name: str) -> None:
    async with access.open() as cluster:
        await find(cluster, namespace, name)
        # Leave to discard was given for the suspension that now ends, not for the next one.
        forget = {"annotations": {names.ANNOTATION_DISCARD_PROGRESS: None}}
        await cluster.patch(namespace, name, {"metadata": forget, "spec": {"suspend": False}})


def why_not_suspend(job: dict[str, Any], *, discard: bool) -> str | None:
    """Why suspending is of no use or needs the user's leave; None if nothing speaks against it."""
    seen = readable(job)
    if seen.ended:
        return f"{seen.name} is {seen.state}: there is nothing left to suspend"
    if seen.step and not discard and not _saves(job, seen):
        return (
            f"{seen.name} has trained {seen.step} steps that are saved nowhere and would be lost; "
            "add --discard-progress to suspend it all the same"
        )
    return None


def _saves(job: dict[str, Any], seen: JobReport) -> bool:
    """Whether the operator has the job save before it stops."""
    spec = job.get("spec", {})
    durable = bool((spec.get("checkpoint") or {}).get("durable")) and not spec.get("entrypoint")
    return durable or is_true(seen.status.conditions, "Protected")
