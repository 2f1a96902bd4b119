"""`llmtrain chaos`: break a running job on purpose, and see what that costs.

In a cluster only members of the named job are touched, with the user's own rights, after a question; nodes and the
operator are for `python -m devcluster chaos`, on a cluster that is made to be broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import click
from rich.console import Console

from llmtrain_operator.chaos import campaign, report
from llmtrain_operator.chaos.faults import FAULTS, Fault
from llmtrain_operator.chaos.hands import PodHand, ProcessHand
from llmtrain_operator.chaos.run import Campaign, Hand, Target, Terms, Trial
from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.members import trainer_here
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.cli.status import PLAIN_WIDTH, find
from llmtrain_operator.local.folder import RunFolder, root

_FAULTS: Final = tuple(fault.name for fault in PodHand.faults)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be done: `count` faults of these kinds (none: of all), a draw from `seed`."""

    job: str
    kinds: tuple[str, ...]
    count: int
    seed: int
    spread: float
    terms: Terms


_LIST: Final = "\n".join(f"{fault.name:18}{fault.does}" for fault in PodHand.faults)
_HELP: Final = f"""Do FAULTs to a running job's members, wait until it trains again each time, and report what it cost.

Without FAULT all kinds are drawn from. Nothing is done that the job could not bear without losing a step, unless
--unsafe. Exit code 1 if steps were lost, or the job failed or did not recover.

\b
{_LIST}
"""


@click.command(help=_HELP)
@job_argument()
@click.argument("faults", nargs=-1, type=click.Choice(_FAULTS), metavar="[FAULT]...")
@click.option("--faults", "count", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same faults.")
@click.option("--member", type=click.IntRange(min=0), metavar="INDEX", help="Only this one. Default: drawn each time.")
@click.option(
    "--pause", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Most seconds between them."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=10.0, show_default=True, help="How long fill-memory lasts."
)
@click.option(
    "--patience", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds to get over one."
)
@click.option("--unsafe", is_flag=True, help="Also what the job does not survive without losing steps.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@job_options
def chaos(
    name: str,
    faults: tuple[str, ...],
    *,
    count: int,
    seed: int,
    member: int | None,
    pause: float,
    seconds: float,
    patience: float,
    unsafe: bool,
    yes: bool,
    output: str,
    access: Access,
) -> None:
    wish = Wish(name, faults, count, seed, pause, Terms(member, seconds, patience, unsafe))
    sys.exit(run(_chaos(access, wish, ask=not yes, as_json=output == "json")))


async def _chaos(access: Access, wish: Wish, *, ask: bool, as_json: bool) -> int:
    namespace = access.resolved_namespace()
    async with _place(access, wish.job) as (source, hand):
        if (await find(source, namespace, wish.job))["spec"].get("suspend"):
            raise click.ClickException(f"{wish.job} is suspended, so nobody trains: `llmtrain resume {wish.job}` first")
        kinds = _kinds(hand, wish)
        if ask and not access.local:
            click.confirm(_question(namespace, wish, kinds), abort=True, err=True)
        return await carry_out(Target(source, namespace, wish.job), hand, wish, as_json=as_json)


async def carry_out(target: Target, hand: Hand, wish: Wish, *, as_json: bool) -> int:
    """Do it and print the report; the exit code."""
    blows = campaign.plan(wish.seed, wish.count, _kinds(hand, wish), wish.spread)
    trials = await Campaign(target, hand, wish.terms, _say, _tell).run(blows)
    if as_json:
        click.echo(json.dumps(report.as_json(wish.seed, trials), indent=2))
    else:
        plain = None if sys.stdout.isatty() else PLAIN_WIDTH
        Console(width=plain, markup=False, highlight=False, emoji=False).print(report.table(trials))
    return int(not trials or any(trial.wrongs for trial in trials))


@contextlib.asynccontextmanager
async def _place(access: Access, job: str) -> AsyncIterator[tuple[JobSource, Hand]]:
    if access.local:
        async with access.open() as source:
            place = root(os.environ)
            yield source, ProcessHand(RunFolder(place / "jobs" / job), trainer_here(place / "volumes"))
        return
    async with access.open_cluster() as cluster:
        yield cluster, PodHand(cluster)


def _kinds(hand: Hand, wish: Wish) -> tuple[Fault, ...]:
    possible = {fault.name: fault for fault in hand.faults}
    if impossible := [name for name in wish.kinds if name not in possible]:
        raise click.UsageError(f"{', '.join(impossible)} cannot be done here")
    return tuple(FAULTS[name] for name in dict.fromkeys(wish.kinds)) or hand.faults


def _question(namespace: str, wish: Wish, kinds: tuple[Fault, ...]) -> str:
    who = "its members" if wish.terms.member is None else f"its member {wish.terms.member}"
    what = "\n".join(f"  {fault.name}: {fault.does}" for fault in kinds)
    bound = "" if not wish.terms.unsafe else ", ALSO IF IT DOES NOT SURVIVE THEM"
    return f"to {who} of job {wish.job} in namespace {namespace}, {wish.count} of these faults{bound}:\n{what}\ndo it?"


def _say(trial: Trial) -> None:
    for each in trial.struck:
        click.echo(f"{each.number}: {each.fault.name}: {each.did}", err=True)
    lost = sum(each.lost_steps or 0 for each in trial.incidents)
    click.echo(f"   as before after {trial.seconds:.1f} s, {lost} committed steps lost", err=True)
    for wrong in trial.wrongs:
        click.echo(f"   ! {wrong}", err=True)


def _tell(line: str) -> None:
    click.echo(line, err=True)
