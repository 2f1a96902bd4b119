"""kubectl for tests: what a user would type, with the answers as Python objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class KubectlError(Exception):
    """kubectl said no; the message is its standard error."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one cluster and namespace."""

    program: Path
    kubeconfig: Path
    namespace: str = "default"

    def __call__(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run a command and return its standard output. Raises `KubectlError`."""
        command = [self.program, "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, *words]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=timeout, check=False)
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """`kubectl apply` of objects."""
        return self("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = json.loads(self("get", kind, name, "-o", "json"))
        return found

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind in the namespace."""
        listed: list[dict[str, Any]] = json.loads(self("get", kind, "-l", selector, "-o", "json"))["items"]
        return listed

    def wait(self, what: str, condition: str, seconds: int = 240) -> None:
        """`kubectl wait --for=CONDITION`; the object's status is in the error if it does not come true."""
        try:
            self("wait", what, f"--for={condition}", f"--timeout={seconds}s", timeout=seconds + 10)
        except KubectlError as error:
            status = self("get", what, "-o", "json")
            raise KubectlError(f"{what} never had {condition}: {error}\n{status[-6000:]}") from None

    def job(self, name: str) -> dict[str, Any]:
        """The status of a training job."""
        status: dict[str, Any] = self.get("ltj", name).get("status", {})
        return status

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """One condition of a training job."""
        found: dict[str, Any] = next(c for c in self.job(name)["conditions"] if c["type"] == kind)
        return found
