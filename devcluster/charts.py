"""Helm without a helm binary: a chart's life on a cluster, waiting until each step works or is gone."""

from pathlib import Path
from typing import Any

from helm_python import Config, HelmError

from devcluster.config import CONTROL_PLANE_IP, KUBERNETES_SERVICE_IP
from devcluster.errors import DevclusterError

_TIMEOUT_SECONDS = 120

DEV_VALUES: dict[str, Any] = {
    "image": {"repository": "localhost/llmtrain-operator", "tag": "dev", "pullPolicy": "Never"},
    "trainerImage": {"repository": "localhost/llmtrain-trainer", "tag": "dev"},
    # Name service and API server are processes beside the cluster, not pods.
    "networkPolicy": {
        "dns": {"to": [{"ipBlock": {"cidr": f"{CONTROL_PLANE_IP}/32"}}]},
        "apiServer": {"cidrs": [f"{CONTROL_PLANE_IP}/32", f"{KUBERNETES_SERVICE_IP}/32"]},
    },
}
"""Values of charts/llmtrain for the images that `python -m devcluster images` builds, and the embedded cluster."""


def install(kubeconfig: Path, chart: Path, release: str, namespace: str, values: dict[str, Any]) -> None:
    """`helm install --wait --create-namespace`. DevclusterError with Helm's own words if it does not come up."""
    with Config(kubeconfig_path=str(kubeconfig), namespace=namespace) as config:
        try:
            config.install(
                str(chart),
                release,
                values,
                namespace=namespace,
                create_namespace=True,
                wait="watcher",
                timeout=_TIMEOUT_SECONDS,
            )
        except HelmError as error:
            raise DevclusterError(f"helm install {release}: {error}") from error


def upgrade(kubeconfig: Path, chart: Path, release: str, namespace: str, values: dict[str, Any]) -> None:
    """`helm upgrade --wait` with these values and no others. DevclusterError as from `install`."""
    with Config(kubeconfig_path=str(kubeconfig), namespace=namespace) as config:
        try:
            config.upgrade(str(chart), release, values, reset_values=True, wait="watcher", timeout=_TIMEOUT_SECONDS)
        except HelmError as error:
            raise DevclusterError(f"helm upgrade {release}: {error}") from error


def rollback(kubeconfig: Path, release: str, namespace: str) -> None:
    """`helm rollback --wait` to the revision before. DevclusterError as from `install`."""
    with Config(kubeconfig_path=str(kubeconfig), namespace=namespace) as config:
        try:
            config.rollback(release, wait="watcher", timeout=_TIMEOUT_SECONDS)
        except HelmError as error:
            raise DevclusterError(f"helm rollback {release}: {error}") from error


def uninstall(kubeconfig: Path, release: str, namespace: str) -> None:
    """`helm uninstall --wait`; nothing happens if it is not there. The CRD, the jobs and the CA stay."""
    with Config(kubeconfig_path=str(kubeconfig), namespace=namespace) as config:
        config.uninstall(release, wait="watcher", timeout=_TIMEOUT_SECONDS, ignore_not_found=True)
