"""Where training stands after a step: what the trainer itself goes on with, beside the engine's state. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from llmtrain_operator.contract import codec, names
from llmtrain_trainer.config import Config
from llmtrain_trainer.errors import ConfigError, TrainerError


@dataclass(frozen=True, slots=True)
class Standing:
    """After `step` steps. `position`: the place in the sequence of samples that comes next, whatever the batch size.

    `seed`, `shuffle`, `sequence_length` and `data_digest` say which sequence of samples that is a place in; `left_out`
    of those before it were never trained on. The losses are what was last reported; `skipped_in_a_row` is the
    divergence guard's count, `recent_losses` and `risen_losses` are what it judges spikes by. `untracked` are points
    that the trackers of job `untracked_of` are not known to have kept.
    """

    step: int
    position: int
    seed: int
    shuffle: bool
    sequence_length: int
    data_digest: str
    spec_digest: str
    loss: float | None = None
    validation_loss: float | None = None
    perplexity: float | None = None
    skipped_in_a_row: int = 0
    left_out: int = 0
    recent_losses: tuple[float, ...] = ()
    risen_losses: tuple[float, ...] = ()
    untracked: str = ""
    untracked_of: str = ""

    @property
    def trained(self) -> int:
        """Samples trained on."""
        return self.position - self.left_out

    def carrying(self, untracked: str, job: str) -> Standing:
        """The same, with these points of that job."""
        return dataclasses.replace(self, untracked=untracked, untracked_of=job)

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> Standing:
        """Raises `CheckpointMismatch` for what is none; unknown fields are ignored."""
        try:
            return codec.from_dict(cls, raw)
        except codec.WireError as error:
            raise TrainerError(
                names.REASON_CHECKPOINT_MISMATCH,
                f"the checkpoint does not say where training stood ({error}): it was not written by this trainer",
            ) from error

    @classmethod
    def begin(cls, config: Config, data_digest: str) -> Standing:
        """Before the first step."""
        return cls(
            step=0,
            position=0,
            seed=config.training.seed,
            shuffle=config.data.shuffle,
            sequence_length=config.data.sequence_length,
            data_digest=data_digest,
            spec_digest=config.digest,
        )

    def check_steps_left(self, max_steps: int) -> None:
        """Raises `ConfigError` if a job that starts here from another's checkpoint would train nothing."""
        if self.step >= max_steps:
            raise ConfigError(
                f"spec.training.maxSteps: {max_steps} is not more than the {self.step} steps of the checkpoint in "
                "checkpoint.restoreFrom, from which the job counts on; give more, or start from its finished model"
            )

    def other_order(self, here: Standing) -> tuple[str, ...]:
        """Why the order of samples `here` is not that of this stored standing; empty if it is."""
        fields = {
            "training.seed": (self.seed, here.seed),
            "data.shuffle": (self.shuffle, here.shuffle),
            "data.sequenceLength": (self.sequence_length, here.sequence_length),
            "the text's digest": (self.data_digest[:12], here.data_digest[:12]),
        }
        return tuple(f"{name} was {then}, is {now}" for name, (then, now) in fields.items() if then != now)
