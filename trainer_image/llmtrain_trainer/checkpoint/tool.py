"""`python -m llmtrain_trainer.checkpoint`: look at a storage, prove what is in it, remove from it, export a model.

Runs wherever the storage can be reached, without torch for `ls`, `verify` and `rm`. Exit code 0: all is well; 1: a
checkpoint is damaged, or there is none; 2: the storage or the command line is at fault, and standard error says how.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from llmtrain_trainer.checkpoint import export_command, proof
from llmtrain_trainer.checkpoint.catalog import Catalog, Checkpoint
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.errors import ConfigError, TrainerError

Subparsers = Any  # argparse does not name the type


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
    parser = argparse.ArgumentParser(prog="python -m llmtrain_trainer.checkpoint", description="Durable checkpoints")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_ls, _add_verify, _add_rm, export_command.add):
        add(commands)
    return parser


def _command(commands: Subparsers, name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> Any:
    """A subcommand that takes a storage's URI and --json."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("uri", metavar="URI", help="file:///path, pvc://claim/path or s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _add_ls(commands: Subparsers) -> None:
    _command(commands, "ls", "List the checkpoints, without reading their data", _ls)


def _add_verify(commands: Subparsers) -> None:
    parser = _command(commands, "verify", "Read every byte of the checkpoints and name what is damaged", _verify)
    parser.add_argument("--step", type=int, help="only this one")


def _add_rm(commands: Subparsers) -> None:
    parser = _command(commands, "rm", "Remove checkpoints", _rm)
    parser.add_argument("--step", type=int, action="append", required=True, help="which one; may be repeated")
    parser.add_argument("--force", action="store_true", help="even if no valid checkpoint is left")


def _ls(options: argparse.Namespace) -> int:
    catalog = Catalog(open_storage(options.uri))
    owner, found = catalog.owner(), catalog.checkpoints()
    if options.json:
        claim = {"fence": owner.number, "jobUid": owner.job_uid, "round": owner.round} if owner else None
        _print_json({"uri": options.uri, "owner": claim, "checkpoints": [_facts(checkpoint) for checkpoint in found]})
        return 0
    rows = [("STEP", "AGE", "SIZE", "WORLD", "STATE"), *(_row(checkpoint, time.time()) for checkpoint in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=False)), row[4], sep="  ")
    return 0


def _verify(options: argparse.Namespace) -> int:
    storage = open_storage(options.uri)
    catalog = Catalog(storage)
    committed = [c for c in catalog.checkpoints() if c.state != "incomplete" and options.step in (None, c.step)]
    reports = []
    for checkpoint in committed:
        wrong = proof.damage(storage, checkpoint)
        report = _facts(checkpoint) | {"state": "damaged" if wrong else "valid", "why": ""}
        reports.append(report | {"damage": [{"file": one.name, "why": one.why} for one in wrong]})
        if not options.json:
            print(f"step {checkpoint.step}: {'damaged' if wrong else 'valid'}, {_size(checkpoint.size)} read")
            print(*(f"  {one}\n" for one in wrong), sep="", end="")
    if options.json:
        _print_json({"uri": options.uri, "checkpoints": reports})
    elif not committed:
        which = "no checkpoint" if options.step is None else f"no checkpoint of step {options.step}"
        print(f"{options.uri} has {which}")
    return int(not committed or any(report["damage"] for report in reports))


def _rm(options: argparse.Namespace) -> int:
    catalog = Catalog(open_storage(options.uri))
    found = {checkpoint.step: checkpoint for checkpoint in catalog.checkpoints()}
    if unknown := sorted(set(options.step) - found.keys()):
        raise ConfigError(f"{options.uri} has no checkpoint of step {', '.join(map(str, unknown))}; see ls")
    valid = {checkpoint.step for checkpoint in found.values() if checkpoint.state == "valid"}
    if valid and valid <= set(options.step) and not options.force:
        raise ConfigError(f"no valid checkpoint would be left in {options.uri}; --force removes them all the same")
    for step in sorted(set(options.step)):
        catalog.remove(step)
        if not options.json:
            print(f"removed step {step}, {_size(found[step].size)}")
    if options.json:
        _print_json({"uri": options.uri, "removed": sorted(set(options.step))})
    return 0


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "step": checkpoint.step,
        "state": checkpoint.state,
        "why": checkpoint.why,
        "size": checkpoint.size,
        "modified": checkpoint.modified,
        "worldSize": manifest.world_size if manifest else None,
        "fence": manifest.fence if manifest else None,
        "jobUid": manifest.job_uid if manifest else None,
        "round": manifest.round if manifest else None,
    }


def _row(checkpoint: Checkpoint, now: float) -> tuple[str, ...]:
    world = str(checkpoint.manifest.world_size) if checkpoint.manifest else "-"
    state = f"{checkpoint.state}: {checkpoint.why}" if checkpoint.why else checkpoint.state
    return str(checkpoint.step), _age(now - checkpoint.modified), _size(checkpoint.size), world, state


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))
