"""Trainer scenarios in real workers without a cluster: `python trainer_fleet.py SCENARIOS RESULTS [S3_ROOT PORT]`.

The workers are forked from this process after it has imported everything, because ten imports of torch on a small
machine would take longer than all the training. A scenario is {name, kind, world, spec, ...}; see `KINDS`, and for what
may happen meanwhile `play`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch._dynamo
import torch._inductor.compile_fx
import transformers
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from llmtrain_operator.contract import codec, names, wire
from llmtrain_trainer import data, distributed, sample, train
from llmtrain_trainer.checkpoint import cadence
from llmtrain_trainer.config import parse
from llmtrain_trainer.progress import Reporter
from tests.support import s3


class Recorder(Reporter):
    """A reporter that also keeps every step's progress, which datagrams do not promise."""

    def __init__(self, rank, max_steps):
        self.steps = {}
        super().__init__(rank, max_steps)

    def update(self, **changes):
        """Report, and remember the newest state of each step."""
        super().update(**changes)
        self.steps[self.progress.step] = codec.encode(self.progress)


def record(scenario, rank):
    """Train; the result is rank 0's progress at every step."""
    config = parse(json.dumps(scenario["spec"]))
    recorder = Recorder(rank, config.training.max_steps)
    status = train.Trainer(config, recorder).run()
    return {"status": status, "steps": [json.loads(text) for step, text in recorder.steps.items() if step]}


def hampered(scenario, rank):
    """Like `record`; each forward pass of the last rank takes `slow` seconds longer, and its batches come `late`."""
    last = rank == scenario["world"] - 1
    forward, fetch = train.summed_loss, data.Prefetch.__next__

    def slow_forward(*args):
        time.sleep(scenario["slow"])
        return forward(*args)

    def late_fetch(prefetched):
        batch = fetch(prefetched)
        time.sleep(scenario["late"])
        prefetched.waited += scenario["late"]
        return batch

    if last:
        train.summed_loss, data.Prefetch.__next__ = slow_forward, late_fetch
    return record(scenario, rank)


def footprint(scenario, rank):
    """Train; the result is what the worker's memory grew by, at its peak while it trained, since before it had a model.

    The kernel's own account (VmHWM), so allocators' slack is in it. The peak of loading is told apart.
    """
    config = parse(json.dumps(scenario["spec"]))
    found = {}
    build, run = train.build_model, train.Trainer.run

    def build_from(*args):
        found["before"] = _resident("VmRSS", forget_peak=True)
        return build(*args)

    def run_from(trainer):
        found["loading"] = _resident("VmHWM", forget_peak=True) - found["before"]
        return run(trainer)

    train.build_model, train.Trainer.run = build_from, run_from
    train.Trainer(config, Reporter(rank, config.training.max_steps)).run()
    found["training"] = _resident("VmHWM") - found["before"]
    return found


def _resident(what, *, forget_peak=False):
    """Bytes, as the kernel counts them: VmRSS now, VmHWM at the most since the last time it was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")
    return kilobytes * 1024


def run_main(scenario, rank):
    """The entry point as the agent runs it, error file and exit status included."""
    os.environ[names.ENV_SPEC] = json.dumps(scenario["spec"])
    train.main()


def plain(scenario, rank):
    """An ordinary single-process DeepSpeed loop with the same global batch; only `join` is the trainer's.

    Byte tokens of the one source file, whole batches in the file's order, Hugging Face's own mean loss.
    """
    distributed.join()
    spec = scenario["spec"]
    training, length = spec["training"], spec["data"]["sequenceLength"]
    torch.manual_seed(training["seed"])
    shape = spec["model"]["architecture"]
    model = LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=257,
            hidden_size=shape["hiddenSize"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kvHeads"],
            intermediate_size=shape["intermediateSize"],
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
        )
    )
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1]
    peak, warmup = training["optimizer"]["lr"], training["schedule"]["warmupSteps"]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.95)
    )

    size = training["globalBatchSize"]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup)),
        config={
            "train_micro_batch_size_per_gpu": size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
        },
    )
    text = np.frombuffer(Path(spec["data"]["source"]).read_bytes(), dtype=np.uint8).astype(np.int64)
    losses = []
    for step in range(training["maxSteps"]):
        starts = [(step * size + row) * length for row in range(size)]
        tokens = torch.from_numpy(np.stack([text[start : start + length + 1] for start in starts]))
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return {"losses": losses}


def reload(scenario, rank):
    """An exported model's mean loss over the validation samples, by transformers alone, and a text of its."""
    spec = scenario["spec"]
    length = spec["data"]["sequenceLength"]
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["output"], dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["output"])
    text = Path(spec["data"]["source"]).read_text()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    windows = (len(ids) - 1) // length
    held_out = round(windows * spec["data"]["validationFraction"])
    starts = [(windows - held_out + row) * length for row in range(held_out)]
    tokens = torch.tensor([ids[start : start + length + 1] for start in starts])
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss.item()
    return {"loss": loss, "text": sample.generate(spec["output"], "def ", 20, temperature=0.8, seed=1)}


