"""A plain torch model's state, saved by some ranks and loaded by others."""

from __future__ import annotations

import copy
import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard as ShardPlacement
from torch.distributed.tensor import distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from llmtrain_trainer.checkpoint import filling
from llmtrain_trainer.checkpoint.extents import Copier, Extents
from llmtrain_trainer.checkpoint.layout import Segment
from llmtrain_trainer.checkpoint.pieces import Fill, Piece
from llmtrain_trainer.errors import ConfigError, TrainerError
from llmtrain_trainer.flash import plain, spread
from llmtrain_trainer.flash.torch_state import Stateful, TorchState

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw-amsgrad": functools.partial(torch.optim.AdamW, amsgrad=True),
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "sgd-momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": functools.partial(torch.optim.RMSprop, momentum=0.5, centered=True),
}


class Model(torch.nn.Module):
    """Tied weights, a frozen layer, persistent and other buffers, an empty parameter and one without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.frozen = torch.nn.Linear(5, 5).requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.rand(()))
        self.empty = torch.nn.Parameter(torch.zeros(0, 3))
        self.unused = torch.nn.Parameter(torch.rand(3))
        self.head = torch.nn.Linear(5, 11, bias=True)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.rand(4) > 0.5)
        self.register_buffer("scratch", torch.rand(3), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.norm(self.embed(tokens))) * self.scale)


class Shard:
    """One rank's bytes, as a snapshot holds them."""

    def __init__(self, state: TorchState) -> None:
        layout = Extents.of(state.pieces())
        memory = torch.zeros(layout.size, dtype=torch.uint8)
        Copier(torch.device("cpu")).copy(layout.extents, memory)
        self.segments: tuple[Segment, ...] = layout.segments
        self.memory = memory

    def read_into(self, offset: int, into: memoryview) -> None:
        into[:] = memoryview(self.memory.numpy())[offset : offset + len(into)]


def reader(shards: Sequence[Shard]) -> Fill:
    def fill(pieces: list[Piece]) -> None:
        filling.fill([lambda shard=shard: shard for shard in shards], pieces)

    return fill


