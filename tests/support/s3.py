"""A real S3 server (versitygw over a directory) that a test can stop, start again and damage from below."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from devcluster import binaries

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
_HEALTH = "/health"


class S3Server:
    """Serves the directories below `root` as buckets, on the same port however often it is stopped and started.

    `port` 0 takes a free one. `prefix` is a command that runs the server elsewhere, such as in another network
    namespace, where `host` must be an address.
    """

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0, prefix: Sequence[str] = ()) -> None:
        self.root, self._host, self._prefix = root, host, tuple(prefix)
        self.port = port or _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._tls = False
        root.mkdir(exist_ok=True)

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know, as the members' environment has it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def bucket(self, name: str) -> Path:
        """Make a bucket; the directory in which its objects lie as files."""
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket with all that is in it, from below; `bucket` makes it again, empty."""
        for path in (self.root / name, self.metadata / name):
            shutil.rmtree(path, ignore_errors=True)

    def start(self, *options: str, cert: Path | None = None, key: Path | None = None) -> None:
        """Start it with these global options of versitygw, and return when it answers; with a certificate over TLS."""
        self._tls = cert is not None
        options += ("--cert", str(cert), "--key", str(key)) if self._tls else ()
        program = str(binaries.ensure().path("versitygw"))
        keys = ["--access", ACCESS_KEY, "--secret", SECRET_KEY]
        where = ["--port", f"{self._host}:{self.port}", "--health", _HEALTH, "--quiet"]
        command = [program, *where, *keys, *options, "posix", "--sidecar", str(self.metadata), str(self.root)]
        self.metadata.mkdir(exist_ok=True)
        # The kernel ends it with this process, also when that is killed.
        self._process = subprocess.Popen(
            [*self._prefix, "setpriv", "--pdeathsig", "KILL", *command],
            stdout=subprocess.DEVNULL,
            stderr=(log := self._log.open("ab")),
        )
        log.close()
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Kill it; connections are refused from now on."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block it accepts connections and answers nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @property
    def metadata(self) -> Path:
        """Beside the buckets: file systems of containers may have no extended attributes."""
        return self.root.with_name(f"metadata-of-{self.root.name}")

    @property
    def _log(self) -> Path:
        return self.root.with_name(f"{self.root.name}.log")

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process
            assert self._process.poll() is None, f"versitygw died: {self._log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.endpoint} does not answer"
            time.sleep(0.02)

    def _answers(self) -> bool:
        url = self.endpoint + _HEALTH
        if not self._prefix:
            return _answers(url)
        ask = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=1)"
        return not subprocess.run(
            [*self._prefix, sys.executable, "-c", ask], capture_output=True, check=False
        ).returncode


@contextlib.contextmanager
def s3_server(root: Path, *buckets: str) -> Iterator[S3Server]:
    """A running server with these buckets, gone after the block with all that it stored."""
    server = S3Server(root)
    for name in buckets:
        server.bucket(name)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        for left in (root, server.metadata):
            shutil.rmtree(left, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(url, timeout=1, context=anyone) as response:
            return response.status == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
