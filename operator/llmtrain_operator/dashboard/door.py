"""How the page is come to: the key in its address, and the user's browser. Both are for this user alone."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import webbrowser
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

import click

from llmtrain_operator.local.folder import root

_KEY_LENGTH: Final = 24
_IS_KEY: Final = re.compile(r"[\w-]{20,}")
_SCREENS: Final = ("DISPLAY", "WAYLAND_DISPLAY")


def _folder() -> Path:
    return root(os.environ).parent / "dashboard"


def key() -> str:
    """The user's own key, the same each time, so that open pages and bookmarks go on working; kept for this user alone.

    Where nothing can be kept it is a new one.
    """
    fresh = secrets.token_urlsafe(_KEY_LENGTH)
    with contextlib.suppress(OSError):
        _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _folder() / "key"
        with contextlib.suppress(FileExistsError):
            _write(file, fresh)
        kept = file.read_text().strip()
        if _IS_KEY.fullmatch(kept):
            file.chmod(0o600)
            return kept
    return fresh


def _write(file: Path, text: str) -> None:
    """A new file that only this user can read. Raises `FileExistsError`."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)


def has_screen() -> bool:
    """Whether a browser would have a window, and not take over this terminal."""
    return not sys.platform.startswith("linux") or any(map(os.environ.get, _SCREENS))


@contextlib.contextmanager
def opened(url: str) -> Iterator[None]:
    """Open the page in the user's browser, by way of a file: other users can read the arguments of a process."""
    file = _folder() / f"open-{os.getpid()}.html"
    try:
        _write(file, f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(url)}">')
        webbrowser.open(file.as_uri())
    except (OSError, webbrowser.Error) as error:
        click.echo(f"no browser can be opened: {error}", err=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
