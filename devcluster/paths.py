"""Where devcluster keeps things: built binaries and images are shared by all clusters, run directories are per cluster.

Everything lies below one cache root ($LLMTRAIN_CACHE, else ~/.cache/llmtrain), so that deleting it forgets everything.
"""

import os
from pathlib import Path


def cache_root() -> Path:
    """Root of all caches; created by whoever writes below it."""
    return Path(os.environ.get("LLMTRAIN_CACHE") or Path.home() / ".cache" / "llmtrain").absolute()


def clusters_root() -> Path:
    """Directory with one run directory per cluster."""
    return cache_root() / "clusters"


def cluster_dir(name: str) -> Path:
    """Run directory of the cluster `name`: state, certificates, logs, disks of the nodes, shared storage."""
    return clusters_root() / name
