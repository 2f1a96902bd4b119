"""The page's HTTP server, for the browser of the user who started it.

Guarantee: nothing is given out but to requests that know the key in the address, and under a name of this machine, so
that neither its other users nor a web page that makes a name point here get anything. It only reads. Readers are
bounded, and one that does not take what it is sent is dropped. Plain HTTP: on another address than the loopback one
whoever can listen to the network can read along.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import mimetypes
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from llmtrain_operator.dashboard.board import Board

MOST_CONNECTIONS: Final = 32
_BEAT: Final = 5.0
"""Seconds after which a reader is told that nothing has changed, so that it knows that there still is a server."""
_SLOWEST: Final = 10.0
"""Seconds that a reader may take to ask, or to take what it is sent."""
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NO_KEY: Final = "This address lacks its key, or has an old one: open the one that `llmtrain dashboard` has printed."
_NO_NAME: Final = "Open the page under localhost, an IP address, or this machine's own name."


def assets() -> dict[str, tuple[str, bytes]]:
    """The files of the page by their names: media type and content."""
    folder = resources.files("llmtrain_operator.dashboard") / "page"
    return {
        file.name: (mimetypes.guess_type(file.name)[0] or "text/plain", file.read_bytes()) for file in folder.iterdir()
    }


class Server(ThreadingHTTPServer):
    """Serves `board` at `address`; `port` 0 asks for a free one. Raises `OSError` if the port is taken."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, board: Board, key: str, address: str, port: int) -> None:
        self.board, self.key, self.assets = board, key, assets()
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host, port = self.server_address[:2]
        named = ipaddress.ip_address(str(host))
        if named.is_unspecified:
            named = ipaddress.ip_address("127.0.0.1" if named.version == 4 else "::1")
        return f"http://{f'[{named}]' if named.version == 6 else named}:{port}/{self.key}/"

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name that the base class makes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there are not too many already."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is nothing to complain of."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request: a file of the page, or its news as Server-Sent Events."""

    server: Server
    timeout = _SLOWEST

    def do_GET(self) -> None:
        """Answer, if the address has the key and the name is this machine's."""
        path, _, query = self.path.partition("?")
        _, key, *rest = [*path.split("/", 2), ""][:3]
        if not _is_here(self.headers.get("Host", "")):
            self._answer(421, "text/plain", _NO_NAME.encode())
        elif not hmac.compare_digest(key.encode(), self.server.key.encode()):
            self._answer(403, "text/plain", _NO_KEY.encode())
        elif path.count("/") == 1:
            self._begin(308, "text/plain", {"Location": f"/{key}/", "Content-Length": "0"})
        elif rest == ["news"]:
            self._stream((parse_qs(query).get("job") or [""])[0])
        elif found := self.server.assets.get(rest[0] or "index.html"):
            self._answer(200, *found)
        else:
            self._answer(404, "text/plain", b"There is no such thing here.")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Requests are nobody's business, and their addresses have the key in them."""

    def _stream(self, job: str) -> None:
        self._begin(200, "text/event-stream")
        for news in self.server.board.read(job, _BEAT):
            self.wfile.write(f"data: {news.model_dump_json(by_alias=True) if news else '{}'}\n\n".encode())

    def _answer(self, code: int, kind: str, content: bytes) -> None:
        self._begin(code, kind, {"Content-Length": str(len(content))})
        self.wfile.write(content)

    def _begin(self, code: int, kind: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response_only(code)
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        for name, value in {"Content-Type": kind + charset, **_HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()


def _is_here(host: str) -> bool:
    """Whether a request's Host is this machine by a name that nobody else can make point here. The port may be
    another one: that of a tunnel."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name in {"localhost", socket.gethostname().lower()}


@contextlib.contextmanager
def serving(board: Board, key: str, address: str, port: int) -> Iterator[str]:
    """Serve while the context lasts; gives the page's address. Raises `OSError` if there is no such address or port."""
    server = Server(board, key, address, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        board.close()
        server.shutdown()
        server.server_close()
        thread.join()
