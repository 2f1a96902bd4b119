"""Labels, annotations, environment variables and reasons: every string that two processes must spell alike."""

from __future__ import annotations

import signal
from typing import Final

GROUP: Final = "llmtrain.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "LLMTrainJob"
PLURAL: Final = "llmtrainjobs"
SINGULAR: Final = "llmtrainjob"
SHORT_NAME: Final = "ltj"
CATEGORY: Final = "llmtrain"
FIELD_MANAGER: Final = "llmtrain-operator"

# Labels and annotations
LABEL_NAME: Final = "app.kubernetes.io/name"  # always "llmtrain"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"  # "member" on training pods
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"  # always "llmtrain-operator"
LABEL_JOB: Final = f"{GROUP}/job"
LABEL_INDEX: Final = f"{GROUP}/member-index"
LABEL_INCARNATION: Final = f"{GROUP}/incarnation"
ANNOTATION_GROUP_SIZE: Final = f"{GROUP}/group-size"  # members that are scheduled together or not at all
ANNOTATION_AVOIDS: Final = f"{GROUP}/avoids"  # on a pod: names of the nodes that it was made to keep off
ANNOTATION_DISCARD_PROGRESS: Final = f"{GROUP}/discard-progress"

# A training pod
CONTAINER: Final = "trainer"
AGENT_CONTAINER: Final = "agent"  # an init container, where the image is not ours
TOKEN_AUDIENCE: Final = f"{GROUP}/coordinator"
DEFAULT_COORDINATOR_PORT: Final = 7443
METRICS_PORT: Final = 9402  # of each member
METRICS_PORT_NAME: Final = "metrics"
TORCHRUN_BACKEND: Final = "llmtrain"  # torchrun --rdzv-backend=...
FLASH_DIRECTORY: Final = "/llmtrain/flash"  # in memory: the pod's snapshots
VOLUME_ROOT: Final = "/llmtrain/volumes"  # the claim of a pvc:// URI is mounted at VOLUME_ROOT/<claim>

# Environment of the agent (set by the operator in the pod)
ENV_JOB: Final = "LLMTRAIN_JOB"  # namespace/name
ENV_JOB_UID: Final = "LLMTRAIN_JOB_UID"
ENV_SPEC: Final = "LLMTRAIN_SPEC"  # the job's spec, validated and defaulted, as JSON
ENV_INDEX: Final = "LLMTRAIN_MEMBER_INDEX"
ENV_INCARNATION: Final = "LLMTRAIN_INCARNATION"
ENV_POD_NAME: Final = "LLMTRAIN_POD_NAME"
ENV_POD_UID: Final = "LLMTRAIN_POD_UID"
ENV_POD_IP: Final = "LLMTRAIN_POD_IP"
ENV_PROC_PER_NODE: Final = "LLMTRAIN_PROC_PER_NODE"
ENV_COORDINATOR: Final = "LLMTRAIN_COORDINATOR"  # comma-separated wss:// URLs; certificates are for the first's host
ENV_COORDINATOR_CA: Final = "LLMTRAIN_COORDINATOR_CA"  # PEM text of the CA that signed the coordinator's certificate
ENV_TOKEN_FILE: Final = "LLMTRAIN_TOKEN_FILE"  # projected service-account token, audience TOKEN_AUDIENCE
ENV_DATA_CACHE: Final = "LLMTRAIN_DATA_CACHE"  # directory for tokenised data
ENV_GRACE_SECONDS: Final = "LLMTRAIN_GRACE_SECONDS"  # between SIGTERM and SIGKILL for the workers
ENV_VOLUMES: Final = "LLMTRAIN_VOLUMES"  # where claims are, if not at VOLUME_ROOT: without a cluster

ENV_METRICS_PORT: Final = "LLMTRAIN_METRICS_PORT"  # where the agent serves its metrics; absent or 0: nowhere
ENV_FLASH: Final = "LLMTRAIN_FLASH"  # directory in memory for snapshots; absent: there is none
SIGNAL_STACK: Final = signal.SIGUSR2  # a worker shows its stack
ENV_STACK_FILE: Final = "LLMTRAIN_STACK_FILE"  # where a worker writes its stack when it gets SIGNAL_STACK
ENV_ZYGOTE: Final = "LLMTRAIN_ZYGOTE"  # "off": workers are started anew each time, not forked

