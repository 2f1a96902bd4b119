"""What the agent reads of an error."""

from __future__ import annotations

import json

import pytest
import torch

from llmtrain_operator.contract.wire import Samples
from llmtrain_trainer import errors
from llmtrain_trainer.agent.failures import describe
from llmtrain_trainer.divergence import MOST_SKIPS, DivergenceGuard
from llmtrain_trainer.spikes import Spikes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(errors.ConfigError("spec.x: no"), "InvalidConfig", id="own"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "OutOfMemory", id="cuda"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory"), "OutOfMemory", id="cpu"),
        pytest.param(MemoryError(), "OutOfMemory", id="python"),
        pytest.param(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), "PeerLost", id="gloo"),
        pytest.param(torch.distributed.DistBackendError("NCCL error: remote process exited"), "PeerLost", id="nccl"),
        pytest.param(ValueError("gloo"), "UserError", id="words-of-another-error"),
        pytest.param(RuntimeError("shapes do not match"), "UserError", id="a-bug"),
    ],
)
def test_every_exception_has_a_reason(error, reason):
    """Libraries name some causes only in their message."""
    assert errors.reason_of(error) == reason


def test_the_error_file_is_torch_elastics_with_reason_and_step(tmp_path, monkeypatch):
    """Remedy and traceback come along."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(MemoryError) as caught:
        bytearray(1 << 62)
    errors.write_error_file(caught.value, 17)
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"].startswith("MemoryError")
    assert "training.microBatchSize" in message["message"]
    assert (message["extraInfo"]["reason"], message["extraInfo"]["step"]) == ("OutOfMemory", 17)
    assert "test_trainer_errors.py" in message["extraInfo"]["py_callstack"]


def test_a_few_skipped_steps_are_forgiven_but_not_a_run_of_them():
    """One update in between starts the count again."""
    guard = DivergenceGuard(Samples, None)
    for step in range(1, MOST_SKIPS):
        guard.check(step, 2.0, skipped=step)
    guard.check(MOST_SKIPS, 2.0, skipped=MOST_SKIPS - 1)
    for step in range(1, MOST_SKIPS):
        guard.check(MOST_SKIPS + step, 2.0, skipped=MOST_SKIPS - 1 + step)
    with pytest.raises(errors.TrainerError, match="gradients were not finite in 25 steps in a row, up to step 50"):
        guard.check(2 * MOST_SKIPS, 2.0, skipped=2 * MOST_SKIPS - 1)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(loss):
    """The message has the step and the loss before it."""
    guard = DivergenceGuard(Samples, None)
    guard.check(1, 2.5, skipped=0)
    with pytest.raises(errors.TrainerError, match=rf"the loss is {loss} at step 2 \(before: 2.5000\)") as caught:
        guard.check(2, loss, skipped=0)
    assert caught.value.reason == "NonFiniteLoss"
    assert caught.value.samples == Samples(2, 2)


def test_a_loss_that_stays_up_ends_the_run_and_names_its_steps():
    """Those in which it was up, and the one before, which may have done it; until then they are under suspicion."""
    guard = DivergenceGuard(Samples, Spikes())
    for step in range(1, 41):
        guard.check(step, 2.0, skipped=0)
    guard.check(41, 9.0, skipped=0)
    assert guard.suspects
    guard.check(42, 2.0, skipped=0)
    assert not guard.suspects
    for step in range(43, 45):
        guard.check(step, 9.0, skipped=0)
    kept = guard.standing()
    again = DivergenceGuard(Samples, Spikes(kept["recent_losses"], kept["risen_losses"]))
    assert again.suspects
    with pytest.raises(
        errors.TrainerError, match=r"has risen to 9.0000, 9.0000, 9.5000 in the steps up to 45"
    ) as caught:
        again.check(45, 9.5, skipped=0)
    assert (caught.value.reason, caught.value.samples) == ("LossSpike", Samples(42, 45))


def test_the_samples_are_in_the_error_file(tmp_path, monkeypatch):
    """The operator leaves them out of later rounds."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    errors.write_error_file(errors.Diverged("NonFiniteLoss", "the loss is nan", Samples(8, 16)), 1)
    text = (tmp_path / "error.json").read_text()
    failure = describe(1, text, "", round_number=1, rank=0, step=0)
    assert (failure.step, failure.samples) == (1, Samples(8, 16))
