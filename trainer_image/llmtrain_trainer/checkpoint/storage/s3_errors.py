"""What an S3 client's error means, and what to do about it. Pure.

The client tells its causes by text only. Of that text nothing is passed on but the server's error code and status: the
rest can hold access keys and signatures.
"""

from __future__ import annotations

import re
from typing import Final

from llmtrain_operator.contract import names

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_FULL: Final = frozenset({"QuotaExceeded", "InsufficientCapacity", "XMinioStorageFull", "NoSpaceLeft"})
_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "XAdminUserNotFound",
    }
)
_NO_CREDENTIALS: Final = re.compile(r"169\.254\.|latest/api/token|POST REDACTED|WebIdentity|credential", re.IGNORECASE)
_SILENCE: Final = (
    ("dns error", "its name cannot be resolved"),
    ("Connection refused", "it refuses connections"),
    ("certificate", "its certificate is not trusted"),
    ("TimedOut", "it does not answer in time"),
    ("timed out", "it does not answer in time"),
)
REMEDIES: Final = {
    names.REASON_STORAGE_FULL: "make room, raise the quota, or lower spec.checkpoint.durable.keep",
    names.REASON_STORAGE_DENIED: "check the keys in spec.checkpoint.s3.credentials (or the service account's role): "
    "they need to list the bucket, and to get, put and delete objects",
    names.REASON_STORAGE_MISSING: "make the bucket, or correct the URI",
    names.REASON_STORAGE_UNREACHABLE: "check spec.checkpoint.s3.endpoint, the server and the network policy",
}


def code_of(text: str) -> str:
    """The server's own word for it, such as NoSuchKey; empty if it said none."""
    found = _CODE.search(text)
    return found[1] if found else ""


def explain(text: str) -> tuple[str, str]:
    """(`names.REASON_STORAGE_*`, what happened in a few words) of an error's text."""
    status, code = _STATUS.search(text), code_of(text)
    answer = f"the server answered {status[1] if status else ''} {code}".rstrip()
    if _NO_CREDENTIALS.search(text) and not code:
        return names.REASON_STORAGE_DENIED, "no credentials are given, and none can be had from the environment"
    if code == "NoSuchBucket":
        return names.REASON_STORAGE_MISSING, answer
    if code in _FULL or (status and status[1] == "507"):
        return names.REASON_STORAGE_FULL, answer
    if code in _DENIED or (status and status[1] in ("401", "403")):
        return names.REASON_STORAGE_DENIED, answer
    if status:
        return names.REASON_STORAGE_UNREACHABLE, answer
    silence = next((words for sign, words in _SILENCE if sign in text), "the connection broke")
    return names.REASON_STORAGE_UNREACHABLE, f"the server cannot be reached: {silence}"
