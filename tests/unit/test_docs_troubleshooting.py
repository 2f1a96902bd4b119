"""docs/troubleshooting.md quotes messages that there are."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/troubleshooting.md"
GAP = "…"
# What Kubernetes says; the operator passes it on with its message.
KUBERNETES = {"ErrImagePull: …", "ImagePullBackOff: …"}


def quotes() -> list[str]:
    """What stands in backticks in the first column of a table."""
    rows = (line.split(" | ")[0] for line in DOCUMENT.read_text().splitlines() if line.startswith("| "))
    return sorted({quote for row in rows for quote in re.findall(r"`([^`]+)`", row)} - KUBERNETES)


@functools.cache
def messages() -> str:
    """Every string of the product, each on a line; what is filled in at run time is a gap."""
    files = [*ROOT.glob("operator/llmtrain_operator/**/*.py"), *ROOT.glob("trainer_image/llmtrain_trainer/**/*.py")]
    return "\n".join(text for file in files for text in strings(ast.parse(file.read_text())))


def strings(tree: ast.Module) -> Iterator[str]:
    """The string literals of a module; %-directives of log messages are gaps too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
            yield " ".join("".join(map(str, parts)).split())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(re.sub(r"%(\.\d+)?[sdf]", GAP, node.value).split())


@pytest.mark.parametrize("quote", quotes())
def test_the_message_exists(quote: str) -> None:
    """Word for word, in one place; a quote may leave out the beginning and the end."""
    parts = [re.escape(part) for part in quote.split(GAP)]
    assert re.search(f"[^\n]*?{GAP}[^\n]*?".join(parts), messages()), quote


def test_there_are_quotes() -> None:
    """The test above would pass over a document that it cannot read."""
    assert len(quotes()) > 50
