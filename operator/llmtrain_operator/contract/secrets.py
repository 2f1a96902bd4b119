"""Which environment variables hold secrets, by what their names say. Pure."""

from __future__ import annotations

from typing import Final

_SAY_SO: Final = frozenset(
    {"SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "APIKEY"}
)
_LAST: Final = frozenset({"KEY", "PWD"})
_HARMLESS_LAST: Final = frozenset({"FILE", "PATH", "DIR", "ID", "NAME"})
_NOT_SECRET: Final = frozenset({"PWD", "OLDPWD"})


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret: HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD, ..."""
    words = name.upper().split("_")
    if name in _NOT_SECRET or words[-1] in _HARMLESS_LAST:
        return False
    return words[-1] in _LAST or not _SAY_SO.isdisjoint(words)
