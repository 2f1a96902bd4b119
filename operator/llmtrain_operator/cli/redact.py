"""Takes secrets out of objects and logs that are passed on to others. Pure.

What goes: values of variables and options whose name says that they are secret, passwords in URLs, bearer tokens, JSON
web tokens, private keys, keys in the form of well-known services. Managed fields and the copy that `kubectl apply`
keeps go too. Limit: a secret in no known form under a harmless name is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llmtrain_operator.contract.secrets import is_secret

GONE: Final = "<redacted>"
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_WORDS: Final = r"(?:pass(?:word|wd|phrase)|secret|token|credentials?|api[-_]?key|access[-_]?key|private[-_]?key)"
_SHAPES: Final = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL), GONE),
    (re.compile(r"(?i)(\bbearer|authorization[\"']?\s*[:=]\s*[\"']?basic)\s+[\w.~+/=-]{8,}"), rf"\1 {GONE}"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), GONE),
    (re.compile(r"(\w://[^\s/:@]*):[^\s/@]+@"), rf"\1:{GONE}@"),
    (re.compile(r"\b(?:hf_|gh[pousr]_|glpat-|sk-|xox[abprs]-)[\w-]{16,}"), GONE),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), GONE),
    (re.compile(rf"(?i)(\b[\w-]*{_WORDS}[\"']?\s*[=:]\s*[\"']?)[^\s\"',&;}}<]+"), rf"\1{GONE}"),
)
_SECRET_OPTION: Final = re.compile(rf"(?i)^--?[\w-]*{_WORDS}$")


def text(words: str) -> str:
    """Words without secrets."""
    for shape, instead in _SHAPES:
        words = shape.sub(instead, words)
    return words


def value(thing: Any) -> Any:
    """A Kubernetes object, or a part of one, without secrets."""
    if isinstance(thing, str):
        return text(thing)
    if isinstance(thing, Mapping):
        return _mapping(thing)
    if isinstance(thing, Sequence):
        return _list(thing)
    return thing


def _mapping(thing: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(thing.get("name"), str) and "value" in thing and is_secret(thing["name"]):
        return {**thing, "value": GONE}
    return {key: value(each) for key, each in thing.items() if key not in ("managedFields", _LAST_APPLIED)}


def _list(thing: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    after_option = False
    for each in thing:
        found.append(GONE if after_option and isinstance(each, str) else value(each))
        after_option = isinstance(each, str) and bool(_SECRET_OPTION.match(each))
    return found
