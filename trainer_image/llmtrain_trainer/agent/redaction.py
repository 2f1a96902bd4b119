"""Secrets of the environment are kept out of what leaves the pod in words: log lines, failures, storage errors.

A secret is the value of a variable whose name says so (HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD, ...) and the
password in a variable's URL. Limits: values of fewer than six characters are left alone, for they would make holes in
ordinary words; what a program transforms (hashes, encodes, prints in pieces) is not recognised, nor is what it reads
from files.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from llmtrain_operator.contract.secrets import is_secret

SHORTEST: Final = 6


class Redactor:
    """Replaces the secrets of `environ` by the names of their variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        found = {form: name for name, secret in _secrets(environ) for form in _forms(secret)}
        # The longest first: one secret may be the beginning of another.
        self._names = {form.encode(): name for form, name in sorted(found.items(), key=lambda item: -len(item[0]))}
        self._pattern = re.compile(b"|".join(map(re.escape, self._names))) if self._names else None

    def text(self, text: str) -> str:
        """`text` without secrets."""
        # Bytes that are no text come from surrogateescape and go back as they were.
        return self.line(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    def line(self, line: bytes) -> bytes:
        """The same for raw output."""
        return self._pattern.sub(self._instead, line) if self._pattern else line

    def _instead(self, match: re.Match[bytes]) -> bytes:
        return f"<{self._names[match[0]]} redacted>".encode()


@functools.cache
def redactor() -> Redactor:
    """That of this process's environment, as it was when first asked for."""
    return Redactor(os.environ)


def _secrets(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        if is_secret(name):
            yield name, value
        elif "://" in value and (password := _password(value)):
            yield name, password


def _password(value: str) -> str:
    try:
        return urlsplit(value).password or ""
    except ValueError:
        return ""


def _forms(secret: str) -> Iterator[str]:
    """The secret as it may be printed: whole, by lines (logs are), as part of a URL and out of one."""
    for part in {secret, *secret.splitlines()}:
        stripped = part.strip()
        for form in {stripped, quote(stripped, safe=""), unquote(stripped)}:
            if len(form) >= SHORTEST:
                yield form
