"""Experiment trackers: what training says of itself, kept in TensorBoard, Weights & Biases, SwanLab or MLflow.

`tracking` is all that the training loop sees. Rank 0 hands points to one process for each backend (`process`), which
alone imports the backend's library. Guarantee: no backend that fails, hangs or is slow costs training more than two
system calls at a step; and each point is in the record once, although steps are done again after a fault and the
processes die with their worker. Limits: see docs/tracking.md.
"""
