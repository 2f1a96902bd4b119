"""A checkpoint as a Hugging Face directory, made from storage alone: no process group, no data, no accelerator.

The checkpoint's manifest has all that is needed beside the weights (`describe`), but for a tokenizer that is no plain
bytes: its files lie where the job had them, or wherever `tokenizer` says. The weights are the masters in the element
type asked for, equal to the trainer's own export in that type. Every byte read is proved.
Limit: the whole model in that type has to fit in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer import export, hub
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.layout import Segment, plan_reads
from llmtrain_trainer.checkpoint.manifest import Manifest
from llmtrain_trainer.checkpoint.pieces import MASTER, WEIGHTS, as_bytes, dtype_name
from llmtrain_trainer.checkpoint.shardfile import ShardReader
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.checkpoint.storage import Storage
from llmtrain_trainer.data.tokenizers import BYTE, load_tokenizer
from llmtrain_trainer.errors import ConfigError, TrainerError

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def describe(model: Any, tokenizer: str) -> dict[str, Any]:
    """What a manifest has to say of a Hugging Face model: its config, element type and the tokenizer's URI. JSON."""
    return {
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "dtype": dtype_name(next(model.parameters()).dtype),
        "tokenizer": tokenizer,
    }


def choose(catalog: Catalog, step: int | None) -> tuple[Manifest, tuple[str, ...]]:
    """The valid checkpoint of `step`, or the newest, and what was passed over. Raises `CheckpointLost`."""
    if step is None:
        manifest, skipped = catalog.newest_valid()
        why = "; ".join(skipped) or "it holds none"
    else:
        found, skipped = catalog.checkpoint(step), ()
        manifest, why = found.manifest, f"step {step}: {found.why}"
    if manifest is None:
        text = f"{catalog.storage.uri} has no valid checkpoint to export ({why}); see `ls` for those that it has"
        raise TrainerError(names.REASON_CHECKPOINT_LOST, text)
    return manifest, skipped


def write(storage: Storage, manifest: Manifest, directory: Path, dtype: str | None, tokenizer: str | None) -> None:
    """Write the model; `dtype` (one of DTYPES) and `tokenizer` None: as the job had them.

    Raises `Damaged`, `StorageError`, `OutputUnwritable`, and `CheckpointMismatch` for a checkpoint that does not say
    what model it is of.
    """
    described = manifest.state.get("model")
    if not isinstance(described, dict):
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"{storage.uri}: the checkpoint of step {manifest.step} does not say what model it is of; restore it into "
            "a job with spec.output instead",
        )
    chosen = _tokenizer(tokenizer or described["tokenizer"])
    element = DTYPES[dtype] if dtype else getattr(torch, described["dtype"])
    model = _skeleton(described["config"], element)
    weights = _weights(_Stored(storage, manifest), model, element)
    standing = Standing.from_json(manifest.state.get("training"))
    facts = {
        "steps": standing.step,
        "tokens": standing.position * standing.sequence_length,
        "loss": standing.loss,
        "validationLoss": standing.validation_loss,
        "worldSize": manifest.world_size,
        "specSha256": standing.spec_digest,
    }
    export.write_model(directory, model, weights, chosen, facts)


def _tokenizer(uri: str) -> Any:
    try:
        if uri != BYTE:
            uri = hub.local_directory(uri, "spec.data.tokenizer", hub.TOKENIZER_FILES)
        return load_tokenizer(uri)
    except TrainerError as error:
        raise ConfigError(f"{error}; where it lies elsewhere, say so with --tokenizer") from error


def _skeleton(described: dict[str, Any], dtype: torch.dtype) -> Any:
    """The model without memory for its weights: names, ties and config are what is needed of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(**described), dtype=dtype)


def _weights(stored: _Stored, model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's state, each tied parameter under all of its names and in memory once."""
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    read = {name: stored.tensor(name).to(dtype) for name in stored.in_order(first_names.values())}
    weights = {
        name: read[first_names[id(parameter)]] for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    persistent = model.state_dict().keys() - weights.keys()
    return weights | {name: stored.tensor(name) for name in sorted(persistent)}


class _Stored:
    """A checkpoint's whole tensors. A reader keeps one chunk, so the order in which they are read matters."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._manifest = manifest
        self._readers = [ShardReader(storage, part) for part in manifest.parts]
        self._by_parameter: dict[str, list[list[Segment]]] = {}
        for number, reader in enumerate(self._readers):
            for segment in reader.segments:
                if segment.kind in (MASTER, WEIGHTS):
                    shards = self._by_parameter.setdefault(segment.parameter, [[] for _ in self._readers])
                    shards[number].append(segment)

    def in_order(self, parameters: Iterable[str]) -> list[str]:
        """The same names as they lie in the shards."""
        firsts = {
            name: min(segment.offset for segments in shards for segment in segments)
            for name, shards in self._by_parameter.items()
        }
        return sorted(parameters, key=lambda name: firsts.get(name, 0))

    def tensor(self, name: str) -> torch.Tensor:
        """In its own shape and stored type. Raises `Damaged`, `StorageError`, `CheckpointMismatch`."""
        engine = self._manifest.state["engine"]
        if name in engine["parameters"]:
            return self._read(name, MASTER, torch.float32, engine["parameters"][name])
        if name in engine["weights"]:
            facts = engine["weights"][name]
            return self._read(name, WEIGHTS, getattr(torch, facts["dtype"]), facts["shape"])
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"the checkpoint of step {self._manifest.step} has no {name}, which its own model's config calls for: this "
            "version of transformers names the model's weights otherwise; export with the version that trained it",
        )

    def _read(self, name: str, kind: str, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        into = memoryview(as_bytes(tensor.view(-1)).numpy())  # type: ignore[arg-type]  # numpy's typing on 3.11
        wanted = Segment(name, kind, 0, tensor.numel(), dtype_name(dtype))
        for read in plan_reads([wanted], self._by_parameter.get(name, [])):
            for copy in read.copies:
                self._readers[read.shard].read_into(copy.source, into[copy.target : copy.target + copy.length])
        return tensor
