"""The reference trainer: one worker's whole life, from the job's spec to the exported model.

`torchrun ... -m llmtrain_trainer.train` with the spec as JSON in LLMTRAIN_SPEC. The step's gradient is the mean over
the global batch's tokens at any world size, so a resize changes nothing but speed. Exit status: 0 when the model is
trained and written, 143 after SIGTERM or SIGUSR1 (see `signals`; taken at a step boundary, by all workers at the same
one), 1 after an error, which is then in torch elastic's error file.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from llmtrain_operator.contract import names, wire
from llmtrain_trainer import data, distributed, errors, export, optim, stacks
from llmtrain_trainer.avoiding import avoid
from llmtrain_trainer.checkpoint.cadence import Votes
from llmtrain_trainer.checkpoint.keeper import Keeper
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.config import Config, local_path, parse
from llmtrain_trainer.deepspeed_config import batch_plan
from llmtrain_trainer.divergence import DivergenceGuard
from llmtrain_trainer.elastic_data import Course, SampleOrder
from llmtrain_trainer.engine import start_engine
from llmtrain_trainer.evaluate import summed_loss, validation_loss
from llmtrain_trainer.flops import Speed
from llmtrain_trainer.models import build_model
from llmtrain_trainer.pace import Pace
from llmtrain_trainer.progress import Reporter, is_worth_a_line, step_line
from llmtrain_trainer.signals import Wishes
from llmtrain_trainer.spikes import Spikes
from llmtrain_trainer.steplog import StepLog
from llmtrain_trainer.trackers.tracking import Tracking


class Trainer:
    """A worker after start-up: everything that a step needs."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self.config, self.reporter, self.spending = config, reporter, reporter.spending
        self.wishes = Wishes()
        self.dataset = data.open_dataset(config.data, data.cache_directory())
        self.worker = distributed.join()
        self.worker.check_same(self.dataset.digest)
        self.steps = StepLog.open(is_first=self.worker.is_first)
        self.output = Path(local_path(config.output, "spec.output")) if config.output else None
        if self.output and self.worker.is_first:
            export.check_output(self.output)
        self.plan = batch_plan(config, self.worker.world_size)
        self.keeper = Keeper(config, self.worker, reporter, self.wishes)
        with self.spending.on("restoring"):
            source = self.keeper.choose()
        self.model = build_model(config, self.dataset.tokenizer)
        if source and source.is_model:
            with self.spending.on("restoring"):
                self.keeper.load_weights(self.model, source)
        self.speed = Speed(self.model, config, self.worker)
        self.pace = Pace(self.worker.rank, self.worker.device, gathers=config.deepspeed.stage == 3)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.engine = start_engine(config, self.model, self.worker)
        with self.spending.on("restoring"):
            stored = self.keeper.restore(self.engine, source)
        self.resume(stored)
        self.say(
            f"{parameters:,} parameters, {self.dataset.tokens:,} tokens of text; a step is {self.speed.tokens:,} "
            f"tokens in {self.plan.micro_steps} x {self.plan.micro_batch} sequences on each of "
            f"{self.worker.world_size} workers"
        )

    def resume(self, stored: Standing | None) -> None:
        """Go on from where a checkpoint was taken, or begin."""
        fresh = Standing.begin(self.config, self.dataset.digest)
        begin = self.begin = stored or fresh
        for difference in begin.other_order(fresh):
            self.say(f"samples come in another order than the checkpoint's, some again or never: {difference}")
        if begin.step > self.config.training.max_steps:
            self.say(f"nothing is left to train: the checkpoint is of step {begin.step}, beyond training.maxSteps")
        left_out = ((each.first, each.end) for each in avoid().skip)
        course = Course.begin(begin.step * self.plan.global_batch, begin.position, left_out)
        shuffled = self.config.data.shuffle
        self.order = SampleOrder(self.config.training.seed, len(self.dataset.train), shuffled, course)
        watched = shuffled and self.config.recovery.numerics != "fail"
        spikes = Spikes(begin.recent_losses, begin.risen_losses) if watched else None
        self.guard = DivergenceGuard(
            self.samples, spikes, self.engine.skipped_steps, begin.skipped_in_a_row, begin.loss
        )
        self.tracking = Tracking(self.config, self.worker, self.reporter, begin, os.environ.get(names.ENV_JOB_UID, ""))
        self.reporter.update(
            step=begin.step,
            epoch=self.order.epoch(begin.step * self.plan.global_batch),
            loss=begin.loss,
            validation_loss=begin.validation_loss,
            perplexity=begin.perplexity,
        )

    def run(self) -> int:
        """Train, evaluate, export. Returns the exit status."""
        self.wishes.listen()  # until here there is nothing to end properly
        training = self.config.training
        first, every = self.begin.step, training.evaluation.every_steps
        batches = data.batches(self.dataset.train, self.plan, self.order, self.worker.rank, first)
        with data.prefetch(batches) as prefetched, self.spending.on("stepping"):
            for step in range(first, training.max_steps):
                started = time.perf_counter()
                with self.spending.on("data"):
                    _, micro_batches = next(prefetched)
                with self.pace.step():
                    loss, votes = self.step(step, micro_batches)
                self.report(step + 1, loss, time.perf_counter() - started, prefetched.waited)
                # Step boundary: weights, optimizer and data position agree on all workers.
                evaluates = bool(every and (step + 1) % every == 0 and not votes.stop)
                if step + 1 < training.max_steps:  # the last step's is below
                    if evaluates:
                        self.evaluate()
                    self.tracking.note(evaluates, votes.tracked, suspect=self.guard.suspects)
                if self.keeper.settle(votes, self.standing):
                    return names.EXIT_STOPPED
        self.spending.turn("exporting")
        self.evaluate()
        self.tracking.note(True, 0, suspect=False)
        self.keeper.finish(self.standing())
        self.export()
        self.tracking.close()
        self.reporter.update(phase="done")
        return 0

    def step(self, step: int, micro_batches: Sequence[data.MicroBatch]) -> tuple[float, Votes]:
        """One optimizer step on the global batch: its loss, and what the workers want to do after it."""
        training = self.config.training
        rate = optim.learning_rate(step, training.optimizer.lr, training.schedule, training.max_steps)
        optim.set_learning_rate(self.engine.optimizer, rate)
        summed = torch.zeros((), dtype=torch.float64, device=self.worker.device)
        for batch in micro_batches:
            with self.pace.forward():
                loss = summed_loss(self.engine, batch, self.worker.device)
            self.engine.backward(loss * self.plan.loss_scale(self.speed.tokens))
            self.keeper.before_update()
            self.engine.step()
            summed += loss.detach()
        loss_sum, *votes = self.worker.sums(summed, *self.votes(step + 1).values())
        mean = loss_sum / self.speed.tokens
        self.guard.check(step + 1, mean, self.engine.skipped_steps)
        return mean, Votes.of(votes).without_saving() if self.guard.suspects else Votes.of(votes)

    def votes(self, step: int) -> Votes:
        """This worker's votes on what to do after `step`."""
        return dataclasses.replace(self.keeper.votes(step), tracked=self.tracking.kept)

    def samples(self, first: int, last: int) -> wire.Samples:
        """Those of the steps `first` to `last`, counted from 1; of this round's, that is: others are behind us."""
        start = max(first - 1, self.begin.step) * self.plan.global_batch
        end = self.order.course.place(last * self.plan.global_batch - 1) + 1
        return wire.Samples(self.order.course.place(start), end)

    def standing(self) -> Standing:
        """Where training stands at this boundary."""
        progress, course = self.reporter.progress, self.order.course
        consumed = progress.step * self.plan.global_batch
        position = course.place(consumed)
        standing = dataclasses.replace(
            Standing.begin(self.config, self.dataset.digest),
            step=progress.step,
            position=position,
            left_out=self.begin.left_out + position - (consumed + course.offset),
            loss=progress.loss,
            validation_loss=progress.validation_loss,
            perplexity=progress.perplexity,
            **self.guard.standing(),
        )
        return self.tracking.carry(standing)

    def report(self, step: int, loss: float, seconds: float, waited: float) -> None:
        """Tell the agent, and now and then the log, about the step just done."""
        self.spending.stepped()
        norm = self.engine.get_global_grad_norm()
        self.reporter.update(
            phase="training",
            step=step,
            epoch=self.order.epoch(step * self.plan.global_batch),
            loss=loss,
            learning_rate=self.engine.optimizer.param_groups[0]["lr"],
            gradient_norm=float(norm) if norm is not None and math.isfinite(norm) else None,
            step_seconds=seconds,
            data_wait_seconds=waited,
            pace=self.pace.told(seconds),
            **self.speed.of(seconds),
        )
        progress = self.reporter.progress
        if progress.spent:
            self.steps.write(step, progress.round, seconds, progress.spent)
        if is_worth_a_line(step, self.config.training.max_steps):
            self.say(step_line(self.reporter.progress))

    def evaluate(self) -> None:
        """Validation loss and perplexity, where there is validation data."""
        limit = self.config.training.evaluation.max_batches
        with self.spending.on("evaluating"):
            self.reporter.update(phase="evaluating")
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
                "tokens": self.standing().trained * self.config.data.sequence_length,
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


def main() -> None:
    """Run one worker."""
    reporter = None
    try:
        stacks.offer()
        config = parse(os.environ[names.ENV_SPEC])
        reporter = Reporter(int(os.environ["RANK"]), config.training.max_steps)
        status = Trainer(config, reporter).run()
    except Exception as error:  # noqa: BLE001 - the process's outermost edge
        errors.write_error_file(error, reporter.progress.step if reporter else 0)
        if reporter:
            reporter.close()
        traceback.print_exc()
        sys.stdout.flush()
        # At once: a thread that still writes a checkpoint, or waits for a peer that is gone, must not hold up the end.
        os._exit(1)
    reporter.close()
    torch.distributed.destroy_process_group()
    # What thousands of modules tidy up takes a second, for which the next round would wait, and some of them complain.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
