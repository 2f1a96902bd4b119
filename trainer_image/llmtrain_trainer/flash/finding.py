"""Which store a command is about, and whose snapshots lie there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.manifest import Damaged, NewerFormat
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.flash import slot
from llmtrain_trainer.flash.store import Store

_NOBODY: Final = "no job"


def store_at(directory: Path | None) -> tuple[Store, str]:
    """The store in a directory, else this pod's, and its job's UID. Raises `ConfigError`."""
    stores, job_uid = stores_at([directory] if directory else [])
    return stores[0], job_uid


def stores_at(directories: Sequence[Path]) -> tuple[list[Store], str]:
    """The stores in directories, else this pod's, and the UID of the job that they are of: the environment's, else that
    of what lies in them. Raises `ConfigError`."""
    roots = list(directories) or [_of_this_pod()]
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root} is no directory")
    job_uid = os.environ.get(names.ENV_JOB_UID) or _found_in(roots)
    return [Store(root, job_uid) for root in roots], job_uid


def _of_this_pod() -> Path:
    root = os.environ.get(names.ENV_FLASH)
    if not root:
        raise ConfigError(f"there is no store here: neither DIR nor ${names.ENV_FLASH} names one")
    return Path(root)


def _found_in(roots: Sequence[Path]) -> str:
    found = set()
    for path in (path for root in roots for path in root.glob(f"*{slot.HEAD}")):
        try:
            held = slot.held(path.with_suffix(""))
        except (Damaged, NewerFormat, FileNotFoundError):
            continue
        if held:
            found.add(held.header.fixed.job_uid)
    if len(found) > 1:
        raise ConfigError(f"snapshots of several jobs ({', '.join(sorted(found))}): set ${names.ENV_JOB_UID}")
    return found.pop() if found else _NOBODY
