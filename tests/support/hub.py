"""A model hub on loopback: the endpoints that huggingface_hub asks for a snapshot, over real HTTP.

It serves directories as repositories (ORG/NAME -> directory), each with one commit on `main`; those named as gated want
a token. As a program: `python -m tests.support.hub HOST PORT ORG/NAME=DIRECTORY ...`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_REPOSITORY = r"(?P<id>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPOSITORY}(/revision/(?P<revision>.+))?")
_TREE = re.compile(rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)/?")
_FILE = re.compile(rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
TOKEN = "hub-token-of-the-test"


@contextlib.contextmanager
def serving(
    repositories: Mapping[str, Path], gated: Collection[str] = (), host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """The hub's URL while it serves."""

    class Handler(_Handler):
        models, closed = repositories, gated

    with ThreadingHTTPServer((host, port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()


def commit(directory: Path) -> str:
    """The commit of a repository's files."""
    return hashlib.sha1("".join(_etag(file) for file in _files(directory)).encode()).hexdigest()


def _files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file())


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    models: Mapping[str, Path]
    closed: Collection[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in ((_INFO, self._info), (_TREE, self._tree), (_FILE, self._file)):
            if match := pattern.fullmatch(path):
                self._send(*self._checked(match, answer), with_body=with_body)
                return
        self._send(404, {}, b"", with_body=with_body)

    def _checked(self, match: re.Match[str], answer: Any) -> tuple[int, dict[str, str], bytes]:
        directory = self.models.get(match["id"])
        if directory is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if match["id"] in self.closed and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if match["revision"] not in (None, "main", commit(directory)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        return answer(match, directory)

    def _info(self, match: re.Match[str], directory: Path) -> tuple[int, dict[str, str], bytes]:
        siblings = [{"rfilename": str(file.relative_to(directory))} for file in _files(directory)]
        about = {"_id": "1", "id": match["id"], "modelId": match["id"], "sha": commit(directory), "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()

    def _tree(self, match: re.Match[str], directory: Path) -> tuple[int, dict[str, str], bytes]:
        del match
        entries = [
            {"type": "file", "path": str(f.relative_to(directory)), "size": f.stat().st_size, "oid": _etag(f)}
            for f in _files(directory)
        ]
        return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()

    def _file(self, match: re.Match[str], directory: Path) -> tuple[int, dict[str, str], bytes]:
        file = directory / match["path"]
        if not file.is_file() or directory not in file.parents:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit(directory)}, file.read_bytes()

    def _send(self, code: int, headers: Mapping[str, str], body: bytes, *, with_body: bool) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


if __name__ == "__main__":
    given = {name: Path(directory) for name, _, directory in (word.partition("=") for word in sys.argv[3:])}
    with serving(given, host=sys.argv[1], port=int(sys.argv[2])):
        print("serving", flush=True)
        sys.stdin.read()  # until whoever started it lets go
