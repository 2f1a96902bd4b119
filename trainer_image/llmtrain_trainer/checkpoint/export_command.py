"""`python -m llmtrain_trainer.checkpoint export URI DIR`: a checkpoint becomes a Hugging Face directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.checkpoint.storage import open_storage


def add(commands: Any) -> None:
    """The subcommand; `commands` is what argparse's add_subparsers returns."""
    summary = "Write the model of a checkpoint as a Hugging Face directory"
    parser = commands.add_parser("export", help=summary, description=summary)
    parser.add_argument("uri", metavar="URI", help="the storage: file:///path, pvc://claim/path or s3://bucket/prefix")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the model goes")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest valid one if not given")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="as it was trained if not given")
    parser.add_argument("--tokenizer", help="where the tokenizer lies now; where the job had it if not given")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from llmtrain_trainer.checkpoint import exporting  # torch and transformers, which the other commands can do without

    storage = open_storage(options.uri)
    manifest, skipped = exporting.choose(Catalog(storage), options.step)
    for each in skipped:
        print(f"passed over a damaged checkpoint: {each}", file=sys.stderr)
    try:
        exporting.write(storage, manifest, options.directory, options.dtype, options.tokenizer)
    except Damaged as damaged:
        print(f"step {manifest.step} is damaged: {damaged}; choose another with --step, see `ls`", file=sys.stderr)
        return 1
    print(f"step {manifest.step} written to {options.directory}")
    return 0
