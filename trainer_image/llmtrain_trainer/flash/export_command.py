"""`python -m llmtrain_trainer.flash export`: what is complete in memory becomes a durable checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.flash.finding import stores_at
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.persist import Claimant, Memory, Outcome, persist_newest
from llmtrain_trainer.flash.planner import Entry, Inventory
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.survey import survey


def add(commands: Any) -> None:
    """The subcommand; `commands` is what argparse's add_subparsers returns."""
    summary = "Write the newest snapshots that are complete as a durable checkpoint"
    parser = commands.add_parser("export", help=summary, description=summary)
    where = f"a store; several, of one job, are taken together; ${names.ENV_FLASH} if not given"
    parser.add_argument("directories", metavar="DIR", type=Path, nargs="*", help=where)
    parser.add_argument("--uri", required=True, help="file:///path, pvc://claim/path or s3://bucket/prefix")
    parser.add_argument("--step", type=int, help="which step; the newest that is complete if not given")
    told = (
        f"another member's agent, and a file with what `ls --json` printed there; needs ${names.ENV_ROUND} and "
        f"${names.ENV_FLASH_KEY}; may be repeated"
    )
    parser.add_argument("--peer", nargs=2, action="append", default=[], metavar=("HOST:PORT", "FILE"), help=told)
    parser.add_argument("--force", action="store_true", help="even if workers of this round may be saving there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    stores, job_uid = stores_at(options.directories)
    inventories = [survey(store, member) for member, store in enumerate(stores)]
    peers = enumerate(options.peer, len(inventories))
    inventories += (_listed(Path(file), member, address) for member, (address, file) in peers)
    for lying in (what for each in inventories for what in each.damaged):
        print(f"passed over: {lying}", file=sys.stderr)
    memory = Memory(dict(enumerate(stores)), _pass() if options.peer else None)
    newest = max((entry.edition.round for each in inventories for entry in each.entries), default=0)
    claimant = Claimant(job_uid, max(newest, int(os.environ.get(names.ENV_ROUND) or 0)))
    catalog = Catalog(open_storage(options.uri))
    if not options.force:
        _check_unused(catalog, claimant)
    outcome = persist_newest(memory, catalog, inventories, claimant, options.step)
    return _tell(outcome, options)


def _tell(outcome: Outcome, options: argparse.Namespace) -> int:
    for bad in outcome.bad.values():
        print(f"passed over: {bad}", file=sys.stderr)
    if outcome.reason:
        print(f"error: {outcome.message}", file=sys.stderr)
        return 2
    step = outcome.edition.step if outcome.edition else None
    if options.json:
        told = {"step": step, "committed": outcome.committed, "size": outcome.size, "message": outcome.message}
        print(json.dumps({"uri": options.uri, **told}, indent=2))
    else:
        print(outcome.message or f"step {step} written to {options.uri}, {outcome.size / 1e6:.3g} MB")
    return int(not outcome.committed)


def _check_unused(catalog: Catalog, claimant: Claimant) -> None:
    """Raises `ConfigError` if a claim would keep workers that live from saving."""
    catalog.storage.prepare()
    owner = catalog.owner()
    if owner and (owner.job_uid, owner.round) == (claimant.job_uid, claimant.round):
        raise ConfigError(
            f"round {owner.round} of this job saves to {catalog.storage.uri}: its workers, if they live, would be shut "
            "out of it and end; give another storage, or --force if they are gone"
        )


def _pass() -> Pass:
    number, key = os.environ.get(names.ENV_ROUND), os.environ.get(names.ENV_FLASH_KEY)
    if not number or not key:
        raise ConfigError(f"--peer needs the round and its key: ${names.ENV_ROUND} and ${names.ENV_FLASH_KEY}")
    return Pass(int(number), key)


def _listed(file: Path, member: int, address: str) -> Inventory:
    """What another member's `ls --json` said."""
    try:
        entries = tuple(
            Entry(Edition(each["step"], each["round"], each["worldSize"]), each["rank"], each["stem"], each["mark"])
            for each in json.loads(file.read_text())["snapshots"]
        )
    except OSError as error:
        raise ConfigError(f"--peer: cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--peer: {file} is not what `ls --json` prints") from error
    return Inventory(member, address, entries)
