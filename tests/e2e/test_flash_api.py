"""A user's own scripts with snapshots in memory, as torchrun and the frameworks run them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmtrain_operator.contract import codec, wire
from llmtrain_trainer.errors import ConfigError
from llmtrain_trainer.flash import Checkpointer, callbacks

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "scripts" / "train_flash.py"


@pytest.mark.parametrize("words", [(), ("--fsdp",)], ids=["ddp", "fsdp2"])
def test_a_killed_worker_costs_nothing_but_the_step_it_was_in(tmp_path, words):
    """The restarted workers go on from the last snapshot, and end with the weights of a run that was never broken."""
    store = tmp_path / "flash"
    store.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else attempts may find the dead one's address in it
    ended = subprocess.run(
        [*torchrun, SCRIPT, f"--marker={tmp_path / 'marker'}", *words],
        env=os.environ
        | own_store
        | {
            "LLMTRAIN_FLASH": str(store),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-5000:]
    for rank in (0, 1):
        begun = re.findall(rf"rank {rank} begins after step (\d+) with (.*)", ended.stdout)
        assert begun == [("0", "{}"), ("7", "{'samples': 224}"), ("0", "{}")]
    digests = re.findall(r"[0-9a-f]{64}", ended.stdout)
    assert len(digests) == 4
    assert len(set(digests)) == 1


class Broken(Exception):  # noqa: N818 - it stands for a worker's death
    """Training ends in the midst."""


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A flash store, for a script in this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMTRAIN_FLASH", str(tmp_path))
    return tmp_path


def test_a_script_without_process_group_and_store_just_trains(monkeypatch):
    """It begins at 0 and may call everything."""
    monkeypatch.delenv("LLMTRAIN_FLASH", raising=False)
    model = torch.nn.Linear(2, 1)
    with Checkpointer(model, torch.optim.SGD(model.parameters())) as checkpointer:
        assert checkpointer.restore() == 0
        checkpointer.step(1, 0.5)
        assert checkpointer.newest is None


@pytest.mark.parametrize(
    ("every", "spec", "newest"),
    [
        (None, {}, 6),
        (None, {"checkpoint": {"flash": {"everySteps": 3}}}, 4),
        (5, {"checkpoint": {"flash": {"everySteps": 3}}}, 6),
        (None, {"checkpoint": {"flash": {"enabled": False}}}, None),
    ],
    ids=["default", "the job's", "the script's", "off"],
)
def test_the_spec_says_how_often_unless_the_script_does(every, spec, newest, store, monkeypatch):
    """The first step has a snapshot, and then one in so many."""
    monkeypatch.setenv("LLMTRAIN_SPEC", json.dumps(spec))
    model = torch.nn.Linear(2, 1)
    with Checkpointer(model, torch.optim.SGD(model.parameters()), every=every) as checkpointer:
        checkpointer.restore()
        _wait_for_memory(checkpointer)
        for step in range(1, 7):
            checkpointer.step(step)
        assert checkpointer.newest == newest


def _wait_for_memory(checkpointer: Checkpointer) -> None:
    """All slots are had in the background; a step that finds none has no snapshot."""
    deadline = time.monotonic() + 60
    while checkpointer._session and len(checkpointer._session.snapshots._rooms) < 3:
        assert time.monotonic() < deadline, checkpointer._session.snapshots.trouble
        time.sleep(0.01)


def test_a_wrong_interval_is_refused(store):
    """As one in the spec is."""
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ConfigError, match=r"everySteps: 0 is neither a positive number of steps nor auto"):
        Checkpointer(model, torch.optim.SGD(model.parameters()), every=0)


def test_progress_is_told_to_the_agent(tmp_path, monkeypatch):
    """With the step, the loss, and whatever else of it the script knows; the last word is that it is done."""
    path = str(tmp_path / "s")
    monkeypatch.setenv("LLMTRAIN_PROGRESS_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        model = torch.nn.Linear(2, 1)
        with Checkpointer(model, torch.optim.SGD(model.parameters()), max_steps=9) as checkpointer:
            checkpointer.restore()
            checkpointer.step(4, model.weight.sum() * 0 + 2, epoch=0.5)
        agent.setblocking(False)
        heard = [codec.decode(wire.Progress, agent.recv(65536)) for _ in range(4)]
    assert [(each.phase, each.step, each.loss, each.epoch) for each in heard] == [
        ("loading", 0, None, 0.0),
        ("training", 0, None, 0.0),
        ("training", 4, 2.0, 0.5),
        ("done", 4, 2.0, 0.5),
    ]
    assert heard[0].max_steps == 9


class Net(torch.nn.Module):
    """As Hugging Face's Trainer wants it: a loss in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layers(x) - labels).square().mean()}


