"""A small client of the cluster's API server for what devcluster itself needs: JSON in, JSON out, as administrator."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The API server said no (`status` is the HTTP code) or could not be reached (`status` 0)."""

    def __init__(self, status: int, message: str) -> None:
        """Keep the code for callers that react to it."""
        super().__init__(message)
        self.status = status


class KubeApi:
    """Requests to one API server with the certificates in `pki`."""

    def __init__(self, url: str, pki: Path) -> None:
        """Load the certificates; connects to nothing yet."""
        self.url = url
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))

    def text(self, path: str, method: str = "GET", body: Json | None = None, *, kind: str = "application/json") -> str:
        """One request, at most 5 s; ApiError unless the answer is a success."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, f"{method} {path}: {error.read().decode()[:500]}") from error
        except OSError as error:
            raise ApiError(0, f"{method} {path}: {error}") from error

    def get(self, path: str) -> Json:
        """GET an object or a list."""
        found: Json = json.loads(self.text(path))
        return found

    def create(self, path: str, body: Json) -> None:
        """POST an object; one that is already there is left alone."""
        try:
            self.text(path, "POST", body)
        except ApiError as error:
            if error.status != 409:
                raise

    def patch(self, path: str, body: Json) -> None:
        """Merge-patch an object."""
        self.text(path, "PATCH", body, kind=MERGE_PATCH)

    def has(self, condition: Callable[[], object]) -> bool:
        """Whether a condition about the API's objects holds; a server that does not answer or find it means no."""
        try:
            return bool(condition())
        except ApiError:
            return False

    def ready(self) -> bool:
        """Whether the API server calls itself ready."""
        return self.has(lambda: self.text("/readyz") == "ok")

    def ready_nodes(self) -> set[str]:
        """Nodes that are Ready and carry no taint."""
        return {
            node["metadata"]["name"]
            for node in self.get("/api/v1/nodes")["items"]
            if not node["spec"].get("taints")
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in node["status"].get("conditions", [])
            )
        }
