"""`llmtrain estimate`, as a user sees it."""

import json

import pytest
from click.testing import CliRunner

from llmtrain_operator.cli import main
from tests.support.specs import job

GPU = {
    "nodes": {"min": 4, "max": 8, "procPerNode": 8, "acceleratorResource": "nvidia.com/gpu"},
    "model": {"preset": "llama-8b"},
    "data": {"sequenceLength": 4096},
    "training": {"globalBatchSize": 512, "maxSteps": 20_000, "microBatchSize": 1},
    "deepspeed": {"stage": 3},
    "checkpoint": {"durable": {"storage": "s3://bucket/x", "every": "auto"}},
}
BIG = {
    "nodes": {"min": 128, "procPerNode": 8},
    "model": {
        "preset": None,
        "architecture": {
            "hiddenSize": 8192, "layers": 94, "heads": 64, "intermediateSize": 24_576, "tieEmbeddings": False,
        },
    },
    "data": {"sequenceLength": 2048},
    "training": {"globalBatchSize": 2048, "activationCheckpointing": True},
}  # fmt: skip


def estimate(patch, *options):
    """The command's result on a job on standard input."""
    return CliRunner().invoke(main, ["estimate", "-", *options], input=json.dumps(job("j", patch)))


def figures(patch, *options):
    """What `-o json` says of the job."""
    result = estimate(patch, "-o", "json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)["j"]


def test_it_is_readable():
    """Each line says what it rests on."""
    result = estimate(GPU, "--accelerator", "H100", "--price", "2.5")
    assert result.exit_code == 0, result.output
    for words in ("6.98 billion", "64", "8 x 1", "ZeRO 3 over 64", "MFU", "accelerator hours", "cost", "flash store"):
        assert words in result.output
    assert "assumed: 40% of the peak" in result.output


def test_figures_hang_together():
    """Time is FLOPs over rate; the cost is of all accelerators; the checkpoint is what the flash store is made of."""
    found = figures(GPU, "--accelerator", "H100", "--price", "2", "--mfu", "0.5")
    whole = found["model"]["FLOPs in all"]["value"]
    assert found["time"]["training"]["value"] == pytest.approx(whole / (64 * 0.5 * 989e12))
    assert found["time"]["cost"]["value"] == pytest.approx(found["time"]["accelerator hours"]["value"] * 2)
    assert found["checkpoints"]["durable checkpoint"]["value"] == 12 * found["model"]["parameters"]["value"]
    assert found["fits"] is True


@pytest.mark.parametrize(("rate", "doubted"), [("68", True), ("130", False)])
def test_a_slow_run_on_a100_is_doubted(rate, doubted):
    """An 82-billion-parameter model on 1,024 of them; the achieved rate has recomputation in it."""
    found = figures(BIG, "--accelerator", "A100-80GB", "--tokens", "150B", "--tflops", rate, "--stage", "3")
    assert found["model"]["parameters"]["value"] == pytest.approx(82e9, rel=0.02)
    assert found["layout"]["accelerators"]["value"] == 1024
    assert bool(found["warnings"]) is doubted
    days = found["time"]["training"]["value"] / 86_400
    # 8ND; attention over 2,048 tokens adds a few percent.
    assert days == pytest.approx(16.4 * 68 / float(rate), rel=0.07)
    assert found["time"]["MFU"]["value"] == pytest.approx(float(rate) / 312 * 0.75)


def test_what_does_not_fit_is_told_with_ways_out():
    """And the exit code is 1."""
    result = estimate(GPU, "--accelerator", "L4", "--nodes", "1")
    assert result.exit_code == 1
    assert "of the L4's 24 GB: try training.activationCheckpointing" in result.output


@pytest.mark.parametrize(
    ("patch", "options", "says"),
    [
        (GPU, ["--accelerator", "H1000"], "--accelerator: it is not known (is 'H1000'). Take one of GB200, B200"),
        (GPU, ["--tensor-parallel", "7"], "--tensor-parallel: it does not divide the model's 32 heads"),
        (GPU, ["--pipeline-parallel", "64", "--stage", "1"], "only 32 layers"),
        (GPU, ["--nodes", "100"], "spec.training.globalBatchSize: it gives 800 data-parallel replicas less"),
        (GPU, ["--offload", "parameters", "--stage", "2"], "--offload: only ZeRO 3"),
        ({"model": {"preset": None, "pretrained": "org/m"}}, [], "spec.model.pretrained: its size is known only when"),
        (
            {"model": {"preset": None, "config": {"model_type": "llama", "hidden_size": 64}}}, [],
            "spec.model.config.num_hidden_layers: it is absent",
        ),
        ({"model": None, "data": None, "entrypoint": {"script": "a.py"}}, [], "spec.model: a script of your own"),
        ({"training": {"maxStep": 1}}, [], "Did you mean maxSteps?"),
    ],
    ids=["accelerator", "tensor", "pipeline", "batch", "offload", "pretrained", "config", "script", "typo"],
)  # fmt: skip
def test_errors_name_the_field_and_the_remedy(patch, options, says):
    """On one line each."""
    result = estimate(patch, *options)
    assert result.exit_code == 1
    assert says in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tokens", "many"], "150e9, 150B or 1.4T"),
        (["--tokens", "0"], "150e9, 150B or 1.4T"),
        (["--mfu", "0.4", "--tflops", "100"], "give either --mfu or --tflops"),
        (["--mfu", "1.4"], "--mfu"),
    ],
)
def test_wrong_usage(options, says):
    """Exit code 2."""
    result = estimate(GPU, *options)
    assert result.exit_code == 2
    assert says in result.output


def test_without_an_accelerator_there_is_no_time():
    """But all that can be said without one."""
    found = figures({})
    assert found["time"]["time"]["value"] == "unknown"
    assert found["fits"] is None
    assert found["memory"]["peak per worker"]["value"] > 0
