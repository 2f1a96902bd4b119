"""No secret of the environment leaves the pod in words."""

from __future__ import annotations

import json
import logging
import time

import pytest

from llmtrain_operator.contract import codec, wire
from llmtrain_trainer.agent import redaction
from llmtrain_trainer.agent.failures import MAX_MESSAGE, MAX_TRACEBACK, describe
from llmtrain_trainer.agent.logs import RankLogs
from llmtrain_trainer.agent.progress import ProgressSocket
from llmtrain_trainer.agent.redaction import Redactor
from llmtrain_trainer.agent.start import _WithoutSecrets

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"


@pytest.fixture
def secret(monkeypatch):
    """The environment has one, and it is known."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    redaction.redactor.cache_clear()
    yield SECRET
    redaction.redactor.cache_clear()


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "DB_PASSWORD", "WANDB_API_KEY", "SECRET", "my_token"],
)
def test_variables_that_say_so_are_secret(name) -> None:
    assert Redactor({name: SECRET}).text(f"key={SECRET}!") == f"key=<{name} redacted>!"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("TOKENIZERS_PARALLELISM", "false-false"),
        ("LLMTRAIN_TOKEN_FILE", "/var/run/secrets/llmtrain/token"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token"),
        ("PWD", "/home/someone"),
        ("HF_TOKEN", "short"),
        ("HOME", "/home/someone"),
    ],
)
def test_others_are_left_alone(name, value) -> None:
    """A path to a token is worth knowing, and a short value would make holes in ordinary words."""
    assert Redactor({name: value}).text(f"it is {value}") == f"it is {value}"


def test_a_secret_is_known_in_a_url_and_by_its_lines() -> None:
    several = Redactor(
        {
            "HTTPS_PROXY": "http://me:p%40ssw0rd@proxy:1",
            "CA_PRIVATE_KEY": "-----BEGIN\nMIIEvQIBAD\n",
            "S_KEY": "a/b+c/d",
        }
    )
    assert several.text("http://me:p%40ssw0rd@proxy:1") == "http://me:<HTTPS_PROXY redacted>@proxy:1"
    assert several.text("p@ssw0rd") == "<HTTPS_PROXY redacted>"
    assert several.text("MIIEvQIBAD") == "<CA_PRIVATE_KEY redacted>"
    assert several.text("?sig=a%2Fb%2Bc%2Fd") == "?sig=<S_KEY redacted>"


def test_the_longer_of_two_secrets_is_replaced_whole() -> None:
    assert Redactor({"A_TOKEN": "abcdef", "B_TOKEN": "abcdefghi"}).text("abcdefghi") == "<B_TOKEN redacted>"


def test_bytes_that_are_no_text_come_through() -> None:
    assert Redactor({"A_TOKEN": "abcdef"}).line(b"\xff abcdef \xfe") == b"\xff <A_TOKEN redacted> \xfe"


def test_worker_output_and_its_tail(secret, tmp_path, capfdbinary) -> None:
    logs = RankLogs(tmp_path)
    destinations = logs.reify({0: {"RANK": "0"}})
    with open(destinations.stderrs[0], "w") as out:  # noqa: PTH123 - as torch opens it
        out.write(f"denied for {secret}\n")
    logs.finish()
    assert capfdbinary.readouterr().err == b"[rank 0] denied for <AWS_SECRET_ACCESS_KEY redacted>\n"
    assert secret not in logs.tail(0)


def test_failures_before_they_are_cut(secret) -> None:
    """A secret that the limit would cut in two is gone before that."""
    message = "x" * (MAX_MESSAGE - 5) + secret
    trace = secret + "y" * (MAX_TRACEBACK - 5)
    error = json.dumps({"message": {"message": message, "extraInfo": {"py_callstack": trace}}})
    failure = describe(1, error, "", round_number=1, rank=0, step=0)
    assert secret[:5] not in failure.message
    assert secret[-5:] not in failure.traceback
    from_stderr = describe(1, "", f"Traceback\nKeyError: {secret}", round_number=1, rank=0, step=0)
    assert "KeyError: <AWS_SECRET_ACCESS_KEY redacted>" in from_stderr.message
    assert secret not in from_stderr.traceback


def test_what_storage_says(secret, tmp_path) -> None:
    import socket

    got: list[wire.Progress] = []
    ProgressSocket(tmp_path / "p", got.append)
    said = wire.Checkpoints(error=f"403 for {secret}", error_reason="StorageDenied", skipped=(f"step-1: {secret}",))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as worker:
        worker.sendto(codec.encode(wire.Progress(rank=0, round=1, checkpoints=said)).encode(), str(tmp_path / "p"))
    deadline = time.monotonic() + 10
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    assert got[0].checkpoints.error == "403 for <AWS_SECRET_ACCESS_KEY redacted>"
    assert got[0].checkpoints.skipped == ("step-1: <AWS_SECRET_ACCESS_KEY redacted>",)


def test_the_agents_own_lines_with_their_tracebacks(secret) -> None:
    def fail() -> None:
        raise ValueError(secret)

    with pytest.raises(ValueError, match="wJalr") as caught:
        fail()
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "no: %s", (secret,), caught._excinfo)
    text = _WithoutSecrets("[agent] %(message)s").format(record)
    assert text.startswith("[agent] no: <AWS_SECRET_ACCESS_KEY redacted>\nTraceback")
    assert secret not in text
