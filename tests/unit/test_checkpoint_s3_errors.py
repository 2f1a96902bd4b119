"""What an S3 client's text means, and settings that cannot be."""

from __future__ import annotations

import pytest

from llmtrain_operator.contract import names
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.checkpoint.storage.s3_errors import REMEDIES, explain
from llmtrain_trainer.errors import ConfigError

_ANSWER = "Error performing PUT http://s3:9000/b/k in 1ms - Server returned non-2xx status code: {}: <Error>{}</Error>"


def answer(status: str, code: str = "") -> str:
    return _ANSWER.format(status, f"<Code>{code}</Code><AWSAccessKeyId>AKIA</AWSAccessKeyId>" if code else "")


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        (answer("403 Forbidden", "SignatureDoesNotMatch"), names.REASON_STORAGE_DENIED, "403 SignatureDoesNotMatch"),
        (answer("404 Not Found", "XAdminUserNotFound"), names.REASON_STORAGE_DENIED, "XAdminUserNotFound"),
        (answer("403 Forbidden"), names.REASON_STORAGE_DENIED, "answered 403"),
        (answer("400 Bad Request", "ExpiredToken"), names.REASON_STORAGE_DENIED, "ExpiredToken"),
        (answer("404 Not Found", "NoSuchBucket"), names.REASON_STORAGE_MISSING, "NoSuchBucket"),
        (answer("404 Not Found"), names.REASON_STORAGE_UNREACHABLE, "answered 404"),
        (answer("507 Insufficient Storage"), names.REASON_STORAGE_FULL, "507"),
        (answer("403 Forbidden", "QuotaExceeded"), names.REASON_STORAGE_FULL, "QuotaExceeded"),
        (answer("503 Slow Down", "SlowDown"), names.REASON_STORAGE_UNREACHABLE, "503 SlowDown"),
        (
            "ConnectError(tcp, 'Connection refused')",
            names.REASON_STORAGE_UNREACHABLE,
            "refuses",
        ),
        ("HTTP error: dns error: failed to lookup", names.REASON_STORAGE_UNREACHABLE, "cannot be resolved"),
        ("reqwest::Error { kind: Request, source: TimedOut }", names.REASON_STORAGE_UNREACHABLE, "in time"),
        ("invalid peer certificate: UnknownIssuer", names.REASON_STORAGE_UNREACHABLE, "not trusted"),
        ("HTTP error: connection closed before message completed", names.REASON_STORAGE_UNREACHABLE, "broke"),
        ("PUT http://169.254.169.254/latest/api/token: HTTP error", names.REASON_STORAGE_DENIED, "no credentials"),
        ("Error performing POST REDACTED in 2ms - HTTP error", names.REASON_STORAGE_DENIED, "no credentials"),
    ],
)
def test_an_error_is_told_in_few_words_and_has_a_remedy(text, reason, words):
    """Of the server's answer only its code is repeated."""
    found, what = explain(text)
    assert (found, words in what) == (reason, True), what
    assert REMEDIES[found]
    assert "AKIA" not in what


def test_a_bundle_of_certificates_that_cannot_be_read_is_named():
    """By the variable and the file."""
    with pytest.raises(ConfigError, match="AWS_CA_BUNDLE: cannot read /no/such"):
        open_storage("s3://bucket/x", {"AWS_CA_BUNDLE": "/no/such"})


def test_an_image_without_ca_certificates_is_told_what_it_lacks(monkeypatch):
    """The client says nothing but `GenericError` of it, also with a server that needs none."""
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such")
    monkeypatch.setenv("SSL_CERT_DIR", "/no/such")
    with pytest.raises(ConfigError, match="install ca-certificates in it, or name a file in AWS_CA_BUNDLE"):
        open_storage("s3://bucket/prefix", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"})
