"""The `LLMTrainJob` API: models from which the CRD is generated, defaults, and validation.

The models are the truth. `crd` turns them into crds/llmtrainjobs.yaml, `validation` finds what a schema cannot say.
"""

from llmtrain_operator.api.spec import JobSpec
from llmtrain_operator.api.status import (
    Condition,
    FailureStatus,
    JobStatus,
    LLMTrainJob,
    MemberStatus,
    ProgressStatus,
    RoundStatus,
)

__all__ = [
    "Condition",
    "FailureStatus",
    "JobSpec",
    "JobStatus",
    "LLMTrainJob",
    "MemberStatus",
    "ProgressStatus",
    "RoundStatus",
]
