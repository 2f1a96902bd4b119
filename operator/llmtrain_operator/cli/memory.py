"""`llmtrain checkpoints --tier memory`: the snapshots in the members' memory, seen and worked on where they are.

The trainer's own tool runs in each member that runs, beside its workers; in a cluster that needs the right to
`pods/exec`. Its answers become one table.
Limit of `export` in a cluster: one member has to hold all shards of a step, for what lets members into each other's
memory is known to their agents and workers alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from llmtrain_operator.cli.access import Access
from llmtrain_operator.cli.members import Answer, Members, members_of

_HEAD: Final = ("MEMBER", "STEP", "ROUND", "RANK", "KIND", "MB", "STATE")


async def look(access: Access, job: str, verb: str, step: int | None, *, as_json: bool) -> int:
    """`ls` and `verify` in all members; the exit code: 1 if `verify` found damage or nothing, 2 if a member failed."""
    async with members_of(access, job) as members:
        answers = await members.ask(verb, _step(step))
    _complain(answers)
    if as_json:
        said = [{"member": each.member, "pod": each.pod, **each.content} for each in answers if each.content]
        click.echo(json.dumps({"members": said}, indent=2))
    else:
        click.echo("\n".join(table(answers)))
    if not all(each.content for each in answers):
        return 2
    states = [one["state"] for each in answers for one in each.snapshots]
    is_bad = any(each.damaged for each in answers) or "damaged" in states
    return int(verb == "verify" and (is_bad or not states))


async def remove(access: Access, job: str, step: int) -> int:
    """`rm` in the members that have snapshots of this step; the exit code."""
    async with members_of(access, job) as members:
        listed = await members.ask("ls", [])
        _complain(listed)
        having = {each.member for each in listed if any(one["step"] == step for one in each.snapshots)}
        if not having:
            raise click.ClickException(f"no member has a snapshot of step {step} in its memory; see ls")
        answers = await members.ask("rm", _step(step), having)
    _complain(answers)
    for each in answers:
        if each.content:
            click.echo(f"member {each.member}: removed {len(each.content['removed'])} of step {step}")
    return max(each.code for each in (*listed, *answers))


async def export(access: Access, job: str, uri: str, step: int | None, *, force: bool) -> int:
    """Have the newest complete step, or this one, written to the storage `uri`; the tool's exit code."""
    options = ["--uri", uri, *(["--force"] if force else [])]
    async with members_of(access, job) as members:
        answer = await members.ask_together("export", [*options, *_step(step)])
        if answer is None:
            answer = await _export_by_one(members, options, step)
    click.echo(answer.errors, err=True, nl=False)
    if answer.content:
        click.echo(answer.content["message"] or f"step {answer.content['step']} written to {uri}")
    return answer.code


async def _export_by_one(members: Members, options: Sequence[str], step: int | None) -> Answer:
    listed = await members.ask("ls", [])
    _complain(listed)
    found = choose(listed, step)
    if found is None:
        which = "a step" if step is None else f"step {step}"
        raise click.ClickException(
            f"no member has the shards of all ranks of {which} in its memory, see ls; only the members themselves can "
            "bring them together: give the job spec.checkpoint.durable, where they save"
        )
    member, chosen = found
    [answer] = await members.ask("export", [*options, *_step(chosen)], {member})
    return answer


def choose(answers: Sequence[Answer], step: int | None) -> tuple[int, int] | None:
    """The first member that holds all shards of the newest edition (of `step`, if given), and its step. Pure."""
    complete = []
    for each in answers:
        ranks: dict[tuple[int, int, int], set[int]] = {}
        for one in each.snapshots:
            if step in (None, one["step"]) and one["state"] != "damaged":
                ranks.setdefault((one["step"], one["round"], one["worldSize"]), set()).add(one["rank"])
        complete += [(edition, -each.member) for edition, there in ranks.items() if len(there) == edition[2]]
    if not complete:
        return None
    edition, member = max(complete)
    return -member, edition[0]


def table(answers: Sequence[Answer]) -> list[str]:
    """Lines, the newest step first, then what is damaged. Pure."""
    ordered = sorted(
        ((each.member, one) for each in answers for one in each.snapshots),
        key=lambda pair: (-pair[1]["step"], -pair[1]["round"], pair[1]["rank"], pair[0]),
    )
    rows = [_HEAD, *(_row(member, one) for member, one in ordered)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    lines = ["  ".join((*(t.rjust(w) for t, w in zip(row, widths, strict=False)), row[-1])) for row in rows]
    return lines + [f"damaged in member {each.member}: {what}" for each in answers for what in each.damaged]


def _row(member: int, one: Mapping[str, Any]) -> tuple[str, ...]:
    state = f"{one['state']}: {one['why']}" if one["why"] else one["state"]
    rank = f"{one['rank']}/{one['worldSize']}"
    return str(member), str(one["step"]), str(one["round"]), rank, one["kind"], f"{one['size'] / 1e6:.3g}", state


def _step(step: int | None) -> list[str]:
    return [] if step is None else ["--step", str(step)]


def _complain(answers: Sequence[Answer]) -> None:
    for each in answers:
        for line in each.errors.splitlines():
            click.echo(f"member {each.member}: {line}", err=True)
