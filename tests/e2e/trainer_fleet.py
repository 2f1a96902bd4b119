"""Trainer scenarios in real worker processes without a cluster: `python trainer_fleet.py SCENARIOS.json RESULTS.json`.

The workers are forked from this process after it has imported everything, because ten imports of torch on a small
machine would take longer than all the training. A scenario is {name, kind, world, spec, ...}; see `KINDS`.
"""

from __future__ import annotations

import json
import os
import socket
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

from llmtrain_operator.contract import names, wire
from llmtrain_trainer import distributed, sample, train
from llmtrain_trainer.config import parse
from llmtrain_trainer.progress import Reporter


class Recorder(Reporter):
    """A reporter that also keeps every step's progress, which datagrams do not promise."""

    def __init__(self, rank, max_steps):
        self.steps = {}
        super().__init__(rank, max_steps)

    def update(self, **changes):
        """Report, and remember the newest state of each step."""
        super().update(**changes)
        self.steps[self.progress.step] = wire.encode(self.progress)


def record(scenario, rank):
    """Train; the result is rank 0's progress at every step."""
    config = parse(json.dumps(scenario["spec"]))
    recorder = Recorder(rank, config.training.max_steps)
    status = train.Trainer(config, recorder).run()
    return {"status": status, "steps": [json.loads(text) for step, text in recorder.steps.items() if step]}


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


KINDS = {"record": record, "main": run_main, "plain": plain, "reload": reload}


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
        }
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


def play(scenario):
    """Fork the workers and wait for them. `signal` {number, step} goes to the last rank once it has done that step."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
        directory = Path(name)
        reports.bind(str(directory / "progress.sock"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = []
        for rank in range(scenario["world"]):
            pid = os.fork()
            if pid == 0:
                child(scenario, rank, port, directory)
            workers.append(pid)
        if "signal" in scenario:
            reports.settimeout(60)
            last = scenario["world"] - 1
            while (heard := wire.decode(wire.Progress, reports.recv(65536))).rank != last or (
                heard.step < scenario["signal"]["step"]
            ):
                pass
            os.kill(workers[last], scenario["signal"]["number"])
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        files = {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}
        return {"codes": codes, "seconds": round(time.monotonic() - started, 2), **files}


def main():
    """Play every scenario of the file, one after the other."""
    scenarios = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    for scenario in scenarios:
        results[scenario["name"]] = play(scenario)
        print(f"scenario {scenario['name']}: {results[scenario['name']]['seconds']} s", flush=True)
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
