"""How many members a job should have: a pure policy, the model that it predicts with, and a simulator of both."""

from llmtrain_operator.autoscale.policy import decide
from llmtrain_operator.autoscale.records import Capacity, Decision, Limits, Loss, Sample, Situation, limits

__all__ = ["Capacity", "Decision", "Limits", "Loss", "Sample", "Situation", "decide", "limits"]
