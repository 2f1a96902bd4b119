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
from llmtrain_trainer.divergence import DivergenceGuard
from llmtrain_trainer.elastic_data import SampleOrder
from llmtrain_trainer.evaluate import summed_loss, validation_loss
from llmtrain_trainer.models import build_model
from llmtrain_trainer.progress import Reporter, is_worth_a_line, step_line

STOPPED: Final = 128 + signal.SIGTERM


class Trainer:
    """A worker after start-up: everything that a step needs."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self.config, self.reporter = config, reporter
        self.tokens = config.training.global_batch_size * config.data.sequence_length  # in one step
        self.stopping = False
        self.guard = DivergenceGuard()
        self.dataset = data.open_dataset(config.data, cache_directory())
        self.worker = distributed.join()
        self.worker.check_same(self.dataset.digest)
        self.output = Path(local_path(config.output, "spec.output")) if config.output else None
        if self.output and self.worker.is_first:
            export.check_output(self.output)
        self.plan = batch_plan(config, self.worker.world_size)
        self.order = SampleOrder(config.training.seed, len(self.dataset.train), config.data.shuffle)
        self.model = build_model(config, self.dataset.tokenizer)
        self.flops_per_token = flops.flops_per_token(self.model, config.data.sequence_length)
        self.peak_flops = flops.peak_flops(self.worker.device, config.training.precision)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.engine = start_engine(config, self.model, self.worker)
        self.say(
            f"{parameters:,} parameters, {self.dataset.tokens:,} tokens of text; a step is {self.tokens:,} tokens in "
            f"{self.plan.micro_steps} x {self.plan.micro_batch} sequences on each of {self.worker.world_size} workers"
        )

    def run(self) -> int:
        """Train, evaluate, export. Returns the exit status."""
        signal.signal(signal.SIGTERM, self._on_sigterm)  # until here there is nothing to end properly
        training = self.config.training
        every = training.evaluation.every_steps
        with data.prefetch(data.batches(self.dataset.train, self.plan, self.order, self.worker.rank)) as batches:
            for _ in range(training.max_steps):
                started = time.perf_counter()
                step, micro_batches = next(batches)
                loss, stop = self.step(step, micro_batches)
                self.report(step + 1, loss, time.perf_counter() - started, batches.waited)
                # Step boundary: weights, optimizer and data position agree on all workers. Checkpoints belong here.
                if stop:
                    return STOPPED
                if step + 1 == training.max_steps or (every and (step + 1) % every == 0):
                    self.evaluate()
        self.export()
        self.reporter.update(phase="done")
        return 0

    def step(self, step: int, micro_batches: Sequence[data.MicroBatch]) -> tuple[float, bool]:
        """One optimizer step on the global batch: its loss, and whether any worker was asked to stop."""
        training = self.config.training
        rate = optim.learning_rate(step, training.optimizer.lr, training.schedule, training.max_steps)
        optim.set_learning_rate(self.engine.optimizer, rate)
        summed = torch.zeros((), dtype=torch.float64, device=self.worker.device)
        for batch in micro_batches:
            loss = summed_loss(self.engine, batch, self.worker.device)
            self.engine.backward(loss * self.plan.loss_scale(self.tokens))
            self.engine.step()
            summed += loss.detach()
        loss_sum, stopping = self.worker.sums(summed, self.stopping)
        self.guard.check(step + 1, loss_sum / self.tokens, self.engine.skipped_steps)
        return loss_sum / self.tokens, stopping > 0

    def report(self, step: int, loss: float, seconds: float, waited: float) -> None:
        """Tell the agent, and now and then the log, about the step just done."""
        norm = self.engine.get_global_grad_norm()
        speed = self.tokens / seconds
        used = speed * self.flops_per_token / self.worker.world_size
        self.reporter.update(
            phase="training",
            step=step,
            epoch=self.order.epoch(step * self.plan.global_batch),
            loss=loss,
            learning_rate=self.engine.optimizer.param_groups[0]["lr"],
            gradient_norm=float(norm) if norm is not None and math.isfinite(norm) else None,
            step_seconds=seconds,
            data_wait_seconds=waited,
            tokens_per_second=speed,
            mfu=used / self.peak_flops if self.peak_flops else None,
        )
        if is_worth_a_line(step, self.config.training.max_steps):
            self.say(step_line(self.reporter.progress))

    def evaluate(self) -> None:
        """Validation loss and perplexity, where there is validation data."""
        self.reporter.update(phase="evaluating")
        limit = self.config.training.evaluation.max_batches
        loss = validation_loss(self.engine, self.dataset.validation, self.plan, self.worker, limit)
        if loss is None:
            return
        perplexity = math.exp(min(loss, 100.0))
        self.reporter.update(validation_loss=loss, perplexity=perplexity)
        self.say(f"validation loss {loss:.4f} perplexity {perplexity:,.2f} at step {self.reporter.progress.step}")

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
                "tokens": progress.step * self.tokens,
                "loss": progress.loss,
                "validationLoss": progress.validation_loss,
                "worldSize": self.worker.world_size,
                "specSha256": self.config.digest,
            }
            export.write_model(self.output, self.model, weights, self.dataset.tokenizer, facts)
            self.say(f"model written to {self.output}")

    def say(self, line: str) -> None:
        """A line of the job's log, once for all workers."""
        if self.worker.is_first:
            print(line, flush=True)

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
    if config.deepspeed.stage == 0:
        # In half precision DeepSpeed takes an empty step here to allocate the state, which Adam's bias correction
        # would count: first updates a quarter too small. Its weight decay has to be undone too.
        engine.basic_optimizer.state.clear()
        if config.training.precision != "fp32":
            engine.optimizer.refresh_fp32_params()
    return engine


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