KINDS = {
    "record": record,
    "footprint": footprint,
    "hampered": hampered,
    "main": run_main,
    "plain": plain,
    "reload": reload,
}


def child(scenario, rank, port, directory):
    """One worker's life; never returns."""
    status = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(scenario["world"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_ERROR_FILE": str(directory / f"error-{rank}.json"),
            names.ENV_PROGRESS_SOCKET: str(directory / "progress.sock"),
            **scenario.get("env", {}),
        }
        cadence.FIRST_PAUSE = scenario.get("pause", cadence.FIRST_PAUSE)
        scenario["spec"] = json.loads(json.dumps(scenario["spec"]).replace("{rank}", str(rank)))
        result = KINDS[scenario["kind"]](scenario, rank)
        (directory / f"result-{rank}.json").write_text(json.dumps(result))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001  the outermost edge of a forked process: it must not run the parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def play(scenario, server):
    """Fork the workers and wait for them.

    `before` is a shell command to run first. `events` are awaited one after the other in what the last rank reports:
    `step` that it has done, `error` (reason) of its checkpoints, or `saved`: a checkpoint newer than the step at the
    event before, and of this run. Then `signal` goes to it (`all`: to every worker), `shell` is run, or `s3` is called
    on the server.
    """
    started = time.monotonic()
    if "before" in scenario:
        subprocess.run(scenario["before"], shell=True, check=True)
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
        directory = Path(name)
        reports.bind(str(directory / "progress.sock"))
        reports.settimeout(60)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = []
        for rank in range(scenario["world"]):
            pid = os.fork()
            if pid == 0:
                child(scenario, rank, port, directory)
            workers.append(pid)
        try:
            seen, losses = follow(scenario.get("events", []), reports, workers, server)
        except TimeoutError:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            raise
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        files = {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}
        took = round(time.monotonic() - started, 2)
        return {"codes": codes, "seconds": took, "seen": seen, "losses": losses, **files}


def follow(events, reports, workers, server):
    """Wait for each event and do what is to be done; the progress at each, and all losses heard of rank 0 by step."""
    seen, losses, begun = [], {}, 0
    for event in events:
        while True:
            heard = codec.decode(wire.Progress, reports.recv(65536))
            if heard.rank == 0 and heard.loss is not None and heard.phase == "training":
                losses[heard.step] = heard.loss
            if heard.rank == len(workers) - 1 and has_come(event, heard, begun):
                break
        seen.append(json.loads(codec.encode(heard)))
        begun = heard.step
        for pid in workers if event.get("all") else workers[-1:]:
            if "signal" in event:
                os.kill(pid, event["signal"])
        if "shell" in event:
            subprocess.run(event["shell"], shell=True, check=True)
        if "s3" in event:
            getattr(server, event["s3"])()
    return seen, losses


def has_come(event, heard, begun):
    """Whether this is the progress that an event waits for."""
    said = heard.checkpoints or wire.Checkpoints()
    if "error" in event:
        return said.error_reason == event["error"] and heard.step >= begun + event.get("steps", 0)
    if "saved" in event:
        return not said.error_reason and (said.step or 0) > max(begun, said.restored_step or 0)
    return heard.step >= event["step"]


class Server(s3.S3Server):
    """What events do to the S3 server."""

    def change_keys(self):
        """Its clients' keys are wrong from now on; or right again."""
        self.stop()
        s3.SECRET_KEY = s3.SECRET_KEY[::-1]
        self.start()

    def lose_bucket(self):
        """The bucket vanishes."""
        (self.root / "bucket").rename(self.root.with_name("lost-bucket"))

    def find_bucket(self):
        """It comes back."""
        self.root.with_name("lost-bucket").rename(self.root / "bucket")


def main():
    """Play every scenario of the file, one after the other."""
    scenarios = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    server = None
    if len(sys.argv) > 3:
        server = Server(Path(sys.argv[3]), port=int(sys.argv[4]))
        server.bucket("bucket")
        server.start()
    for scenario in scenarios:
        results[scenario["name"]] = play(scenario, server)
        print(f"scenario {scenario['name']}: {results[scenario['name']]['seconds']} s", flush=True)
    if server:
        server.stop()
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
