"""Save and load engine states in real process groups: `python checkpoint_fleet.py CASES.json RESULTS.json DIRECTORY`.

The cases of a world size share one process group, forked from this process after its imports, but for those at ZeRO
stage 3: it replaces torch's linear function for the whole process, which rounds otherwise in bf16. A "save" case
trains some steps, writes each rank's pieces to a file of plain bytes, and goes on; a "load" case makes an engine of its
own and loads a saved one. What the engine holds is read by DeepSpeed's own functions, not by the code under test.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import deepspeed
import deepspeed.accelerator
import torch
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from llmtrain_trainer import config, distributed
from llmtrain_trainer.checkpoint import layout, pieces
from llmtrain_trainer.checkpoint.state import EngineState
from llmtrain_trainer.engine import start_engine
from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.flash.notices import Notices
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.recall import Recall
from llmtrain_trainer.flash.snapshots import Snapshots, Who
from llmtrain_trainer.flash.store import Store

EVALUATION = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


class Tiny(torch.nn.Module):
    """Odd sizes, a tied embedding, a frozen layer, a persistent buffer and one that is not, dropout."""

    def __init__(self, dropout, seed, hidden):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(11, 6)
        self.frozen = torch.nn.Linear(6, 5).requires_grad_(False)
        self.body = torch.nn.Linear(5, hidden)
        self.norm = torch.nn.LayerNorm(hidden)
        self.out = torch.nn.Linear(hidden, 6, bias=False)
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.dropout = torch.nn.Dropout(dropout)
        self.register_buffer("scale", 1 + torch.rand(3))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, ids):
        hidden = self.frozen(self.embedding(ids))
        hidden = self.norm(self.dropout(torch.tanh(self.body(hidden)))) * self.scale.sum()
        logits = self.head(self.out(hidden))
        return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def engine_of(case, worker):
    """An engine as the trainer starts it. `seed` makes other weights, so that only loading can bring the right ones."""
    training = config.Training(
        max_steps=100,
        global_batch_size=6,
        micro_batch_size=3,
        precision=case.get("precision", "fp32"),
        optimizer=config.from_dict(config.Optimizer, {"lr": 0.05, **case.get("optimizer", {})}, "optimizer"),
    )
    chosen = config.Config(
        config.Model(preset="tiny"),
        config.Data("nowhere"),
        training,
        config.DeepSpeed(case["stage"], case.get("offload", "none"), case.get("config", {})),
    )
    engine = start_engine(chosen, Tiny(case.get("dropout", 0.0), case.get("seed", 0), case.get("hidden", 7)), worker)
    if getattr(engine.optimizer, "round_robin_gradients", False):
        link_in_round_robin_order(engine.optimizer)
    return engine


def link_in_round_robin_order(optimizer):
    """Let `safe_get_full_*` look in the right places: DeepSpeed 0.19.8 minds the order only where there is padding."""
    paddings, optimizer.round_robin_bit16_padding = optimizer.round_robin_bit16_padding, [[1]] * 2
    optimizer._link_all_hp_params()
    optimizer.round_robin_bit16_padding = paddings


def train(engine, steps, first=0):
    """Steps on the same sequences on every rank; the losses."""
    losses = []
    for step in range(first, first + steps):
        for _ in range(engine.gradient_accumulation_steps()):
            generator = torch.Generator().manual_seed(step)
            loss = engine(torch.randint(0, 11, (2, 5), generator=generator))
            engine.backward(loss)
            engine.step()
        losses.append(loss.item())
    return losses


def digests(engine):
    """Counters, loss on a fixed batch, and a digest of each whole tensor of the state, by DeepSpeed's account."""
    engine.eval()
    with torch.no_grad():
        found = {"evaluation": engine(EVALUATION).item(), "counters": counters(engine)}
    engine.train()
    for name, weight in engine.module.named_parameters():
        whole = states(engine, weight)
        with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
            found[f"{name} model"] = digest(weight)
        if weight.requires_grad:
            whole["master"] = weight if is_plain(engine) else full_master(engine, weight)
            for kind, tensor in whole.items():
                found[f"{name} {kind}"] = tensor if isinstance(tensor, float) else digest(tensor)
    return found | {f"{name} buffer": digest(buffer) for name, buffer in engine.module.named_buffers()}


def digest(tensor):
    return hashlib.sha256(bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())).hexdigest()[:16]


def is_plain(engine):
    """Stage 0 in fp32: the optimizer has the model's own weights."""
    return engine.optimizer is engine.basic_optimizer


def wrapped(engine, weight):
    """Stage 0 in half precision: the wrapper's copy of a weight."""
    for weights, masters in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
        for candidate, master in zip(weights, masters, strict=True):
            if candidate is weight:
                return master
    raise AssertionError


def full_master(engine, weight):
    return safe_get_full_fp32_param(weight) if engine.zero_optimization_stage() else wrapped(engine, weight)


def states(engine, weight):
    """The optimizer's state of one parameter; a number as a float."""
    if not weight.requires_grad:
        return {}
    if engine.zero_optimization_stage() == 0:
        key = weight if is_plain(engine) else wrapped(engine, weight)
        state = engine.basic_optimizer.state.get(key, {})
        return {kind: value.item() if value.dim() == 0 else value for kind, value in state.items()}
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer._hp_optimizer_states_linked = False  # DeepSpeed raises with several parameter groups otherwise
        if optimizer.optimizer.state:
            optimizer._lazy_init_hp_params_optimizer_state()
    every = list(optimizer.optimizer.state.values())
    kinds = sorted({kind for state in every for kind in state})
    found = {kind: safe_get_full_optimizer_state(weight, kind) for kind in kinds if kind != "step"}
    steps = {float(state["step"]) for state in every if "step" in state}
    return {**found, **({"step": max(steps)} if steps else {})}


