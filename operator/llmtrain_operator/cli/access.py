"""What all commands that talk to a cluster share: their options, and errors in plain words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llmtrain_operator.ports import Conflict, Rejected, Unavailable

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """Which cluster, and which namespace if one was named."""

    kubeconfig: Path | None
    context: str | None
    namespace: str | None

    def resolved_namespace(self) -> str:
        """The namespace that was named, else the one that kubectl would use."""
        return self.namespace or _user().default_namespace(self.kubeconfig, self.context)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[UserCluster]:
        """The cluster."""
        async with _user().open_cluster(self.kubeconfig, self.context) as cluster:
            yield cluster


def _user() -> Any:
    """The Kubernetes half, imported late: `crd` and `validate` work without it."""
    logging.getLogger().addHandler(logging.NullHandler())  # the client library says things twice
    try:
        from llmtrain_operator.cluster import user
    except ImportError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'llmtrain[operator]'") from error
    return user


def cluster_options(command: F) -> F:
    """Options -n, --kubeconfig and --context, given to the command as one argument `access`."""

    def called(*args: Any, namespace: str | None, kubeconfig: Path | None, context: str | None, **others: Any) -> Any:
        return command(*args, access=Access(kubeconfig, context, namespace), **others)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    decorated: Any = called
    for option in (
        click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
        click.option("--kubeconfig", type=file, help="Default: $KUBECONFIG or ~/.kube/config, as for kubectl."),
        click.option("-n", "--namespace", metavar="NAME", help="Default: the context's namespace."),
    ):
        decorated = option(decorated)
    result: F = decorated
    return result


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; errors become one line and exit code 1, an interrupt exit code 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        sys.exit(0)
    except (Unavailable, Rejected, Conflict) as error:
        raise click.ClickException(explain(error)) from error


def explain(error: Exception) -> str:
    """What happened and what to do about it, in one line."""
    text = str(error)
    if "could not find the requested resource" in text or "page not found" in text:
        return (
            "this cluster does not know LLMTrainJob: install the operator's chart (`llmtrain crd` prints the CRD alone)"
        )
    if isinstance(error, Unavailable):
        known = text if "no access to a cluster" in text else f"the cluster does not answer: {text}"
        return f"{known}. Is it up, and is $KUBECONFIG (or --kubeconfig, --context) right?"
    return text
