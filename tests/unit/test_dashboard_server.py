"""Who gets the live page, and who does not."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from llmtrain_operator.cli import main
from llmtrain_operator.dashboard import door, server
from llmtrain_operator.dashboard.server import assets, serving
from tests.support.stage import KEY, Stage, feeding, job, shown


@pytest.fixture
def url() -> Iterator[str]:
    """A dashboard of one job."""
    stage = Stage()
    stage.put(job())
    with shown(stage) as address:
        yield address


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
    """One request of `path` below the page's key, or as it is if it begins with a slash."""
    parts = urlsplit(url)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request(method, path if path.startswith("/") else parts.path + path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_page_is_whole_and_asks_nobody_else(url: str) -> None:
    """Every file that it names is here, and it names no other place."""
    assert "app.js" in ask(url, "")[1]
    for name, (kind, content) in assets().items():
        code, text, headers = ask(url, name)
        assert (code, headers["Content-Type"].split(";")[0], text) == (200, kind, content.decode())
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text


def test_answers_forbid_what_the_page_does_not_need(url: str) -> None:
    """No scripts but its own, none in the document, nothing in frames, no address to other places, nothing stored."""
    headers = ask(url, "")[2]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/", "/news", "/news?job=", "//news", "/wrong-key/", "/wrong-key/news", "/%C3%A9/news", "/[/news", "/app.js"],
)
def test_nothing_is_given_without_the_key(url: str, path: str) -> None:
    """Not even the page itself; the answer says what to do."""
    code, text, _ = ask(url, path)
    assert (code, "open the one that `llmtrain dashboard` has printed" in text) == (403, True)


@pytest.mark.parametrize("path", ["nothing", "../model.py", "%2e%2e/model.py", "news/", "__init__.py"])
def test_nothing_else_is_served(url: str, path: str) -> None:
    """Only the page's files, by their names."""
    assert ask(url, path)[0] == 404


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("[::1]:80", 200),
        (socket.gethostname(), 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(url: str, host: str, code: int) -> None:
    """A web page whose name points here after it was loaded gets nothing, even with the key."""
    assert ask(url, "", Host=host)[0] == code


def test_the_address_without_its_last_slash_leads_to_the_page(url: str) -> None:
    """As people copy it."""
    code, _, headers = ask(url, f"/{KEY}")
    assert (code, headers["Location"]) == (308, f"/{KEY}/")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(url: str, method: str) -> None:
    """There is nothing that a request could change."""
    assert ask(url, "", method)[0] == 501


def stream(url: str, job: str = "") -> Iterator[dict]:
    """The news that come."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("GET", f"{parts.path}news?job={job}")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    while line := answer.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    connection.close()


def test_news_are_server_sent_events(url: str) -> None:
    """First the whole state."""
    told = next(stream(url, "ns%2Fgpt"))
    assert (told["whole"], list(told["jobs"]), told["pageOf"], told["page"]["row"]["state"]) == (
        True,
        ["ns/gpt"],
        "ns/gpt",
        "Running",
    )


def test_readers_are_bounded_and_make_room_when_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told so and does not harm the others."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(server, "_BEAT", 0.05)  # a reader that went is noticed when it is written to
    stage = Stage()
    stage.put(job())
    with shown(stage) as url:
        readers = [stream(url) for _ in range(3)]
        assert all(next(reader)["whole"] for reader in readers)
        assert ask(url, "")[0] == 503
        assert next(readers[0]) == {}
        readers.pop().close()
        codes = iter(lambda: ask(url, "")[0], 200)
        assert set(codes) <= {503}


def test_the_end_of_the_server_is_the_end_of_its_readers() -> None:
    """Nobody waits for them."""
    stage = Stage()
    stage.put(job())
    before = threading.active_count()
    with feeding(stage) as feed:
        with serving(feed.board, KEY, "127.0.0.1", 0) as url:
            reader = stream(url)
            next(reader)
        assert [told for told in reader if told] == []
    assert threading.active_count() <= before + 1  # the reader's own thread may still say good-bye


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_key_is_the_user_s_own_and_stays(cache: Path) -> None:
    """Nobody else can read it, and what is no key is replaced for the time being."""
    key = door.key()
    file = cache / "dashboard" / "key"
    assert (door.key(), file.read_text()) == (key, key)
    assert len(key) >= 32
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    file.write_text("short")
    assert door.key() not in (key, "short")


def test_without_a_place_to_keep_it_the_key_is_a_new_one(cache: Path) -> None:
    """The page works all the same."""
    cache.write_text("a file where the directory should be")
    assert door.key() != door.key()


def test_the_browser_s_arguments_do_not_have_the_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users can read them; it gets a file that they cannot, which goes with the command."""
    opened: list[str] = []
    monkeypatch.setattr(door.webbrowser, "open", opened.append)
    door.key()
    with door.opened("http://127.0.0.1:1/the-key/"):
        [place] = opened
        file = Path(urlsplit(place).path)
        assert "the-key" not in place
        assert "url=http://127.0.0.1:1/the-key/" in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--local", "-A"], 2, "--local knows no namespaces"),
        (["-A", "gpt"], 2, "give either NAME or --all-namespaces"),
        (["--local", "--address", "localhost"], 2, "is no IP address"),
        (["--local", "--address", "192.0.2.1"], 1, "cannot listen at 192.0.2.1"),
    ],
    ids=["local everywhere", "named everywhere", "no address", "not ours"],
)
def test_wrong_usage_is_explained(cache: Path, words: list[str], code: int, said: str) -> None:
    """In one line."""
    done = CliRunner().invoke(main, ["dashboard", "--no-browser", *words])
    assert (done.exit_code, said in done.output) == (code, True), done.output


def test_a_taken_port_is_explained(cache: Path) -> None:
    """With what helps."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, ["dashboard", "--no-browser", "--local", "--port", str(port)])
    assert (done.exit_code, f"port {port} is taken; another --port, or none, helps" in done.output) == (1, True)
    assert os.environ["LLMTRAIN_CACHE"] == str(cache)
