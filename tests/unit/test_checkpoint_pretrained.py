import json

import pytest
import torch
from safetensors.torch import save_file

from llmtrain_trainer.checkpoint.pretrained import is_model, load_weights
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.errors import TrainerError


class Tied(torch.nn.Module):
    """An embedding that is the output projection too, and a persistent buffer."""

    def __init__(self, width=4):
        super().__init__()
        self.embed = torch.nn.Embedding(6, width)
        self.head = torch.nn.Linear(width, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.zeros(2))


def tensors(**changes):
    return {"embed.weight": torch.arange(24.0).view(6, 4), "scale": torch.ones(2), **changes}


def stored(folder, *files):
    (folder / "config.json").write_text("{}")
    for name, content in files:
        save_file(content, folder / name)
    return open_storage(f"file://{folder}")


@pytest.mark.parametrize("tied_name", ["embed.weight", "head.weight"])
def test_every_tensor_is_set_whatever_name_a_tied_one_has(tmp_path, tied_name):
    """Hugging Face stores a tied weight once, under either name; half precision is widened."""
    content = tensors()
    content[tied_name] = content.pop("embed.weight").to(torch.bfloat16)
    storage = stored(tmp_path, ("model.safetensors", content))
    model = Tied()
    assert is_model(storage)
    load_weights(model, storage)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, torch.arange(24.0).view(6, 4))
    assert torch.equal(model.scale, torch.ones(2))


def test_only_the_indexs_files_are_read(tmp_path):
    """Another format's weights may lie beside them."""
    first, second = ({name: value} for name, value in tensors().items())
    storage = stored(
        tmp_path, ("a.safetensors", first), ("b.safetensors", second), ("x.safetensors", {"x": torch.ones(1)})
    )
    index = {"weight_map": {"embed.weight": "a.safetensors", "scale": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    load_weights(Tied(), storage)


@pytest.mark.parametrize(
    ("content", "width", "words"),
    [
        (tensors(), 8, "embed.weight has the shape [6, 4], here it is [6, 8]"),
        (tensors(extra=torch.ones(3)), 4, "extra, of shape [3], is not in this job's model"),
        ({"scale": torch.ones(2)}, 4, "embed.weight, of shape [6, 4], is not in its files"),
    ],
    ids=["other shape", "unknown", "missing"],
)
def test_a_model_of_another_shape_is_refused_by_name(tmp_path, content, width, words):
    """Nothing stays at its random start unnoticed."""
    storage = stored(tmp_path, ("model.safetensors", content))
    with pytest.raises(TrainerError) as error:
        load_weights(Tied(width), storage)
    assert error.value.reason == "CheckpointMismatch"
    assert words in str(error.value)


def test_a_directory_without_weights_is_no_model(tmp_path):
    """A config alone is not enough to start from."""
    assert not is_model(stored(tmp_path))
