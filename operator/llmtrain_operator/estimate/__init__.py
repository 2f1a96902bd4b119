"""What a job will take, from its spec alone: parameters, FLOPs, memory, time, checkpoints. Pure.

Each room states what its figures hold for; `report` brings them together, `prior` is for the autoscaler.
"""

from llmtrain_operator.estimate.prior import step_seconds
from llmtrain_operator.estimate.stores import SLOTS, flash_bytes, parameters, state_bytes

__all__ = ["SLOTS", "flash_bytes", "parameters", "state_bytes", "step_seconds"]
