"""The `LLMTrainJob` API: models from which the CRD is generated, defaults, and validation.

The models are the truth. `crd` turns them into crds/llmtrainjobs.yaml, `validation` finds what a schema cannot say.
"""

from llmtrain_operator.api.recovery import Objectives
from llmtrain_operator.api.spec import JobSpec
from llmtrain_operator.api.status.autoscale import (
    AutoscaleStatus,
    CapacityLossStatus,
    ProbeRefusedStatus,
    ProbeStatus,
    ScalingStatus,
    StepTimesStatus,
    StepTimeStatus,
)
from llmtrain_operator.api.status.condition import Condition
from llmtrain_operator.api.status.failure import FailureStatus, IncidentStatus, RollbackStatus, SamplesStatus
from llmtrain_operator.api.status.goodput import HistoryStatus, SegmentStatus, TallyStatus, UnheardStatus
from llmtrain_operator.api.status.job import JobStatus, LLMTrainJob, State
from llmtrain_operator.api.status.progress import CheckpointStatus, FlashStatus, HolderStatus, ProgressStatus
from llmtrain_operator.api.status.round import EndingStatus, LeavingNodeStatus, MemberStatus, RoundStatus
from llmtrain_operator.api.status.times import Time
from llmtrain_operator.api.status.trust import (
    AvoidedNodeStatus,
    NodeFailureStatus,
    RejectionStatus,
    ReplacedStatus,
    StragglerStatus,
)

__all__ = [
    "AutoscaleStatus",
    "AvoidedNodeStatus",
    "CapacityLossStatus",
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
    "ProbeRefusedStatus",
    "ProbeStatus",
    "ProgressStatus",
    "RejectionStatus",
    "ReplacedStatus",
    "RollbackStatus",
    "RoundStatus",
    "SamplesStatus",
    "ScalingStatus",
    "SegmentStatus",
    "State",
    "StepTimeStatus",
    "StepTimesStatus",
    "StragglerStatus",
    "TallyStatus",
    "Time",
    "UnheardStatus",
]
