"""`python -m llmtrain_trainer.checkpoint`: what it prints and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llmtrain_trainer.checkpoint import manifest as manifests
from llmtrain_trainer.checkpoint.catalog import Catalog, shard_name
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.checkpoint.stored import manifest_name
from llmtrain_trainer.checkpoint.tool import main
from tests.support.checkpoints import save, write_shards


@pytest.fixture
def storage(tmp_path):
    """Steps 10 (three shards) and 20 (two), and a save of step 30 that is not committed."""
    storage = open_storage(f"file://{tmp_path}")
    catalog = Catalog(storage)
    fence = catalog.claim("uid-a", 4)
    save(catalog, fence, 10, world_size=3)
    save(catalog, fence, 20)
    write_shards(storage, 30, fence, 1)
    return storage


def spoil(tmp_path, step, rank, place) -> None:
    file = tmp_path / shard_name(step, 1, rank)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_ls_shows_each_checkpoint_and_its_state(storage, capsys):
    """The newest first."""
    assert main(["ls", storage.uri]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["STEP", "AGE", "SIZE", "WORLD", "STATE"]
    assert [(line[0], line[4], line[5]) for line in lines[1:]] == [
        ("30", "-", "incomplete:"),
        ("20", "2", "valid"),
        ("10", "3", "valid"),
    ]


def test_ls_sees_what_can_be_seen_without_reading_data(storage, tmp_path, capsys):
    """A shard that is missing, not a flipped bit."""
    (tmp_path / shard_name(20, 1, 1)).unlink()
    spoil(tmp_path, 10, 0, 5)
    assert main(["ls", "--json", storage.uri]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["owner"] == {"fence": 1, "jobUid": "uid-a", "round": 4}
    assert [(c["step"], c["state"], c["worldSize"]) for c in told["checkpoints"]] == [
        (30, "incomplete", None),
        (20, "damaged", None),
        (10, "valid", 3),
    ]
    assert told["checkpoints"][1]["why"] == f"{shard_name(20, 1, 1)}: it is missing"


def test_verify_proves_whole_checkpoints(storage, capsys):
    """Exit code 0."""
    assert main(["verify", storage.uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 20: valid", "step 10: valid"]


def test_verify_names_every_damaged_shard_and_chunk(storage, tmp_path, capsys):
    """All of them, not only the first, and exits with 1."""
    spoil(tmp_path, 10, 0, 5)
    spoil(tmp_path, 10, 0, 9000)
    spoil(tmp_path, 10, 2, -1)
    (tmp_path / shard_name(10, 1, 1)).unlink()
    assert main(["verify", storage.uri, "--json"]) == 1
    by_step = {c["step"]: c for c in json.loads(capsys.readouterr().out)["checkpoints"]}
    assert (by_step[20]["state"], by_step[20]["damage"]) == ("valid", [])
    assert by_step[10]["state"] == "damaged"
    assert [(one["file"], one["why"].split(":")[0]) for one in by_step[10]["damage"]] == [
        (shard_name(10, 1, 1), "it is missing"),
        (shard_name(10, 1, 0), "chunk 1 of 6"),
        (shard_name(10, 1, 0), "chunk 3 of 6"),
        (shard_name(10, 1, 2), "its index is not the one that the manifest names"),
    ]
    assert main(["verify", storage.uri, "--step", "10"]) == 1
    assert f"  {shard_name(10, 1, 0)}: chunk 3 of 6: its bytes do not have" in capsys.readouterr().out
    assert main(["verify", storage.uri, "--step", "20"]) == 0


def test_verify_of_nothing_proves_nothing(storage, capsys):
    """Exit code 1: a typing mistake must not look like a good checkpoint."""
    assert main(["verify", storage.uri, "--step", "11"]) == 1
    assert "no checkpoint of step 11" in capsys.readouterr().out


def test_rm_removes_and_keeps_the_last_valid_one(storage, capsys):
    """Unless it is told to."""
    assert main(["rm", storage.uri, "--step", "10"]) == 0
    assert main(["rm", storage.uri, "--step", "20"]) == 2
    assert "no valid checkpoint would be left" in capsys.readouterr().err
    assert main(["rm", storage.uri, "--step", "10"]) == 2
    assert "no checkpoint of step 10" in capsys.readouterr().err
    assert main(["rm", storage.uri, "--step", "20", "--step", "30", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [20, 30]
    assert Catalog(storage).checkpoints() == ()


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["rm", "--step", "1"]])
def test_a_place_that_is_not_there_is_told_on_standard_error(command, tmp_path, capsys):
    """Exit code 2, and no traceback."""
    assert main([*command, f"file://{tmp_path}/gone"]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert main([*command, "ftp://x/y"]) == 2


def test_a_newer_format_is_told(storage, capsys):
    """ls shows it, verify refuses it by name."""
    content = json.loads(storage.read(manifest_name(20)))["content"] | {"formatVersion": manifests.FORMAT + 1}
    data = manifests.seal(content)
    storage.write(manifest_name(20), [memoryview(data)], len(data))
    assert main(["ls", storage.uri]) == 0
    assert f"newer: step-000000000020/manifest.json has format {manifests.FORMAT + 1}" in capsys.readouterr().out
    assert main(["verify", storage.uri]) == 2
    assert f"reads formats up to {manifests.FORMAT}" in capsys.readouterr().err


def test_it_runs_as_a_module_and_never_loads_torch(storage):
    """Seconds and hundreds of megabytes that a look at a directory need not cost."""
    done = subprocess.run(
        [sys.executable, "-v", "-m", "llmtrain_trainer.checkpoint", "verify", storage.uri],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("valid") == 2
    assert "import 'llmtrain_trainer.checkpoint.tool'" in done.stderr
    assert "import 'torch" not in done.stderr
