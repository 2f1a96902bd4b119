"""Faults done to a running job on purpose, and what became of it: by hand, or as a random campaign from a seed.

`faults.py` names them, `campaign.py` decides which comes when and what the job can bear, `run.py` carries it out by a
`Hand`: `hands.py` has those for runs on this machine and for a cluster's pods, `devcluster.chaos` one for whole nodes.
"""
