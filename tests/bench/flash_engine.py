"""One worker of `make bench-flash` with a real DeepSpeed engine, ZeRO 2: its own save beside our snapshot of it.

`python -P flash_engine.py FOLDER RANK HOST GIGABYTES REPLICAS`; see `flash_worker.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from llmtrain_operator.contract import names
from llmtrain_trainer import config, distributed, models
from llmtrain_trainer.checkpoint.extents import Copier, Extents
from llmtrain_trainer.checkpoint.state import EngineState
from llmtrain_trainer.data.tokenizers import ByteTokenizer
from llmtrain_trainer.engine import start_engine
from llmtrain_trainer.flash.session import Session
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.progress import Reporter
from tests.bench.durable import SPEC


def main(folder: Path, rank: int) -> None:
    """Measure, and write what the slower worker took."""
    worker = distributed.join()
    parsed = config.parse(json.dumps(SPEC))
    engine = start_engine(parsed, models.build_model(parsed, ByteTokenizer()), worker)
    tokens = torch.randint(0, 256, (1, 16))
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
    state = EngineState(engine)
    store = Store(folder / str(rank), os.environ[names.ENV_JOB_UID])
    session = Session(config.Flash(replicas=0), worker, Reporter(rank, 0), store)
    session.recall.survey()
    session.begin(state, {}, None)
    layout = Extents.of(state.pieces())
    warm = torch.zeros(layout.size, dtype=torch.uint8)
    found: dict[str, list[float]] = {"memcpy": [], "snapshot": [], "deepspeed": []}
    step = 0

    def slowest(seconds: float) -> float:
        return max(worker.gather(seconds))

    def snapshot() -> float:
        nonlocal step
        step += 1
        worker.gather(None)
        stall = slowest(session.snapshots.take(state, {"step": step}, nominate=True))
        while worker.sums(session.snapshots.acknowledged)[0] < worker.world_size:
            time.sleep(0.002)
        session.snapshots.commit()
        return stall

    def memcpy() -> float:
        worker.gather(None)
        began = time.perf_counter()
        Copier(torch.device("cpu")).copy(layout.extents, warm)
        return slowest(time.perf_counter() - began)

    while len(session.snapshots._rooms) < 3:
        time.sleep(0.01)
    memcpy()
    snapshot()
    for _ in range(15):
        found["memcpy"].append(memcpy())
        found["snapshot"].append(snapshot())
    where = Path(worker.from_first(tempfile.mkdtemp()))
    for _ in range(3):
        worker.gather(None)
        began = time.perf_counter()
        engine.save_checkpoint(str(where), tag="bench")
        found["deepspeed"].append(slowest(time.perf_counter() - began))
    worker.gather(None)
    if worker.is_first:
        shutil.rmtree(where)
    (folder / f"{rank}.json").write_text(json.dumps({"size": layout.size, "overhead": 0, **found}))
    worker.gather(None)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
