"""The `LLMTrainJob` API: models from which the CRD is generated, defaults, and validation.

The models are the truth. `crd` turns them into crds/llmtrainjobs.yaml, `validation` finds what a schema cannot say.
"""

from llmtrain_operator.api.spec import JobSpec
from llmtrain_operator.api.status import (
    CheckpointStatus,
    Condition,
    EndingStatus,
    FailureStatus,
    FlashStatus,
    HolderStatus,
    JobStatus,
    LLMTrainJob,
    MemberStatus,
    ProgressStatus,
    RoundStatus,
)

__all__ = [
    "CheckpointStatus",
    "Condition",
    "EndingStatus",
    "FailureStatus",
    "FlashStatus",
    "HolderStatus",
    "JobSpec",
    "JobStatus",
    "LLMTrainJob",
    "MemberStatus",
    "ProgressStatus",
    "RoundStatus",
]
