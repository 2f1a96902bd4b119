"""Clusters for the tiers that need one; nothing is started for tests that do not ask."""

pytest_plugins = ["devcluster.pytest_plugin"]
