"""A job that shows everything the boards are about, on nodes.

What is here serves the test that proves the boards on a real run, and the run that the pictures are drawn from.
"""

from __future__ import annotations

from typing import Any, Final

JOB: Final = "gpt"
CLAIM: Final = "models"


def claim() -> dict[str, Any]:
    """Storage for its checkpoints."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}


def job(steps: int) -> dict[str, Any]:
    """Three members, each on a node; validation and durable checkpoints now and then; objectives that can be kept."""
    spec = {
        "nodes": {"min": 1, "max": 3},
        "model": {"preset": "gpt-tiny"},
        "data": {
            "source": "/opt/venv/lib/python3.11/site-packages/torch/nn",
            "include": ["**/*.py"],
            "sequenceLength": 64,
            "validationFraction": 0.05,
        },
        "training": {
            "globalBatchSize": 6,
            "maxSteps": steps,
            "optimizer": {"lr": 1.0e-3},
            "evaluation": {"everySteps": 40, "maxBatches": 2},
        },
        "checkpoint": {"durable": {"storage": f"pvc://{CLAIM}/checkpoints", "everySteps": 30}},
        "recovery": {"objectives": {"process": "60s", "node": "60s", "lostSteps": 0}},
        "scheduling": {"topology": {"policy": "spread", "required": True}},
    }
    return {"apiVersion": "llmtrain.io/v1alpha1", "kind": "LLMTrainJob", "metadata": {"name": JOB}, "spec": spec}