def save(case, worker, directory):
    """Train, write, go on. The results have what a load has to bring back, and the losses after it."""
    engine = engine_of(case, worker)
    losses = train(engine, case["steps"])
    state = EngineState(engine)
    owned = state.pieces()
    segments = pieces.placed(owned)
    data = torch.zeros(layout.data_bytes(segments), dtype=torch.uint8)
    for piece, segment in zip(owned, segments, strict=True):
        data[segment.offset : segment.end] = pieces.as_bytes(piece.tensor)
    data.numpy().tofile(directory / f"{case['name']}-{worker.rank}.bin")
    index = {"segments": [segment.to_json() for segment in segments], "rng": state.rng(), "scalars": state.scalars()}
    (directory / f"{case['name']}-{worker.rank}.json").write_text(json.dumps(index))
    keep_in_memory(case, worker, state, directory)
    at_save = digests(engine)
    losses += train(engine, case.get("more", 0), case["steps"])
    return {"losses": losses, "saved": at_save, "end": digests(engine)}


def store_of(name, directory):
    """Where all ranks' snapshots of a case lie: as if all had been workers of one pod."""
    root = directory / f"{name}.flash"
    root.mkdir(exist_ok=True)
    return Store(root, "job")


def keep_in_memory(case, worker, state, directory):
    """A snapshot as the trainer takes it."""
    who = Who("job", 1, worker.world_size, worker.rank, worker.rank)
    store = store_of(case["name"], directory)
    snapshots = Snapshots(store, who, worker.device, Notices(store, worker.rank, 1), 3)
    snapshots.prepare(state, {}, None)
    snapshots.reserve()
    while not snapshots.ready:
        time.sleep(0.001)
    snapshots.take(state, {"step": case["steps"]}, nominate=True)


def from_memory(case, worker, state, directory):
    """Fill from the snapshots of another case; the round is another."""
    recall = Recall(store_of(case["from"], directory), worker, 0, Pass(2, ""))
    recall.survey()
    recalled = recall.load(state, 0)
    assert recalled.edition.step == recalled.state["training"]["step"]
    assert not recalled.skipped


def load(case, worker, directory):
    """Fill an engine from the files of another case, and train on."""
    engine = engine_of({"seed": 1, **case}, worker)
    train(engine, case.get("warm", 0))
    files = sorted(directory.glob(f"{case['from']}-?.json"))
    indices = [json.loads(file.read_text()) for file in files]
    shards = [[layout.Segment.from_json(raw) for raw in index["segments"]] for index in indices]
    assert all(index["scalars"] == indices[0]["scalars"] for index in indices)

    def fill(wanted):
        targets = [pieces.as_bytes(piece.tensor).numpy() for piece in wanted]
        for read in layout.plan_reads([piece.segment for piece in wanted], shards, chunk=256):
            with files[read.shard].with_suffix(".bin").open("rb") as file:
                file.seek(read.offset)
                block = torch.frombuffer(bytearray(file.read(read.length)), dtype=torch.uint8).numpy()
            for copy in read.copies:
                begin = copy.source - read.offset
                targets[copy.wanted][copy.target : copy.target + copy.length] = block[begin : begin + copy.length]

    state = EngineState(engine)
    try:
        if case.get("memory"):
            from_memory(case, worker, state, directory)
        else:
            state.load(indices[0]["scalars"], fill)
    except (TrainerError, layout.LayoutError) as error:
        return {"error": [getattr(error, "reason", "LayoutError"), str(error)]}
    loaded = digests(engine)
    if len(files) == worker.world_size:
        state.load_rng(indices[worker.rank]["rng"])
    losses = train(engine, case.get("more", 0), engine.global_steps)
    return {"loaded": loaded, "losses": losses, "end": digests(engine)}


def counters(engine):
    scaler = getattr(engine.optimizer, "loss_scaler", None) or getattr(engine.optimizer, "loss_scale_config", None)
    return {
        "steps": engine.global_steps,
        "samples": engine.global_samples,
        "skipped": engine.skipped_steps,
        "scale": getattr(scaler, "cur_scale", 1.0),
    }


def child(cases, rank, world, port, directory):
    """One worker's life; never returns."""
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        worker = distributed.join()
        # torch computes in fp16 on any CPU; DeepSpeed asks for one that has instructions for it.
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
        results = {}
        for case in cases:
            started = time.monotonic()
            play = save if "from" not in case else load
            results[case["name"]] = play(case, worker, directory)
            if rank == 0:
                print(f"{case['name']}: {time.monotonic() - started:.2f} s", flush=True)
        (directory / f"results-{rank}").write_text(json.dumps(results))
        torch.distributed.destroy_process_group()
        status = 0
    except BaseException:  # noqa: BLE001  the outermost edge of a forked process: it must not run the parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def launch(cases, world, directory):
    """One process group for all of the cases; the results of every rank, by case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            child(cases, rank, world, port, directory)
        workers.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    if any(codes):
        sys.exit(f"workers ended with {codes}")
    ranks = [json.loads((directory / f"results-{rank}").read_text()) for rank in range(world)]
    return {case["name"]: [rank[case["name"]] for rank in ranks] for case in cases}


def group_of(case):
    """What share a process group; saves come before loads."""
    return "from" in case, case["world"], case["stage"] == 3


def main():
    """Play all saves, then all loads."""
    cases, directory = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[3])
    results = {}
    cases.sort(key=group_of)
    for (_, world, _), chosen in itertools.groupby(cases, key=group_of):
        results |= launch(list(chosen), world, directory)
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
