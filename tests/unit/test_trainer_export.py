"""How an exported model appears in its directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain_trainer import export
from llmtrain_trainer.errors import TrainerError


class Model:
    """Writes like Hugging Face's, with private files as safetensors makes them."""

    def __init__(self, shards):
        self.shards = shards

    def save_pretrained(self, directory, state_dict):
        """One file for each shard."""
        for name in self.shards:
            (directory / name).write_text(json.dumps(sorted(state_dict)))
            (directory / name).chmod(0o600)


class Tokenizer:
    """One file."""

    def save(self, directory):
        """Write it."""
        (directory / "tokenizer.json").write_text("{}")


def write(directory, *shards):
    """An export with these weight files."""
    export.write_model(directory, Model(shards), {"w": 1}, Tokenizer(), {"steps": 3})


def test_an_export_is_readable_by_all_and_lists_its_files(tmp_path):
    """Nothing but the listed files is left; the manifest has the facts."""
    target = tmp_path / "models" / "small"
    write(target, "model.safetensors")
    manifest = json.loads((target / export.MANIFEST).read_text())
    assert manifest == {"steps": 3, "files": ["model.safetensors", "tokenizer.json"]}
    assert {path.name for path in target.iterdir()} == {*manifest["files"], export.MANIFEST}
    assert (target / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_a_second_export_replaces_the_first_and_touches_nothing_else(tmp_path):
    """Weight files that only the earlier model had go; a stranger's file stays."""
    write(tmp_path, "model-1.safetensors", "model-2.safetensors")
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, "model.safetensors")
    names = {"model.safetensors", "tokenizer.json", export.MANIFEST, "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_export_that_fails_leaves_no_manifest_and_no_litter(tmp_path):
    """A reader cannot take half a model for a whole one."""

    class Full(Tokenizer):
        def save(self, directory):
            super().save(directory)
            raise OSError(28, "No space left on device")

    with pytest.raises(TrainerError, match="No space left") as caught:
        export.write_model(tmp_path, Model(["model.safetensors"]), {}, Full(), {})
    assert caught.value.reason == "OutputUnwritable"
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_output_is_found_before_training(tmp_path):
    """A file where the directory should be, say; a writable directory is created and left empty."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=r"spec\.output: cannot write") as caught:
        export.check_output(tmp_path / "file" / "model")
    assert caught.value.reason == "OutputUnwritable"
    export.check_output(tmp_path / "new" / "model")
    assert list(Path(tmp_path / "new" / "model").iterdir()) == []
