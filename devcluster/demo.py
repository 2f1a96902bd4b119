"""`make demo`: a job from `helm install` to generated text, on the embedded cluster or on one of the user's.

On the embedded cluster everything is removed at the end, also after an error or Ctrl-C. On a cluster of the user's the
chart is installed only if the API is not there, and what the demo made is deleted again: its namespace, and the chart
if it came with the demo.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from devcluster import binaries, charts
from devcluster.cluster import Cluster
from devcluster.errors import DevclusterError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "gpt-tiny.yaml"
CHART = ROOT / "charts" / "llmtrain"
JOB, NAMESPACE, SYSTEM = "gpt-tiny", "llmtrain-demo", "llmtrain-system"
SAMPLE_TOKENS = 100


@dataclass
class Demo:
    """One run: the cluster it is on, the images it uses, and how long its parts took."""

    kubectl: Path
    kubeconfig: Path
    values: dict[str, Any]
    times: dict[str, float] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False))

    @contextlib.contextmanager
    def part(self, title: str) -> Iterator[None]:
        """A part of the demo: announced, and timed if it succeeds."""
        self.console.rule(f"[bold]{title}", align="left")
        begun = time.monotonic()
        yield
        self.times[title] = time.monotonic() - begun

    def run(self, *words: str, stdin: str | None = None) -> str:
        """kubectl in the demo's namespace. DevclusterError with kubectl's words if it fails."""
        command = [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), "-n", NAMESPACE, *words]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
        if done.returncode:
            raise DevclusterError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def show(self, *words: str, stdin: str | None = None) -> None:
        """The same, with the command and its output on the screen."""
        self.console.print(f"[bold]$ kubectl {' '.join(words)}")
        self.console.print(self.run(*words, stdin=stdin).rstrip())

    @property
    def trainer_image(self) -> str:
        """The trainer image in use."""
        image = self.values["trainerImage"]
        return f"{image['repository']}:{image['tag']}"

    def play(self) -> None:
        """Apply, follow, sample, sum up."""
        with self.part("Apply the job"):
            self.run("create", "namespace", NAMESPACE)
            self.show("apply", "-f", str(EXAMPLE.relative_to(ROOT)))
        with self.part("Train"):
            self._follow()
        with self.part("Generate text with the exported model"):
            self.console.print(self._sample())
        self._sum_up()

    def _follow(self) -> None:
        command = [str(Path(sys.executable).with_name("llmtrain")), "status", JOB, "--watch", "-n", NAMESPACE]
        self.console.print(f"[bold]$ llmtrain status {JOB} --watch")
        done = subprocess.run([*command, "--kubeconfig", str(self.kubeconfig)], check=False)
        if done.returncode:
            self.show("logs", "-l", f"llmtrain.io/job={JOB}", "--tail=30", "--prefix")
            raise DevclusterError(f"the job did not complete (llmtrain status ended with {done.returncode})")

    def _sample(self) -> str:
        words = ["python3", "-m", "llmtrain_trainer.sample", "/models/gpt-tiny", "--prompt", "def forward(self"]
        container = {
            "name": "sample",
            "image": self.trainer_image,
            "command": [*words, "--tokens", str(SAMPLE_TOKENS)],
            "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
        }
        volume = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "sample"},
            "spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume]},
        }
        self.run("apply", "-f", "-", stdin=json.dumps(pod))
        self.run("wait", "pod/sample", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
        return self.run("logs", "sample").rstrip()

    def _sum_up(self) -> None:
        status = json.loads(self.run("get", "ltj", JOB, "-o", "json"))["status"]
        first = re.search(r"step 1/\d+ loss ([\d.]+)", self.run("logs", status["round"]["members"][0]["pod"]))
        progress = status["progress"]
        table = Table(title="What happened", show_header=False, title_justify="left")
        table.add_row("steps", f"{progress['step']} on {len(status['round']['members'])} members")
        table.add_row("loss before", first.group(1) if first else "not logged")
        table.add_row("loss after", f"{progress['loss']} (validation {progress.get('validationLoss', 'n/a')})")
        table.add_row("goodput", f"{status['goodput']} of {sum(status['ledger'].values()):.0f} s")
        for title, seconds in self.times.items():
            table.add_row(title.lower(), f"{seconds:.1f} s")
        table.add_row("all", f"{sum(self.times.values()):.1f} s")
        self.console.print(table)


def embedded(console: Console) -> None:
    """The demo on a cluster of its own."""
    cluster = Cluster("demo", say=console.print, nodes=3)
    demo = Demo(cluster.kubectl, cluster.kubeconfig, charts.DEV_VALUES, console=console)
    try:
        with demo.part("Start Kubernetes on three nodes"):
            cluster.up(ephemeral=True)
        with demo.part("Install the chart"):
            charts.install(cluster.kubeconfig, CHART, "llmtrain", SYSTEM, demo.values)
        demo.play()
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
    demo = Demo(binaries.ensure(console.print).path("kubectl"), kubeconfig, values, console=console)
    installed_here = "llmtrainjobs.llmtrain.io" not in demo.run("get", "crd", "-o", "name")
    try:
        if installed_here:
            with demo.part("Install the chart"):
                charts.install(kubeconfig, CHART, "llmtrain", SYSTEM, values)
        demo.play()
    finally:
        demo.run("delete", "namespace", NAMESPACE, "--ignore-not-found")
        if installed_here:
            charts.uninstall(kubeconfig, "llmtrain", SYSTEM)
            demo.run("delete", "namespace", SYSTEM, "--ignore-not-found")
            demo.run("delete", "crd", "llmtrainjobs.llmtrain.io", "--ignore-not-found")


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
