"""The `LLMTrainJob` API: models from which the CRD is generated, defaults, and validation.

The models are the truth. `crd` turns them into crds/llmtrainjobs.yaml, `validation` finds what a schema cannot say.
"""

from llmtrain_operator.api.spec import JobSpec, Objectives
from llmtrain_operator.api.status import (
    AvoidedNodeStatus,
    CheckpointStatus,
    Condition,
    EndingStatus,
    FailureStatus,
    FlashStatus,
    HistoryStatus,
    HolderStatus,
    IncidentStatus,
    JobStatus,
    LeavingNodeStatus,
    LLMTrainJob,
    MemberStatus,
    NodeFailureStatus,
    ProgressStatus,
    RejectionStatus,
    ReplacedStatus,
    RollbackStatus,
    RoundStatus,
    SegmentStatus,
    StragglerStatus,
    TallyStatus,
    UnheardStatus,
)

__all__ = [
    "AvoidedNodeStatus",
    "CheckpointStatus",
    "Condition",
    "EndingStatus",
    "FailureStatus",
    "FlashStatus",
    "HistoryStatus",
    "HolderStatus",
    "IncidentStatus",
    "JobSpec",
    "JobStatus",
    "LLMTrainJob",
    "LeavingNodeStatus",
    "MemberStatus",
    "NodeFailureStatus",
    "Objectives",
    "ProgressStatus",
    "RejectionStatus",
    "ReplacedStatus",
    "RollbackStatus",
    "RoundStatus",
    "SegmentStatus",
    "StragglerStatus",
    "TallyStatus",
    "UnheardStatus",
]
