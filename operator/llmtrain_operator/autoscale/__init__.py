"""How many members a job should have: a pure policy, the model that it predicts with, and a simulator of both."""

from llmtrain_operator.autoscale.policy import decide
from llmtrain_operator.autoscale.records import OWN_ACCORD, Capacity, Decision, Limits, Loss, Sample, Situation, limits
from llmtrain_operator.autoscale.sharing import Claim, share
from llmtrain_operator.autoscale.throughput import Curve, fit, observed

__all__ = [
    "OWN_ACCORD",
    "Capacity",
    "Claim",
    "Curve",
    "Decision",
    "Limits",
    "Loss",
    "Sample",
    "Situation",
    "decide",
    "fit",
    "limits",
    "observed",
    "share",
]
