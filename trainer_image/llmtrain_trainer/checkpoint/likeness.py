"""Whether a checkpoint's weights mean in this job's model what they meant where they were trained. Pure.

Shapes do not tell: the same matrices split into other heads, or followed by another activation, are another model.
"""

from __future__ import annotations

from typing import Any, Final

from llmtrain_operator.contract import names
from llmtrain_trainer.errors import TrainerError

_MEANING: Final = (
    "model_type",
    *("num_attention_heads", "num_key_value_heads", "head_dim", "num_heads", "n_head"),
    *("hidden_act", "hidden_activation", "activation_function"),
)
"""Keys of a Hugging Face config without which weights are just numbers."""

_NO_MATTER: Final = frozenset(
    {"max_position_embeddings", "n_positions", "transformers_version", "dtype", "architectures", "_name_or_path"}
)
"""Keys that follow the sequence length, the precision and the version, or say nothing."""


def check(stored: Any, here: dict[str, Any]) -> tuple[str, ...]:
    """What differs between a manifest's `model` and this job's (`exporting.describe`), each as `KEY was X, is Y`.

    Such as its rope, which may be meant so. What a manifest does not say does not differ. Raises `CheckpointMismatch`
    if the weights would mean something else.
    """
    then = stored.get("config", {}) if isinstance(stored, dict) else {}
    now = here["config"]
    different = {key: (then[key], now[key]) for key in sorted(then.keys() & now.keys()) if then[key] != now[key]}
    told = {key: f"{key} was {old}, is {new}" for key, (old, new) in different.items() if key not in _NO_MATTER}
    wrong = [told[key] for key in _MEANING if key in told]
    if wrong:
        raise TrainerError(
            names.REASON_CHECKPOINT_MISMATCH,
            f"spec.model: the checkpoint's weights are of the same shapes but of another model: {'; '.join(wrong)}; "
            "give the job the model that the checkpoint was made with, or another storage",
        )
    return tuple(told.values())
