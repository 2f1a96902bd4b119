"""The finished model as a Hugging Face directory: safetensors, config, tokenizer and `llmtrain.json`.

Guarantee: `llmtrain.json` appears last, by a rename, and lists the files that belong to the model; a directory with
it is complete. An earlier export in the same place loses its `llmtrain.json` first, and its files after. The files
are written beside their place and renamed one by one, since the root of a volume cannot itself be renamed.
Limit: rank 0 gathers the whole model in host memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

MANIFEST: Final = "llmtrain.json"
_READABLE: Final = 0o644


class Saveable(Protocol):
    """A tokenizer that writes the files that Hugging Face's AutoTokenizer reads."""

    def save(self, directory: Path) -> None: ...


def gather_weights(model: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """The whole state on the CPU if `keep`, else nothing. Collective under ZeRO-3, one parameter at a time."""
    import deepspeed

    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True)
    if keep:
        persistent = model.state_dict().keys() - state.keys()
        state |= {name: buffer.cpu() for name, buffer in model.named_buffers() if name in persistent}
    return state


def check_output(directory: Path) -> None:
    """Find out before training, not after, whether the model can be written. Raises `OutputUnwritable`."""
    with _unwritable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass


def write_model(
    directory: Path, model: Any, weights: dict[str, torch.Tensor], tokenizer: Saveable, facts: dict[str, Any]
) -> None:
    """Write the model (see the module's guarantee). `facts` go to `llmtrain.json`. Raises `OutputUnwritable`."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    with _unwritable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".llmtrain-", ignore_cleanup_errors=True) as scratch:
            staged = Path(scratch)
            model.save_pretrained(staged, state_dict=weights)
            tokenizer.save(staged)
            files = sorted(path.name for path in staged.iterdir())
            _remove_previous(directory)
            for name in files:
                (staged / name).chmod(_READABLE)  # safetensors makes its files private to this user
                (staged / name).replace(directory / name)
            (staged / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")
            (staged / MANIFEST).replace(directory / MANIFEST)


def _remove_previous(directory: Path) -> None:
    manifest = directory / MANIFEST
    if not manifest.exists():
        return
    files = json.loads(manifest.read_text()).get("files", [])
    manifest.unlink()
    for name in files:
        target = directory / Path(name).name
        target.unlink(missing_ok=True)


@contextmanager
def _unwritable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainerError(
            names.REASON_OUTPUT_UNWRITABLE,
            f"spec.output: cannot write {directory}: {error}; give a directory on a volume with room that the pod's "
            "user may write to",
        ) from error