def samples() -> list[dict[str, torch.Tensor]]:
    """Five batches of four."""
    random = torch.Generator().manual_seed(5)
    return [{"x": torch.rand(3, generator=random), "labels": torch.rand(1, generator=random)} for _ in range(20)]


def with_hugging_face(directory: Path, break_after: int, begun: list[int]) -> torch.nn.Module:
    """Fifteen steps of batches that the Trainer shuffles."""
    import transformers

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, _args, state, _control, **_kwargs):
            begun.append(state.global_step)

        def on_step_end(self, _args, state, _control, **_kwargs):
            assert state.epoch == pytest.approx(state.global_step / 5)
            if state.global_step == break_after:
                raise Broken

    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = Net()
    flash = [callbacks.hugging_face(), Watch()]
    transformers.Trainer(model=model, args=arguments, train_dataset=samples(), callbacks=flash).train()
    return model


def with_lightning(directory: Path, break_after: int, begun: list[int]) -> torch.nn.Module:
    """Three epochs of batches in their order."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch):
            return self.net(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    class Watch(pl.Callback):
        def on_train_start(self, trainer, _):
            begun.append(trainer.global_step)

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == break_after:
                raise Broken

    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callbacks.lightning(), Watch()],
    )
    model = Module()
    trainer.fit(model, torch.utils.data.DataLoader(samples(), batch_size=4))
    assert trainer.global_step == 15
    return model


def with_accelerate(directory: Path, break_after: int, begun: list[int]) -> torch.nn.Module:
    """Three epochs of shuffled batches, in a loop of the user's own."""
    import accelerate

    by_epoch = accelerate.DataLoaderConfiguration(use_seedable_sampler=True, data_seed=1)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=by_epoch)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    loader = torch.utils.data.DataLoader(samples(), batch_size=4, shuffle=True)
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    with callbacks.accelerate_checkpointer(accelerator, model, optimizer, scheduler) as checkpointer:
        step = checkpointer.restore()
        begun.append(step)
        first, seen = divmod(step, 5)
        for epoch in range(first, 3):
            loader.set_epoch(epoch)
            batches = accelerator.skip_first_batches(loader, seen) if epoch == first and seen else loader
            for batch in batches:
                if seen:
                    checkpointer.rewind_generators()
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                checkpointer.step(step)
                if step == break_after:
                    raise Broken
    return model


@pytest.mark.parametrize("break_after", [8, 10, 15], ids=["within an epoch", "at an epoch's end", "at the very end"])
@pytest.mark.parametrize("train", [with_hugging_face, with_lightning, with_accelerate])
def test_a_framework_goes_on_from_the_snapshot(train, break_after, store, monkeypatch):
    """At the step, the batch and the random numbers where it was: it ends with the weights of an unbroken run."""
    begun: list[int] = []
    torch.manual_seed(3)
    with pytest.raises(Broken):
        train(store, break_after, begun)
    torch.manual_seed(3)
    resumed = train(store, 0, begun)
    monkeypatch.delenv("LLMTRAIN_FLASH")
    torch.manual_seed(3)
    unbroken = train(store, 0, begun)
    assert begun == [0, break_after, 0]
    assert all(torch.equal(one, other) for one, other in zip(resumed.parameters(), unbroken.parameters(), strict=True))
