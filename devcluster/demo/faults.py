"""What the demo does to a member in the middle of training."""

import time
from typing import Protocol

from devcluster.cluster import Cluster
from devcluster.demo.stage import JOB, SYSTEM, Stage

MEMBERS = ("-l", f"llmtrain.io/job={JOB}", "--field-selector=status.phase=Running")


class Fault(Protocol):
    """Something bad that happens to one member, and its end."""

    def strike(self) -> float:
        """Let it happen. Returns the moment on the monotonic clock."""

    def undo(self) -> None:
        """Bring back what was taken, if Kubernetes does not by itself."""


class PulledPlug:
    """The power of a node goes off, as if its plug were pulled: nothing says goodbye."""

    def __init__(self, stage: Stage, cluster: Cluster) -> None:
        self._stage, self._cluster = stage, cluster
        self._victim = ""

    def strike(self) -> float:
        """Take a node with a member; one without an operator if there is one, since that is the plainer story."""
        members = {pod["spec"]["nodeName"] for pod in self._stage.pods(*MEMBERS)}
        operators = {pod["spec"].get("nodeName") for pod in self._stage.pods(namespace=SYSTEM)}
        self._victim = max(members, key=lambda node: (node not in operators, node))
        moment = time.monotonic()
        self._cluster.node(self._victim).off()
        self._stage.console.print(f"[bold red]{self._victim} has lost its power")
        return moment

    def undo(self) -> None:
        """Switch the node on again."""
        self._cluster.node(self._victim).on()
        self._stage.console.print(f"[bold green]{self._victim} is back")


class KilledPod:
    """A member's pod is deleted without grace: all that may be done on a cluster of someone's own."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def strike(self) -> float:
        """Take the last member."""
        name = max(pod["metadata"]["name"] for pod in self._stage.pods(*MEMBERS))
        moment = time.monotonic()
        self._stage.show("delete", "pod", name, "--grace-period=0", "--force")
        return moment

    def undo(self) -> None:
        """Nothing: the operator has asked for a new pod already."""