# Environment of a worker (set by the agent, beside torchrun's own RANK, WORLD_SIZE, ...)
ENV_ROUND: Final = "LLMTRAIN_ROUND"
ENV_PROGRESS_SOCKET: Final = "LLMTRAIN_PROGRESS_SOCKET"  # unix datagram socket that takes `wire.Progress` as JSON
ENV_STEP_LOG: Final = "LLMTRAIN_STEP_LOG"  # file that rank 0 appends a line to after each step; absent: none
ENV_FLASH_SOCKET: Final = "LLMTRAIN_FLASH_SOCKET"  # unix datagram socket that takes notices of snapshots
ENV_FLASH_ADDRESS: Final = "LLMTRAIN_FLASH_ADDRESS"  # host:port where the agent hands out its pod's snapshots
ENV_MTBF: Final = "LLMTRAIN_MTBF"  # mean seconds between failures of the job so far; absent: it had none
ENV_FLASH_KEY: Final = "LLMTRAIN_FLASH_KEY"  # what members of the round prove themselves to each other with
ENV_AVOID: Final = "LLMTRAIN_AVOID"  # `wire.Avoid` as JSON: what was rolled back from; absent: nothing

EXIT_STOPPED: Final = 143  # 128 + SIGTERM, as a shell says it: a worker or agent that ended because it was told to

# Why a worker ended. Trainer errors carry one of these in their error file; the operator's ladder reads them.
REASON_OUT_OF_MEMORY: Final = "OutOfMemory"
REASON_NON_FINITE_LOSS: Final = "NonFiniteLoss"
REASON_LOSS_SPIKE: Final = "LossSpike"  # the loss has risen far out of line, and stays there
REASON_DATA_MISSING: Final = "DataMissing"
REASON_DATA_CORRUPT: Final = "DataCorrupt"
REASON_VOCABULARY_MISMATCH: Final = "VocabularyMismatch"
REASON_INVALID_CONFIG: Final = "InvalidConfig"
REASON_OUTPUT_UNWRITABLE: Final = "OutputUnwritable"
REASON_USER_ERROR: Final = "UserError"  # an exception or exit code of the user's code that is none of the above
REASON_PEER_LOST: Final = "PeerLost"  # a collective broke because another worker went away: the cause is elsewhere
REASON_KILLED: Final = "Killed"  # a signal
REASON_HANG: Final = "Hang"  # a worker that lives and does not go on
REASON_POD_LOST: Final = "PodLost"  # the pod, its node, or its agent went away
REASON_CHECKPOINT_MISMATCH: Final = "CheckpointMismatch"  # the storage holds checkpoints of another model or format
REASON_CHECKPOINT_LOST: Final = "CheckpointLost"  # the storage holds checkpoints, and none of them is valid
REASON_FENCED: Final = "Fenced"  # a newer round owns the storage: this worker is a leftover of an old one

# Why a checkpoint could not be written or read
REASON_STORAGE_FULL: Final = "StorageFull"
REASON_STORAGE_READ_ONLY: Final = "StorageReadOnly"
REASON_STORAGE_DENIED: Final = "StorageDenied"  # wrong credentials, or no right to it
REASON_STORAGE_MISSING: Final = "StorageMissing"  # no such bucket, claim or directory
REASON_STORAGE_UNREACHABLE: Final = "StorageUnreachable"

PERMANENT_REASONS: Final = frozenset(
    {
        REASON_DATA_MISSING,
        REASON_DATA_CORRUPT,
        REASON_VOCABULARY_MISMATCH,
        REASON_INVALID_CONFIG,
        REASON_OUT_OF_MEMORY,
        REASON_CHECKPOINT_MISMATCH,
        REASON_CHECKPOINT_LOST,
    }
)
"""Errors that a restart cannot cure: the same input gives them again."""

NUMERIC_REASONS: Final = frozenset({REASON_NON_FINITE_LOSS, REASON_LOSS_SPIKE})
"""Training itself went wrong: what is done then says recovery.numerics."""

REASONS: Final = frozenset(
    {
        *PERMANENT_REASONS,
        *NUMERIC_REASONS,
        REASON_OUTPUT_UNWRITABLE,
        REASON_USER_ERROR,
        REASON_PEER_LOST,
        REASON_KILLED,
        REASON_HANG,
        REASON_POD_LOST,
        REASON_FENCED,
        REASON_STORAGE_FULL,
        REASON_STORAGE_READ_ONLY,
        REASON_STORAGE_DENIED,
        REASON_STORAGE_MISSING,
        REASON_STORAGE_UNREACHABLE,
    }
)
"""All of them: the closed set that incidents are counted by."""

TIERS: Final = ("memory", "peer", "durable")
"""Where a restore reads from, the nearest first: its own pod's memory, other members', storage."""
