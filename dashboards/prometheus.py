"""A real Prometheus for the time of a test or of a run that is drawn: in a directory of its own, on loopback alone.

It takes the labels `namespace` and `job` as the exporters give them (honor_labels), as the chart's monitors do.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

_FETCH: Final = """
import sys, urllib.error, urllib.request
try:
    sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=20).read())
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode())
"""
_START_SECONDS: Final = 60.0
_LOOK_INTERVAL: Final = 0.1


class PrometheusError(Exception):
    """Prometheus did not start, or refused a query; the message has its own words."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its times (seconds since 1970) and values in order of time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def newest(self) -> float:
        """Its last value."""
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server that runs. `prefix`: the command that enters its network, if that is another one."""

    port: int
    prefix: tuple[str, ...] = ()

    def query(self, expr: str, at: float | None = None) -> list[Series]:
        """The newest values, or those of a moment. Raises PrometheusError."""
        when = {} if at is None else {"time": str(at)}
        return [Series(each["metric"], (_point(each["value"]),)) for each in self._ask("query", {"query": expr} | when)]

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Values every `step` seconds. Raises PrometheusError."""
        found = self._ask("query_range", {"query": expr, "start": str(start), "end": str(end), "step": str(step)})
        return [Series(each["metric"], tuple(_point(value) for value in each["values"])) for each in found]

    def until(self, expr: str, seconds: float) -> list[Series]:
        """The answer as soon as there is one. PrometheusError after `seconds` without."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expr)):
            if time.monotonic() > deadline:
                raise PrometheusError(f"no series in {seconds:.0f} s: {expr}")
            time.sleep(_LOOK_INTERVAL)
        return found

    def _ask(self, what: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = self.get(f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}")
        result: list[dict[str, Any]] = json.loads(answer)["data"]["result"]
        return result

    def get(self, path: str) -> bytes:
        """What it answers. PrometheusError if it does not."""
        url = f"http://127.0.0.1:{self.port}{path}"
        if not self.prefix:
            return _fetched(url)
        command = [*self.prefix, sys.executable, "-c", _FETCH, url]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        if done.returncode:
            raise PrometheusError(f"{path}: {done.stderr.decode()[-400:]}")
        return done.stdout


@contextmanager
def running(
    directory: Path,
    scrapes: Sequence[Mapping[str, Any]],
    *,
    rules: Sequence[Path] = (),
    interval: str = "3s",
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Prometheus]:
    """A Prometheus with these scrape_configs and files of rules, ready; it ends with the block.

    Raises PrometheusError if it does not start.
    """
    config = directory / "prometheus.yml"
    jobs = [{"honor_labels": True, **scrape} for scrape in scrapes]
    pace = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), interval)
    whole = {"global": pace, "rule_files": [str(rule.resolve()) for rule in rules], "scrape_configs": jobs}
    config.write_text(yaml.safe_dump(whole))
    port = _free_port()
    command = [
        *prefix,
        # The kernel ends it with this process, or with the one that enters the other network, whatever ends that.
        *("setpriv", "--pdeathsig", "TERM", shutil.which("prometheus") or "prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    if shutil.which("prometheus") is None:
        raise PrometheusError("there is no prometheus: make setup, or apt-get install prometheus")
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            server = Prometheus(port, tuple(prefix))
            _wait(server, process, directory / "prometheus.log")
            yield server
        finally:
            process.terminate()
            process.wait(20)


def _wait(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.get("/-/ready")
        except PrometheusError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise PrometheusError(f"prometheus does not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(_LOOK_INTERVAL)
        else:
            return


def _fetched(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise PrometheusError(f"{url}: {error.read().decode()[-400:]}") from error
    except OSError as error:
        raise PrometheusError(f"{url}: {error}") from error


def _point(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def _free_port() -> int:
    """Of this machine; in a network of its own nearly every port is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
