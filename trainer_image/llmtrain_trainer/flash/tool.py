"""`python -m llmtrain_trainer.flash`: look at the snapshots in a pod's memory, prove, remove, persist them.

Runs in the pod, beside its workers or without them, and never loads torch. Exit code 0: all is well; 1: a snapshot is
damaged, or there is none (`export`: none that is complete); 2: the storage or the command line is at fault, and
standard error says how.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.errors import ConfigError, TrainerError
from llmtrain_trainer.flash import export_command, slot
from llmtrain_trainer.flash.finding import store_at
from llmtrain_trainer.flash.shards import LocalShard
from llmtrain_trainer.flash.slot import Held, Slot

Facts = dict[str, Any]
_UNPROVED: Final = "unproved"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmtrain_trainer.flash", description="Snapshots in memory")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _command(commands, "ls", "List the snapshots, without reading their data", _ls)
    verify = _command(commands, "verify", "Read every byte of the snapshots and name what is damaged", _verify)
    verify.add_argument("--step", type=int, help="only those of this one")
    rm = _command(commands, "rm", "Give up snapshots; the memory stays, for new ones", _rm)
    rm.add_argument("--step", type=int, required=True, help="those of which one")
    export_command.add(commands)
    return parser


def _command(commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> Any:
    parser = commands.add_parser(name, help=summary, description=summary)
    where = f"the store; ${names.ENV_FLASH} if not given"
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", help=where)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _ls(options: argparse.Namespace) -> int:
    store, job_uid = store_at(options.directory)
    held, damaged = store.scan()
    facts, strays = [_facts(each) for each in _ordered(held)], _strays(damaged)
    if options.json:
        content = {"directory": str(store.root), "jobUid": job_uid, "durable": store.durable_step}
        _print_json(content | {"snapshots": facts, "damaged": strays})
        return 0
    rows = [("STEP", "ROUND", "RANK", "KIND", "MB", "STATE"), *map(_row, facts)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=False)), row[5], sep="  ")
    print(*(f"damaged: {one['file']}: {one['why']}\n" for one in strays), sep="", end="")
    return 0


def _verify(options: argparse.Namespace) -> int:
    store, job_uid = store_at(options.directory)
    held, damaged = store.scan()
    chosen = [each for each in _ordered(held) if options.step in (None, each.header.edition.step)]
    proved, strays = [_proved(each) for each in chosen], _strays(damaged)
    if options.json:
        _print_json({"directory": str(store.root), "jobUid": job_uid, "snapshots": proved, "damaged": strays})
    else:
        for each in proved:
            what = f"step {each['step']} of rank {each['rank']} ({each['kind']}, round {each['round']})"
            print(f"{what}: {each['state']}{': ' * bool(each['why'])}{each['why']}")
        print(*(f"damaged: {one['file']}: {one['why']}\n" for one in strays), sep="", end="")
        if not proved:
            which = "no snapshot" if options.step is None else f"no snapshot of step {options.step}"
            print(f"{store.root} has {which}")
    return int(not proved or bool(strays) or any(each["state"] == "damaged" for each in proved))


def _rm(options: argparse.Namespace) -> int:
    store, job_uid = store_at(options.directory)
    chosen = [each for each in store.scan()[0] if each.header.edition.step == options.step]
    if not chosen:
        raise ConfigError(f"{store.root} has no snapshot of step {options.step}; see ls")
    for each in chosen:
        if each.stands:
            # Not the file with the bytes: workers and agent that live have it mapped, and go on to write to it.
            Slot(each.stem).withdraw()
    if options.json:
        removed = [_identity(each) for each in _ordered(chosen)]
        _print_json({"directory": str(store.root), "jobUid": job_uid, "removed": removed})
    else:
        print(f"removed {len(chosen)} of step {options.step}")
    return 0


def _ordered(held: Sequence[Held]) -> list[Held]:
    """The newest first."""
    return sorted(held, key=lambda each: (each.header.edition, -each.header.rank), reverse=True)


def _identity(held: Held) -> Facts:
    edition = held.header.edition
    return {
        "step": edition.step,
        "round": edition.round,
        "rank": held.header.rank,
        "worldSize": edition.world_size,
        "kind": held.stem.name.partition("-")[0],
        "size": held.header.size,
        "stem": held.stem.name,
        "mark": held.mark,
    }


def _facts(held: Held) -> Facts:
    """Without reading the data."""
    try:
        state, why = _UNPROVED if slot.sums(held) is None else "proved", ""
    except Damaged as damaged:
        state, why = "damaged", str(damaged)
    return _identity(held) | {"state": state, "why": why}


def _proved(held: Held) -> Facts:
    """After reading all of it, if there is something to prove it by."""
    facts = _facts(held)
    if facts["state"] == _UNPROVED:
        facts["why"] = "complete by its head, and nobody has computed checksums yet"
    elif facts["state"] == "proved":
        try:
            wrong: tuple[str, ...] = LocalShard(held).damage()
        except (Damaged, FileNotFoundError) as error:
            wrong = (str(error),)
        facts |= {"state": "damaged" if wrong else "valid", "why": "; ".join(wrong)}
    if not held.stands:
        facts |= {"state": "gone", "why": "a newer one is taking its place"}
    return facts


def _strays(damaged: Sequence[Damaged]) -> list[dict[str, str]]:
    return [{"file": each.name, "why": each.why} for each in damaged]


def _row(facts: Facts) -> tuple[str, ...]:
    rank = f"{facts['rank']}/{facts['worldSize']}"
    state = f"{facts['state']}: {facts['why']}" if facts["why"] else facts["state"]
    return str(facts["step"]), str(facts["round"]), rank, facts["kind"], f"{facts['size'] / 1e6:.3g}", state


def _print_json(content: Facts) -> None:
    print(json.dumps(content, indent=2))
