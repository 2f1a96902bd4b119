"""The reference trainer: one worker's whole life, from the job's spec to the exported model.

`torchrun ... -m llmtrain_trainer.train` with the spec as JSON in LLMTRAIN_SPEC. The step's gradient is the mean over
the global batch's tokens at any world size, so a resize changes nothing but speed. Exit status: 0 when the model is
trained and written, 143 after SIGTERM (taken at a step boundary, by all workers at the same one), 1 after an error,
which is then in torch elastic's error file.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer import data, distributed, errors, export, flops, optim
from llmtrain_trainer.config import Config, local_path, parse
from llmtrain_trainer.deepspeed_config import batch_plan, deepspeed_config
from llmtrain_trainer.elastic_data import SampleOrder
from llmtrain_trainer.evaluate import summed_loss, validation_loss
from llmtrain_trainer.models import build_model
from llmtrain_trainer.progress import Reporter, is_worth_a_line, step_line

STOPPED: Final = 128 + signal.SIGTERM


class Trainer:
    """A worker after start-up: everything that a step needs."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self.config, self.reporter = config, reporter
        self.length = config.data.sequence_length
        self.stopping = False
        self.dataset = data.open_dataset(config.data, cache_directory())
        self.worker = distributed.join()
        self.output = Path(local_path(config.output, "spec.output")) if config.output else None
        if self.output and self.worker.is_first:
            export.check_output(self.output)
        self.plan = batch_plan(config, self.worker.world_size)
        self.order = SampleOrder(config.training.seed, len(self.dataset.train), config.data.shuffle)
        self.model = build_model(config, self.dataset.tokenizer)
        self.flops_per_token = flops.flops_per_token(self.model, self.length)
        self.peak_flops = flops.peak_flops(self.worker.device, config.training.precision)
        self.engine = start_engine(config, self.model, self.worker)

    def run(self) -> int:
        """Train, evaluate, export. Returns the exit status."""
        signal.signal(signal.SIGTERM, self._on_sigterm)  # until here there is nothing to end properly
        training = self.config.training
        every = training.evaluation.every_steps
        with data.prefetch(data.batches(self.dataset.train, self.plan, self.order, self.worker.rank)) as batches:
            for _ in range(training.max_steps):
                started = time.perf_counter()
                step, micro_batches = next(batches)
                stop = self.step(step, micro_batches)
                self.report_speed(time.perf_counter() - started, batches.waited)
                # Step boundary: weights, optimizer and data position agree on all workers. Checkpoints belong here.
                if stop:
                    return STOPPED
                if step + 1 == training.max_steps or (every and (step + 1) % every == 0):
                    self.evaluate()
        self.export()
        self.reporter.update(phase="done")
        return 0

    def step(self, step: int, micro_batches: Sequence[data.MicroBatch]) -> bool:
        """One optimizer step on the global batch. Returns whether any worker was asked to stop."""
        training = self.config.training
        rate = optim.learning_rate(step, training.optimizer.lr, training.schedule, training.max_steps)
        optim.set_learning_rate(self.engine.optimizer, rate)
        tokens = self.plan.global_batch * self.length
        loss = torch.zeros((), dtype=torch.float64, device=self.worker.device)
        for batch in micro_batches:
            summed = summed_loss(self.engine, batch, self.worker.device)
            self.engine.backward(summed * self.plan.loss_scale(tokens))
            self.engine.step()
            loss += summed.detach()
        loss_sum, stopping = self.worker.sums(loss, self.stopping)
        self.reporter.update(
            phase="training",
            step=step + 1,
            epoch=self.order.epoch((step + 1) * self.plan.global_batch),
            loss=finite_loss(loss_sum / tokens, step + 1, self.reporter.progress.loss),
            learning_rate=rate,
            gradient_norm=finite(self.engine.get_global_grad_norm()),
        )
        return stopping > 0

    def report_speed(self, seconds: float, waited: float) -> None:
        """Tell the agent, and now and then the log, how fast the last step was."""
        rate = self.plan.global_batch * self.length / seconds
        used = rate * self.flops_per_token / self.worker.world_size
        self.reporter.update(
            step_seconds=seconds,
            data_wait_seconds=waited,
            tokens_per_second=rate,
            mfu=used / self.peak_flops if self.peak_flops else None,
        )
        progress = self.reporter.progress
        if self.worker.is_first and is_worth_a_line(progress.step, progress.max_steps):
            print(step_line(progress), flush=True)

    def evaluate(self) -> None:
        """Validation loss and perplexity, where there is validation data."""
        self.reporter.update(phase="evaluating")
        limit = self.config.training.evaluation.max_batches
        loss = validation_loss(self.engine, self.dataset.validation, self.plan, self.worker, limit)
        if loss is None:
            return
        self.reporter.update(validation_loss=loss, perplexity=math.exp(min(loss, 100.0)))
        if self.worker.is_first:
            progress = self.reporter.progress
            print(
                f"validation loss {loss:.4f} perplexity {progress.perplexity:,.2f} at step {progress.step}", flush=True
            )

    def export(self) -> None:
        """Write the finished model to the job's output, if it has one."""
        if self.output is None:
            return
        self.reporter.update(phase="exporting")
        weights = export.gather_weights(self.model, keep=self.worker.is_first)
        if self.worker.is_first:
            progress = self.reporter.progress
            facts = {
                "steps": progress.step,
                "tokens": progress.step * self.plan.global_batch * self.length,
                "loss": progress.loss,
                "validationLoss": progress.validation_loss,
                "worldSize": self.worker.world_size,
                "specSha256": self.config.digest,
            }
            export.write_model(self.output, self.model, weights, self.dataset.tokenizer, facts)
            print(f"model written to {self.output}", flush=True)

    def _on_sigterm(self, *_: object) -> None:
        self.stopping = True


def cache_directory() -> Path:
    """Where tokenised data is kept: the pod's cache volume, or the user's cache outside a pod."""
    return Path(os.environ.get(names.ENV_DATA_CACHE) or Path("~/.cache/llmtrain/data").expanduser())


def start_engine(config: Config, model: torch.nn.Module, worker: distributed.Worker) -> Any:
    """DeepSpeed's engine around the model. Collective."""
    import deepspeed

    torch.manual_seed(config.training.seed + worker.rank)  # dropout differs between ranks
    optimizer = optim.build_optimizer(model, config.training.optimizer)
    settings = deepspeed_config(config, worker.world_size)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def finite_loss(loss: float, step: int, previous: float | None) -> float:
    """The loss, if training can go on with it. Raises `NonFiniteLoss`."""
    if math.isfinite(loss):
        return loss
    raise errors.TrainerError(
        names.REASON_NON_FINITE_LOSS,
        f"the loss is {loss} at step {step} (before: {previous}): lower training.optimizer.lr, lengthen "
        "training.schedule.warmupSteps, set training.gradientClipping, or look at the data of this step",
    )


def finite(value: Any) -> float | None:
    """A number for people; None for none, an overflow or NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def main() -> None:
    """Run one worker."""
    reporter = None
    try:
        config = parse(os.environ[names.ENV_SPEC])
        reporter = Reporter(int(os.environ["RANK"]), config.training.max_steps)
        status = Trainer(config, reporter).run()
    except Exception as error:
        errors.write_error_file(error, reporter.progress.step if reporter else 0)
        raise
    torch.distributed.destroy_process_group()
    sys.exit(status)


if __name__ == "__main__":
    main()
