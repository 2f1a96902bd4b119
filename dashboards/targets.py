"""Where Prometheus finds what it is to scrape on a cluster: a file that follows the pods.

Debian's Prometheus is built without the discovery of Kubernetes. So a thread lists the pods, and writes the file when
they have changed; Prometheus watches it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

Pod = Mapping[str, Any]
_INTERVAL: Final = 2.0
_PORT: Final = "metrics"


def targets(pods: Sequence[Pod]) -> list[str]:
    """`host:port` of every running pod of ours that has a port called metrics: the operator's and the members'."""
    running = (pod for pod in pods if pod["status"].get("phase") == "Running" and pod["status"].get("podIP"))
    found = {
        f"{pod['status']['podIP']}:{port['containerPort']}"
        for pod in running
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
        if port.get("name") == _PORT
    }
    return sorted(found)


@contextmanager
def followed(directory: Path, pods: Callable[[], Sequence[Pod]]) -> Iterator[dict[str, Any]]:
    """A scrape_config whose targets are those of `pods()`, asked again every two seconds until the block ends."""
    file, ended = directory / "targets.json", threading.Event()

    def write() -> None:
        text = json.dumps([{"targets": targets(pods())}])
        if not file.exists() or file.read_text() != text:
            fresh = file.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(file)

    def follow() -> None:
        while not ended.wait(_INTERVAL):
            write()

    write()
    follower = threading.Thread(target=follow, name="targets", daemon=True)
    follower.start()
    try:
        yield {"job_name": "llmtrain", "file_sd_configs": [{"files": [str(file)], "refresh_interval": "5s"}]}
    finally:
        ended.set()
        follower.join()
