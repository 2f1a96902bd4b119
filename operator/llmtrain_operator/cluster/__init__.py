"""Kubernetes: the only package that imports its client. `cluster.Cluster` implements the controller's port."""
