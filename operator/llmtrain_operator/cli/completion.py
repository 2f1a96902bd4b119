"""Shell completion: the script for a shell, and the names of jobs while one types."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import click
from click.shell_completion import ShellComplete, get_completion_class

from llmtrain_operator.cli.access import Access
from llmtrain_operator.ports import Rejected, Unavailable

_PATIENCE: Final = 3.0
"""Seconds that a person waits for a list of names after pressing a key."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_VARIABLE: Final = "_LLMTRAIN_COMPLETE"
_NO_FILES: Final = 4
"""Cobra's directive to offer no file names beside what was printed."""
_PLACES: Final = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/completions/llmtrain.fish"}


@click.command()
@click.argument("shell", type=click.Choice(list(_PLACES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell: commands, options and the names of jobs.

    \b
    bash:  llmtrain completion bash >> ~/.bashrc   (bash 4.4 or newer)
    zsh:   llmtrain completion zsh >> ~/.zshrc
    fish:  llmtrain completion fish > ~/.config/fish/completions/llmtrain.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click knows all of the choices
    click.echo(kind(context.find_root().command, {}, "llmtrain", _VARIABLE).source())


def job_argument(*, required: bool = True) -> Callable[[Any], Any]:
    """The argument NAME of a command about a job."""
    return click.argument("name", required=required, shell_complete=job_names, callback=_a_name)


def _a_name(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    # An unset variable in a script gives an empty one, which would mean all jobs to the API server.
    if given is not None and not _NAME.fullmatch(given):
        raise click.BadParameter(f"{given!r} is no name of a job", context, parameter)
    return given


def job_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of jobs that begin so. None if they cannot be had in time: completion is no place for errors."""
    given = {key: context.params.get(key) for key in ("kubeconfig", "context", "namespace")}
    access = Access(**given, local=bool(context.params.get("local")))
    try:
        namespace = access.resolved_namespace()  # imports the client, which may take longer than the server
        found = asyncio.run(asyncio.wait_for(_names(access, namespace), _PATIENCE))
    except (Unavailable, Rejected, TimeoutError, click.ClickException):
        return []
    return [name for name in found if name.startswith(incomplete)]


async def _names(access: Access, namespace: str) -> list[str]:
    async with access.open() as source:
        return [job["metadata"]["name"] for job in await source.jobs(namespace)]


def complete_for_kubectl() -> None:
    """The program `kubectl_complete-llmtrain`, which kubectl asks while one types `kubectl llmtrain ...`."""
    from llmtrain_operator.cli import main

    *before, incomplete = sys.argv[1:] or [""]
    for item in ShellComplete(main, {}, "llmtrain", _VARIABLE).get_completions(before, incomplete):
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{_NO_FILES}")
