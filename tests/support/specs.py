"""Job specs for tests: a good one, patches, and bad ones that the API server and the models must both refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_operator.contract import names

GOOD: dict[str, Any] = {
    "model": {"preset": "gpt-tiny"},
    "data": {"source": "/data"},
    "training": {"maxSteps": 100},
}
ARCHITECTURE = {"hiddenSize": 64, "layers": 2, "heads": 4}


def tiny(steps: int, members: int, source: str) -> dict[str, Any]:
    """That of a model of 24,704 parameters on the Python files of a directory; it learns within 30 steps."""
    return {
        "nodes": {"min": members},
        "model": {"architecture": {"hiddenSize": 32, "layers": 1, "heads": 2}},
        "data": {"source": source, "include": ["*.py"], "sequenceLength": 64},
        "training": {"maxSteps": steps, "globalBatchSize": 4, "precision": "fp32", "optimizer": {"lr": 0.01}},
    }


def patched(patch: Mapping[str, Any], base: Mapping[str, Any] = GOOD) -> dict[str, Any]:
    """`base` with `patch` merged into it as a JSON merge patch: None removes."""
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = patched(value, result[key] if isinstance(result.get(key), Mapping) else {})
        else:
            result[key] = value
    return result


def job(name: str, patch: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An LLMTrainJob object."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": patched(patch or {}),
    }


@dataclass(frozen=True)
class Bad:
    """A patch that makes the good spec a bad one, where both sides must report it, and words of the message."""

    id: str
    patch: Mapping[str, Any]
    path: str
    says: str = ""


BAD = (
    Bad("no model", {"model": None}, "spec.model", "model is required (unless entrypoint"),
    Bad("no data", {"data": None}, "spec.data", "data is required (unless entrypoint"),
    Bad("no maxSteps", {"training": None}, "spec.training.maxSteps", "training.maxSteps is required"),
    Bad("min over max", {"nodes": {"min": 3, "max": 2}}, "spec.nodes.min", "must not be greater than nodes.max"),
    Bad(
        "desired over max", {"nodes": {"max": 2, "desired": 3}}, "spec.nodes.desired", "between nodes.min and nodes.max"
    ),
    Bad("desired without max", {"nodes": {"desired": 2}}, "spec.nodes.desired", "between nodes.min and nodes.max"),
    Bad("no node", {"nodes": {"min": 0}}, "spec.nodes.min"),
    Bad("too many spares", {"nodes": {"spares": 65}}, "spec.nodes.spares"),
    Bad(
        "spares beyond all indexes",
        {"nodes": {"max": 9_999, "spares": 2}},
        "spec.nodes.spares",
        "together must not be greater than 10000",
    ),
    Bad(
        "autoscaling without a range",
        {"nodes": {"min": 2}, "autoscale": {"enabled": True}},
        "spec.autoscale.enabled",
        "nodes.max must be greater than nodes.min",
    ),
    Bad("all in pauses", {"autoscale": {"maxPauseShare": 0.6}}, "spec.autoscale.maxPauseShare"),
    Bad("efficiency of one", {"autoscale": {"minEfficiency": 1}}, "spec.autoscale.minEfficiency"),
    Bad("cool-down without a unit", {"autoscale": {"coolDown": "60"}}, "spec.autoscale.coolDown"),
    Bad("no process", {"nodes": {"procPerNode": 0}}, "spec.nodes.procPerNode"),
    Bad("accelerator without a domain", {"nodes": {"acceleratorResource": "gpu"}}, "spec.nodes.acceleratorResource"),
    Bad("two models", {"model": {"pretrained": "/m"}}, "spec.model", "give exactly one of model.preset"),
    Bad("empty model", {"model": {"preset": None}}, "spec.model", "give exactly one of model.preset"),
    Bad("unknown preset", {"model": {"preset": "gpt-5"}}, "spec.model.preset"),
    Bad(
        "odd head dimension",
        {"model": {"preset": None, "architecture": {**ARCHITECTURE, "hiddenSize": 60}}},
        "spec.model.architecture.hiddenSize",
        "hiddenSize must be a multiple of 2 * heads",
    ),
    Bad(
        "kvHeads that do not divide",
        {"model": {"preset": None, "architecture": {**ARCHITECTURE, "kvHeads": 3}}},
        "spec.model.architecture.kvHeads",
        "heads must be a multiple of kvHeads",
    ),
    Bad(
        "architecture without layers",
        {"model": {"preset": None, "architecture": {"hiddenSize": 64, "heads": 4}}},
        "spec.model.architecture.layers",
    ),
    Bad("model by name", {"model": {"preset": None, "pretrained": "model"}}, "spec.model.pretrained"),
    Bad("half a hub id", {"model": {"preset": None, "pretrained": "org/model@"}}, "spec.model.pretrained"),
    Bad("three-part hub id", {"model": {"preset": None, "pretrained": "a/b/c"}}, "spec.model.pretrained"),
    Bad("relative source", {"data": {"source": "data"}}, "spec.data.source"),
    Bad("source in a bucket", {"data": {"source": "s3://bucket/text"}}, "spec.data.source"),
    Bad("claim in capitals", {"data": {"source": "pvc://Claim/text"}}, "spec.data.source"),
    Bad("no source", {"data": {"source": None}}, "spec.data.source"),
    Bad("unknown format", {"data": {"format": "csv"}}, "spec.data.format"),
    Bad("tokenizer by name", {"data": {"tokenizer": "gpt2"}}, "spec.data.tokenizer"),
    Bad("sequence of one", {"data": {"sequenceLength": 1}}, "spec.data.sequenceLength"),
    Bad("all for validation", {"data": {"validationFraction": 1}}, "spec.data.validationFraction"),
    Bad("no steps", {"training": {"maxSteps": 0}}, "spec.training.maxSteps"),
    Bad("steps as text", {"training": {"maxSteps": "many"}}, "spec.training.maxSteps"),
    Bad("half a batch", {"training": {"globalBatchSize": 0.5}}, "spec.training.globalBatchSize"),
    Bad(
        "micro over global batch",
        {"training": {"microBatchSize": 9}},
        "spec.training.microBatchSize",
        "must not be greater than globalBatchSize",
    ),
    Bad(
        "fewer sequences than workers",
        {"nodes": {"min": 5, "procPerNode": 2}},
        "spec.training.globalBatchSize",
        "each worker needs a sequence",
    ),
    Bad("unknown precision", {"training": {"precision": "fp8"}}, "spec.training.precision"),
    Bad("unknown optimizer", {"training": {"optimizer": {"type": "Adam"}}}, "spec.training.optimizer.type"),
    Bad("no learning rate", {"training": {"optimizer": {"lr": 0}}}, "spec.training.optimizer.lr"),
    Bad("one beta", {"training": {"optimizer": {"betas": [0.9]}}}, "spec.training.optimizer.betas"),
    Bad("beta of one", {"training": {"optimizer": {"betas": [0.9, 1]}}}, "spec.training.optimizer.betas[1]"),
    Bad(
        "warm-up beyond the end",
        {"training": {"schedule": {"warmupSteps": 101}}},
        "spec.training.schedule.warmupSteps",
        "must not be greater than maxSteps",
    ),
    Bad("ratio over one", {"training": {"schedule": {"minLrRatio": 1.5}}}, "spec.training.schedule.minLrRatio"),
    Bad("stage 4", {"deepspeed": {"stage": 4}}, "spec.deepspeed.stage"),
    Bad(
        "offload without ZeRO",
        {"deepspeed": {"stage": 0, "offloadOptimizer": "cpu"}},
        "spec.deepspeed.offloadOptimizer",
        "offloadOptimizer needs ZeRO",
    ),
    Bad(
        "script and module",
        {"entrypoint": {"script": "a.py", "module": "a"}},
        "spec.entrypoint",
        "give exactly one of entrypoint.script and entrypoint.module",
    ),
    Bad(
        "snapshots now and then", {"checkpoint": {"flash": {"everySteps": "often"}}}, "spec.checkpoint.flash.everySteps"
    ),
    Bad("snapshots never", {"checkpoint": {"flash": {"everySteps": 0}}}, "spec.checkpoint.flash.everySteps"),
    Bad("storage without a scheme", {"checkpoint": {"durable": {"storage": "/x"}}}, "spec.checkpoint.durable.storage"),
    Bad(
        "interval without a unit",
        {"checkpoint": {"durable": {"storage": "s3://b", "every": "10"}}},
        "spec.checkpoint.durable.every",
    ),
    Bad("negative budget", {"recovery": {"maxRestarts": -1}}, "spec.recovery.maxRestarts"),
    Bad("tracking without a tracker", {"tracking": {"everySteps": 5}}, "spec.tracking", "give at least one of"),
    Bad("event files in a bucket", {"tracking": {"tensorboard": {"dir": "s3://b/t"}}}, "spec.tracking.tensorboard.dir"),
    Bad(
        "offline without a folder",
        {"tracking": {"wandb": {"project": "p", "mode": "offline"}}},
        "spec.tracking.wandb.dir",
        "dir is required where mode is offline",
    ),
    Bad(
        "online without a key",
        {"tracking": {"swanlab": {"project": "p"}}},
        "spec.tracking.swanlab.credentials",
        "credentials are required where mode is online",
    ),
    Bad(
        "a key that is of no use",
        {"tracking": {"wandb": {"project": "p", "mode": "offline", "dir": "/d", "credentials": {"secretName": "k"}}}},
        "spec.tracking.wandb.credentials",
        "of no use where it is offline",
    ),
    Bad(
        "a key without its secret",
        {"tracking": {"wandb": {"project": "p", "credentials": {"key": "K"}}}},
        "spec.tracking.wandb.credentials.secretName",
    ),
    Bad("no project", {"tracking": {"swanlab": {"mode": "offline", "dir": "/d"}}}, "spec.tracking.swanlab.project"),
    Bad(
        "a database of one's own",
        {"tracking": {"mlflow": {"trackingUri": "sqlite:///m.db"}}},
        "spec.tracking.mlflow.trackingUri",
    ),
    Bad(
        "credentials for a folder",
        {"tracking": {"mlflow": {"trackingUri": "/m", "credentials": {"secretName": "k", "tokenKey": "t"}}}},
        "spec.tracking.mlflow.credentials",
        "credentials are for a server",
    ),
    Bad(
        "a token and a user",
        {
            "tracking": {
                "mlflow": {
                    "trackingUri": "https://m",
                    "credentials": {"secretName": "k", "tokenKey": "t", "usernameKey": "u"},
                }
            }
        },
        "spec.tracking.mlflow.credentials",
        "give either tokenKey, or usernameKey and passwordKey",
    ),
    Bad(
        "tracking of a script",
        {"entrypoint": {"script": "/a.py"}, "tracking": {"tensorboard": {"dir": "/t"}}},
        "spec.tracking",
        "tracking is the reference trainer's",
    ),
    Bad("output in a bucket", {"output": "s3://bucket/model"}, "spec.output"),
)
