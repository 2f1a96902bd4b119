"""A checkpoint in storage becomes a directory that transformers alone reads, with the weights that were saved."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from llmtrain_trainer.checkpoint import exporting, layout, pieces
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.manifest import Manifest
from llmtrain_trainer.checkpoint.pieces import Piece
from llmtrain_trainer.checkpoint.shardfile import write_shard
from llmtrain_trainer.checkpoint.standing import Standing
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.checkpoint.stored import shard_name
from llmtrain_trainer.checkpoint.tool import main

STANDING = Standing(
    step=7, position=56, seed=1, shuffle=True, sequence_length=16, data_digest="d", spec_digest="s", loss=2.5
)


def small_model(seed=0, tied=True):
    """A Llama of odd sizes."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=20,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=256,
    )
    return transformers.LlamaForCausalLM(config)


def save(uri, model, step=7, world_size=3, frozen=(), tokenizer="byte", described=True):
    """A checkpoint as `world_size` ranks write it, their shards cut in the middle of parameters."""
    catalog = Catalog(open_storage(uri))
    fence = catalog.claim("job", step)
    parameters = dict(model.named_parameters())
    entries = []
    for rank in range(world_size):
        names = list(parameters)
        parts = layout.share([parameters[name].numel() for name in names], rank, world_size)
        owned = [
            Piece(
                names[index],
                pieces.WEIGHTS if names[index] in frozen else pieces.MASTER,
                start,
                parameters[names[index]].detach().view(-1)[start:stop],
            )
            for index, start, stop in parts
        ]
        segments = pieces.placed(owned)
        data = torch.zeros(layout.data_bytes(segments), dtype=torch.uint8)
        for piece, segment in zip(owned, segments, strict=True):
            data[segment.offset : segment.end] = pieces.as_bytes(piece.tensor)
        name = shard_name(step, fence, rank)
        entries.append(write_shard(catalog.storage, name, segments, memoryview(data.numpy()), {}))
    engine = {
        "parameters": {name: list(p.shape) for name, p in parameters.items() if name not in frozen},
        "weights": {name: {"shape": list(parameters[name].shape), "dtype": "float32"} for name in frozen},
    }
    state = {"engine": engine, "training": STANDING.to_json()}
    if described:
        state["model"] = exporting.describe(model.bfloat16(), tokenizer)
    catalog.commit(Manifest(step, fence, "job", step, world_size, 0.0, tuple(entries), state))


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_is_the_model_that_was_saved(tmp_path, tied, capsys):
    """Every weight, tied or not, frozen or not, is bit for bit the checkpoint's; facts and tokenizer are there."""
    model = small_model(tied=tied)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    save(f"file://{tmp_path}/store", model, frozen=("model.norm.weight",))
    assert main(["export", f"file://{tmp_path}/store", str(tmp_path / "model"), "--dtype", "fp32"]) == 0
    assert "step 7 written" in capsys.readouterr().out
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    assert loaded.dtype == torch.float32
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert tokenizer("hi", add_special_tokens=False)["input_ids"] == [ord("h"), ord("i")]
    facts = json.loads((tmp_path / "model" / "llmtrain.json").read_text())
    assert {key: facts[key] for key in ("steps", "tokens", "loss", "worldSize", "specSha256")} == {
        "steps": 7,
        "tokens": 56 * 16,
        "loss": 2.5,
        "worldSize": 3,
        "specSha256": "s",
    }


def test_without_a_type_the_export_is_as_it_was_trained(tmp_path):
    """bf16 training gives bf16 weights: the masters, rounded."""
    model = small_model()
    expected = model.model.embed_tokens.weight.detach().bfloat16()
    save(f"file://{tmp_path}/store", model)
    assert main(["export", f"file://{tmp_path}/store", str(tmp_path / "model")]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.model.embed_tokens.weight, expected)


def test_a_damaged_checkpoint_is_never_exported(tmp_path, capsys):
    """A byte that changed is found while reading; no model appears, and the exit code says damage."""
    uri, target = f"file://{tmp_path}/store", tmp_path / "model"
    save(uri, small_model(0), step=3)
    save(uri, small_model(1), step=7)
    shard = next((tmp_path / "store" / "step-000000000007").glob("shard-*-00001.bin"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert main(["export", uri, str(target)]) == 1
    assert "step 7 is damaged" in capsys.readouterr().err
    assert not (target / "llmtrain.json").exists()
    assert main(["export", uri, str(target), "--step", "3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "8"], "no valid checkpoint to export (step 8: it has no manifest)"),
        (["--tokenizer", "/nowhere/tokenizer.json"], "say so with --tokenizer"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path, capsys, arguments, words):
    """Exit code 2, and what to do."""
    save(f"file://{tmp_path}/store", small_model())
    assert main(["export", f"file://{tmp_path}/store", str(tmp_path / "model"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_its_model_is_refused(tmp_path, capsys):
    """Rather than to guess at an architecture."""
    save(f"file://{tmp_path}/store", small_model(), described=False)
    assert main(["export", f"file://{tmp_path}/store", str(tmp_path / "model")]) == 2
    assert "does not say what model it is of" in capsys.readouterr().err
