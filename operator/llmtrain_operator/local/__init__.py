"""A place to run jobs without a cluster: process groups on this machine in place of pods.

Planner, controller, coordinator, agent and trainer are those of the cluster; only `ports.ClusterPort` is another.
"""