class Script:
    """What a user's script has."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer], seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Model()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = make([{"params": trained[:2]}, {"params": trained[2:], "lr": 0.05, "weight_decay": 0.01}])
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones=[2, 2, 5])

    def state(self, rank: int = 0, world_size: int = 1, **objects: Stateful) -> TorchState:
        return TorchState(self.model, self.optimizer, {"scheduler": self.scheduler} | objects, rank, world_size)

    def train(self, steps: int) -> None:
        for step in range(steps):
            tokens = torch.arange(6) * (step + 2) % 11
            torch.nn.functional.cross_entropy(self.model(tokens), tokens).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        found = dict(self.model.state_dict())
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"{number}.{kind}": value for kind, value in state.items() if torch.is_tensor(value)}
        return found

    def settings(self) -> list[dict]:
        return [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]


def saved(script: Script, world_size: int) -> tuple[list[Shard], dict]:
    states = [script.state(rank, world_size) for rank in range(world_size)]
    scalars = [state.shapes() | state.numbers() for state in states]
    assert all(each == scalars[0] for each in scalars)
    return [Shard(state) for state in states], scalars[0]


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name].contiguous().view(-1), other[name].view(-1))]
    assert different == []


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_three_ranks_snapshot_comes_back_bit_for_bit_at_any_world_size(name, readers):
    """Weights, moments, buffers, settings and scheduler are those that were saved, on every rank."""
    first = Script(OPTIMIZERS[name], seed=1)
    first.train(3)
    shards, scalars = saved(first, 3)
    for rank in range(readers):
        second = Script(OPTIMIZERS[name], seed=2)
        second.state(rank, readers).load(json.loads(json.dumps(scalars)), reader(shards))
        # What was never updated is given zeros, which is what an optimizer begins with.
        assert_same_bits(first.tensors(), {name: second.tensors()[name] for name in first.tensors()})
        assert second.settings() == first.settings()
        assert second.scheduler.state_dict() == first.scheduler.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_happened(name):
    """After the store is overwritten too: nothing restored shares its memory."""
    first, second = Script(OPTIMIZERS[name], seed=1), Script(OPTIMIZERS[name], seed=2)
    first.train(3)
    shards, scalars = saved(first, 2)
    second.state().load(scalars, reader(shards))
    for shard in shards:
        shard.memory.fill_(255)
    first.train(3)
    second.train(3)
    assert_same_bits(dict(first.model.state_dict()), dict(second.model.state_dict()))


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_byte_is_stored_once_and_evenly(world_size):
    """Over all ranks every element occurs exactly once; no rank has much more than its share."""
    script = Script(torch.optim.AdamW, seed=1)
    script.train(1)
    shards, _ = saved(script, world_size)
    found = Counter(
        (segment.parameter, segment.kind, element)
        for shard in shards
        for segment in shard.segments
        for element in range(segment.start, segment.stop)
    )
    assert set(found.values()) == {1}
    trained = sum(weight.numel() for weight in script.model.parameters() if weight.requires_grad)
    assert sum(kind in ("master", "exp_avg", "exp_avg_sq") for _, kind, _ in found) == 3 * trained
    sizes = [sum(s.length for s in shard.segments if s.kind == "master") for shard in shards]
    assert max(sizes) - min(sizes) <= 4


def test_views_stay_the_same_until_the_optimizer_makes_its_state():
    """`identity` changes with the first step and not with the second, and `expected` told the size."""
    script = Script(torch.optim.AdamW, seed=1)
    state = script.state()
    before, expected = state.identity(), Extents.of(state.expected()).size
    script.train(1)
    after, size = state.identity(), Extents.of(state.pieces()).size
    script.train(1)
    assert before != after == state.identity()
    assert 0 <= expected - size <= 3 * 2 * 64  # the unused parameter's moments


def test_a_snapshot_from_before_the_first_step_clears_what_the_optimizer_has():
    """State that the snapshot lacks is removed."""
    first, second = Script(torch.optim.AdamW, seed=1), Script(torch.optim.AdamW, seed=2)
    shards, scalars = saved(first, 1)
    second.train(2)
    second.state().load(scalars, reader(shards))
    assert_same_bits(first.tensors(), second.tensors())


def test_wrappers_do_not_change_names():
    """A snapshot of a compiled model is one of the plain model."""
    script = Script(torch.optim.AdamW, seed=1)
    compiled = torch.compile(script.model, backend="eager")
    wrapped = TorchState(compiled, script.optimizer, {}, 0, 1)
    inner = torch.nn.Sequential(compiled)
    nested = TorchState(inner, torch.optim.SGD(inner.parameters()), {}, 0, 1)
    assert wrapped.shapes() == script.state().shapes()
    assert "0.embed.weight" in nested.shapes()["parameters"]


def test_a_learning_rate_that_is_a_tensor_is_filled_in_place():
    """A compiled or captured step reads that very tensor."""
    model = torch.nn.Linear(2, 2)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    state = TorchState(model, optimizer, {}, 0, 1)
    shards, scalars = [Shard(state)], state.shapes() | state.numbers()
    rate.fill_(0.25)
    state.load(scalars, reader(shards))
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda script: setattr(script.model.unused, "data", torch.ones(4)), r"unused is \[3\] there and \[4\] here"),
        (lambda script: script.model.register_buffer("more", torch.ones(1)), "more is absent there"),
        (lambda script: script.optimizer.add_param_group({"params": [script.model.frozen.bias]}), "frozen.bias is"),
        (lambda script: setattr(script, "optimizer", torch.optim.SGD(script.optimizer.param_groups)), "AdamW"),
    ],
    ids=["model", "buffer", "group", "optimizer"],
)
def test_another_script_is_refused_before_anything_changes(change, told):
    """The message names what is different."""
    first, second = Script(torch.optim.AdamW, seed=1), Script(torch.optim.AdamW, seed=2)
    first.train(1)
    shards, scalars = saved(first, 1)
    change(second)
    before = copy.deepcopy(second.tensors())
    with pytest.raises(TrainerError, match=told) as raised:
        second.state().load(scalars, reader(shards))
    assert raised.value.reason == "CheckpointMismatch"
    assert_same_bits(before, second.tensors())


class Holder:
    """An object with some state."""

    def __init__(self, content) -> None:
        self.content = content

    def state_dict(self):
        return {"content": self.content}

    def load_state_dict(self, state):
        self.content = state["content"]


def test_an_object_whose_state_is_not_plain_is_named():
    """With the place within it."""
    script = Script(torch.optim.AdamW, seed=1)
    with pytest.raises(ConfigError, match=r"the state of ema\['content'\]\[1\] is a Tensor"):
        script.state(ema=Holder([1, torch.ones(2)])).numbers()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, "x", True],
        {"a": {"b": []}},
        (1, (2, "x")),
        {1: 2, "1": 3},
        Counter([3, 3, 4]),
        {"__llmtrain__": 1},
    ],
    ids=["none", "list", "nested", "tuple", "numbers as keys", "counter", "the tag itself"],
)
def test_plain_state_comes_back_as_it_was(value):
    """Through JSON, types too."""
    back = plain.from_json(json.loads(json.dumps(plain.to_json(value, "it"))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: (torch.nn.Linear(2, 2), torch.optim.SGD([torch.nn.Parameter(torch.ones(7))])), r"shape \[7\]"),
        (lambda: _with_sgd(torch.nn.Conv2d(3, 3, 2).to(memory_format=torch.channels_last)), "weight is not contiguous"),
    ],
    ids=["a parameter of another model", "not contiguous"],
)
def test_what_cannot_be_saved_is_refused_at_once(make, told):
    """Before training begins, by name."""
    with pytest.raises(ConfigError, match=told):
        TorchState(*make(), {}, 0, 1)


def test_factored_optimizer_state_is_refused():
    """Adafactor's rows and columns are no elements of the weights."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with pytest.raises(ConfigError, match="Adafactor keeps a state"):
        TorchState(model, optimizer, {}, 0, 1).pieces()


