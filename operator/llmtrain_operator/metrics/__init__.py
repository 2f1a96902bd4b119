"""What Prometheus gets to see of an operator process: its own health, and each job's numbers as its status has them.

The tables of the jobs' series are pure; `registry` holds what is counted and the newest statuses.
"""

from llmtrain_operator.metrics.registry import Metrics

__all__ = ["Metrics"]
