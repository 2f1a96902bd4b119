"""`make demo` on the embedded cluster or on one of the user's.

On the embedded cluster a node loses its power in the middle, and everything is removed at the end, also after an error
or Ctrl-C. On a cluster of the user's a member's pod is deleted instead, the chart is installed only if the API is not
there, and what the demo made is deleted again: its namespace, and the chart if it came with the demo.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from devcluster import binaries, charts
from devcluster.cluster import Cluster
from devcluster.demo.faults import KilledPod, PulledPlug
from devcluster.demo.stage import NAMESPACE, SYSTEM, Stage
from devcluster.demo.story import ROOT, play
from devcluster.errors import DevclusterError

CHART = ROOT / "charts" / "llmtrain"
CRD = "llmtrainjobs.llmtrain.io"


def embedded(console: Console) -> None:
    """The demo on a cluster of its own."""
    cluster = Cluster("demo", say=console.print, nodes=3)
    stage = Stage(cluster.kubectl, cluster.kubeconfig, charts.DEV_VALUES, console=console)
    try:
        with stage.part("Start Kubernetes on three nodes"):
            cluster.up(ephemeral=True)
        with stage.part("Install the chart"):
            charts.install(cluster.kubeconfig, CHART, "llmtrain", SYSTEM, stage.values)
        play(stage, PulledPlug(stage, cluster))
    finally:
        cluster.down()


def elsewhere(console: Console, kubeconfig: Path, image: str) -> None:
    """The demo on the user's cluster, with images PREFIX-operator:TAG and PREFIX-trainer:TAG for `image` PREFIX:TAG."""
    prefix, _, tag = image.rpartition(":")
    if not prefix or "/" in tag:
        raise DevclusterError(
            f"IMAGE={image}: give PREFIX:TAG; the images are PREFIX-operator:TAG and PREFIX-trainer:TAG"
        )
    values = {
        "image": {"repository": f"{prefix}-operator", "tag": tag},
        "trainerImage": {"repository": f"{prefix}-trainer", "tag": tag},
    }
    stage = Stage(binaries.ensure(console.print).path("kubectl"), kubeconfig, values, console=console)
    installed_here = CRD not in stage.run("get", "crd", "-o", "name")
    try:
        if installed_here:
            with stage.part("Install the chart"):
                charts.install(kubeconfig, CHART, "llmtrain", SYSTEM, values)
        play(stage, KilledPod(stage))
    finally:
        stage.run("delete", "namespace", NAMESPACE, "--ignore-not-found")
        if installed_here:
            charts.uninstall(kubeconfig, "llmtrain", SYSTEM)
            stage.run("delete", "namespace", SYSTEM, "--ignore-not-found")
            stage.run("delete", "crd", CRD, "--ignore-not-found")


def main() -> int:
    """Entry point; 1 with one line of explanation if something failed."""
    parser = argparse.ArgumentParser("make demo", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, help="use this cluster instead of an embedded one")
    parser.add_argument("--image", default="", help="PREFIX:TAG of the images there")
    options = parser.parse_args()
    console = Console(highlight=False)
    try:
        if options.kubeconfig is None:
            embedded(console)
        else:
            elsewhere(console, options.kubeconfig, options.image)
    except DevclusterError as error:
        console.print(f"[red]{error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