def _with_sgd(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.SGD(model.parameters())


@pytest.fixture
def as_rank():
    """Makes this process a rank of a world whose collectives do nothing, and gives its mesh."""

    def begin(rank: int, world_size: int, *, dimensions: int = 1) -> DeviceMesh:
        end()
        dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
        shape = (world_size,) if dimensions == 1 else (2, world_size // 2)
        return init_device_mesh("cpu", shape)

    def end() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    yield begin
    end()


def sharded(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """As `fully_shard` lays out a parameter."""
    return distribute_tensor(tensor, mesh, [ShardPlacement(0)] * mesh.ndim, src_data_rank=None)


class ShardedScript:
    """FSDP2's state on one rank: uneven shards, one with fewer rows than ranks, one replicated, one frozen."""

    SHAPES: ClassVar = {"even": (6, 4), "uneven": (5, 2, 2), "narrow": (2, 3), "frozen": (7,), "whole": (9,)}

    def __init__(self, mesh: DeviceMesh, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.whole = {name: torch.rand(shape, generator=random) for name, shape in self.SHAPES.items()}
        self.model = torch.nn.Module()
        for name, tensor in self.whole.items():
            value = tensor.clone() if name == "whole" else sharded(tensor, mesh)
            self.model.register_parameter(name, torch.nn.Parameter(value, requires_grad=name != "frozen"))
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.1)
        self.state = TorchState(self.model, self.optimizer, {}, mesh.get_rank(), mesh.size())
        for weight in trained:
            weight.grad = torch.ones_like(weight) * weight.detach()
        self.optimizer.step()

    def local(self) -> list[torch.Tensor]:
        """This rank's memory of everything."""
        moments = [value for state in self.optimizer.state.values() for _, value in sorted(state.items())]
        return [spread.local(tensor) for tensor in (*self.model.parameters(), *moments)]


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_shards_of_three_ranks_come_back_at_any_world_size(as_rank, readers):
    """Weights and moments that FSDP2 has spread, also where some ranks have none of a parameter."""
    shards, scalars = [], {}
    for rank in range(3):
        script = ShardedScript(as_rank(rank, 3), seed=1)
        scalars = script.state.shapes() | script.state.numbers()
        shards.append(Shard(script.state))
    for rank in range(readers):
        mesh = as_rank(rank, readers)
        second, expected = ShardedScript(mesh, seed=2), ShardedScript(mesh, seed=1)
        second.state.load(scalars, reader(shards))
        assert [one.tolist() for one in second.local()] == [one.tolist() for one in expected.local()]


def test_a_mesh_of_two_dimensions_is_refused(as_rank):
    """With what is supported."""
    with pytest.raises(ConfigError, match=r"even is placed as .*; supported are replicated tensors and Shard\(0\)"):
        ShardedScript(as_rank(0, 4, dimensions=2), seed=1)
