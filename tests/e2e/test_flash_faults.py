"""Nothing that is committed is lost, nothing damaged is restored: `make test-faults` (FULL=1 for the whole of it)."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.manifest import Damaged
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.storage import StorageError, open_storage
from llmtrain_trainer.flash import slot
from llmtrain_trainer.flash.header import Edition
from llmtrain_trainer.flash.persist import Claimant, Memory, persist_newest
from llmtrain_trainer.flash.planner import Inventory
from llmtrain_trainer.flash.protocol import Pass
from llmtrain_trainer.flash.recall import Recall
from llmtrain_trainer.flash.server import Server
from llmtrain_trainer.flash.sources import Backing
from llmtrain_trainer.flash.store import Store
from llmtrain_trainer.flash.survey import survey
from tests.support import flash_stores

FULL = os.environ.get("FULL") == "1"
KILLS = 200 if FULL else 24
CORRUPTIONS = 1000 if FULL else 250
ROOT = Path(__file__).parents[2]
RESULT = ROOT / "build" / "bench" / "faults.json"
ROWS: list[dict[str, object]] = []
OLD, NEW = Edition(8, 1, 2), Edition(9, 1, 2)
BY = Pass(1, "key")


@pytest.fixture(scope="module", autouse=True)
def result():
    yield
    if FULL:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps({"rows": ROWS}, indent=2) + "\n")


def note(what, value, target, *, met, detail):
    ROWS.append({"what": what, "value": value, "unit": "", "target": target, "met": met, "detail": detail})


@pytest.fixture
def memory():
    with tempfile.TemporaryDirectory(prefix="llmtrain-test-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.timeout(3000 if FULL else 400)
def test_whoever_is_killed_whenever_no_committed_step_is_lost(memory, tmp_path):
    """Workers, agents, pods and whole memories, at random instants; what is restored is exact to the bit."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("flash_fleet.py"))]
    arguments = [str(KILLS), "20261129", str(memory), str(tmp_path / "result.json")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    events = json.loads((tmp_path / "result.json").read_text())
    wrong = [
        event for event in events if event["errors"] or not event["exact"] or event["lost"] or not event["started"]
    ]
    kinds = Counter(event["after"].split(" ")[0] for event in events if event["after"])
    restores = sum(len(event["restored"]) for event in events)
    note("kills", KILLS, ">= 200", met=KILLS >= 200, detail=f"of {dict(kinds)}; {restores} restores, all exact")
    note("lost committed steps", sum(event["lost"] for event in events), "0", met=not wrong, detail="")
    note("unreadable stores", sum(len(event["skipped"]) for event in events), "0", met=not wrong, detail="")
    assert not wrong, wrong[:3]
    assert not [event["skipped"] for event in events if event["skipped"]]
    assert len(events) == KILLS + 1


class Alone:
    """A worker that is the only one of its round, and sees what another member has."""

    rank, world_size, is_first = 0, 1, True

    def __init__(self, other):
        self._other = other

    def gather(self, value):
        return [value, self._other] if isinstance(value, Inventory) else [value]

    def from_first(self, value):
        return value


class Whole:
    """A state that needs all of `flash_stores.PARAMETERS`."""

    def __init__(self):
        sizes = {(name, kind): size for name, size in flash_stores.PARAMETERS.items() for kind in flash_stores.KINDS}
        self.tensors = {key: torch.full((size,), float("nan")) for key, size in sizes.items()}

    def load(self, scalars, fill):
        assert scalars["groups"] == 1
        fill([Piece(name, kind, 0, tensor) for (name, kind), tensor in self.tensors.items()])

    def reseed(self, step):
        pass

    def is_exactly(self, edition):
        there = flash_stores.numbers(edition)
        return all(torch.equal(tensor, torch.from_numpy(there[key])) for key, tensor in self.tensors.items())


def two_members(folder):
    """Each with its own snapshots of two steps and copies of the other's."""
    for member in range(2):
        store = flash_stores.store_in(folder / f"member-{member}")
        for number, edition in enumerate((OLD, NEW)):
            flash_stores.fill(store.own(0, number), edition, member)
            flash_stores.fill(store.replica(edition, 1 - member, number), edition, 1 - member)


def flip(file, dice):
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def truncate(file, dice):
    os.truncate(file, dice.randrange(file.stat().st_size))


def empty(file, dice):
    file.write_bytes(b"")


def lose(file, dice):
    """A whole snapshot: what lost its checksums alone is trusted by its head, as one that is new is."""
    slot.remove(file.with_suffix(""))


def zeros(file, dice):
    data = bytearray(file.read_bytes())
    at = dice.randrange(len(data))
    data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    file.write_bytes(data)


def swap(file, dice):
    """With a file of the same kind, of another snapshot: also an older head over newer data."""
    others = [each for each in file.parent.glob(f"*{file.suffix}") if each != file]
    if others:
        other = dice.choice(others)
        kept = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(kept)


DAMAGES = (flip, flip, truncate, empty, lose, zeros, swap)


class Moody:
    """Storage that fails, or answers late."""

    def __init__(self, storage, dice):
        self._storage, self._dice = storage, dice

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def read_into(self, name, offset, into):
        if self._dice.random() < 0.3:
            raise StorageError(names.REASON_STORAGE_UNREACHABLE, "503 Slow Down")
        return self._storage.read_into(name, offset, into)


@pytest.mark.timeout(3000 if FULL else 600)
def test_what_is_damaged_is_healed_from_elsewhere_or_told(memory):
    """Bit flips, truncations, swapped and stale files, lost ones, storage that fails: no wrong bit is ever restored."""
    dice = random.Random(20261129)
    pristine = memory / "pristine"
    two_members(pristine)
    durable = Catalog(open_storage(f"file://{memory}/durable"))
    there = Memory({0: Store(pristine / "member-0", flash_stores.JOB)}, BY)
    outcome = persist_newest(there, durable, [survey(there.stores[0], 0)], Claimant(flash_stores.JOB, 1))
    assert outcome.committed, outcome
    manifest, _ = durable.newest_valid()
    assert manifest is not None
    seen: Counter[str] = Counter()
    for number in range(CORRUPTIONS):
        live = memory / "live"
        shutil.copytree(pristine, live)
        for _ in range(dice.choice((1, 1, 2, 3, 6))):
            files = sorted(path for path in live.rglob("*") if path.is_file() and path.stat().st_size)
            dice.choice(DAMAGES)(dice.choice(files), dice)
        backing = Backing(Moody(durable.storage, dice), manifest) if number % 2 else None
        seen[restore(live, backing)] += 1
        shutil.rmtree(live)
    note("corruptions", CORRUPTIONS, ">= 1000", met=CORRUPTIONS >= 1000, detail=str(dict(seen)))
    note("silent bad restores", seen["wrong"], "0", met=not seen["wrong"], detail="compared bit by bit")
    assert not seen["wrong"]
    assert seen["healed"] > seen["told"]


def restore(live, backing):
    """What came of it, with the other member's agent on loopback."""
    stores = [Store(live / f"member-{member}", flash_stores.JOB) for member in range(2)]
    server = Server(stores[1], "127.0.0.1", {BY.round: BY.key}.get)
    server.start()
    try:
        other = survey(stores[1], 1, f"127.0.0.1:{server.port}")
        recall = Recall(stores[0], Alone(other), 0, BY)
        recall.survey()
        state = Whole()
        recalled = recall.load(state, 0, backing)
    finally:
        server.close()
    if recalled is None:
        return "told"
    if not state.is_exactly(recalled.edition) or recalled.state["training"]["step"] != recalled.edition.step:
        return "wrong"
    return "healed" if recalled.skipped else "older" if recalled.edition == OLD else "unharmed"


def test_a_store_that_is_full_is_an_error_before_training(memory):
    """With the number of bytes that are missing; what lay there stays."""
    store = flash_stores.store_in(memory / "store")
    held = flash_stores.fill(store.own(0, 0), NEW, 0)
    with pytest.raises(slot.StoreFull) as caught:
        store.own(0, 1).reserve(2**50)
    assert caught.value.needed == 2**50
    assert slot.held(held.stem) == held


def test_a_head_that_lost_its_data_is_damage(memory):
    """Not a snapshot that nobody took."""
    store = flash_stores.store_in(memory / "store")
    held = flash_stores.fill(store.own(0, 0), NEW, 0)
    held.stem.with_suffix(slot.DATA).unlink()
    found, damaged = store.scan()
    assert not found
    assert [each.why for each in damaged] == ["its data is missing"]
    with pytest.raises(Damaged):
        slot.held(held.stem)
