"""What all commands that talk to a cluster share: their options, and errors in plain words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.local.folder import root
from llmtrain_operator.local.jobs import LocalJobs
from llmtrain_operator.ports import Conflict, Rejected, Unavailable

if TYPE_CHECKING:
    from llmtrain_operator.cluster.user import UserCluster

INTERRUPTED: Final = 130
INTERVAL: Final = 1.0
"""Seconds between looks: the operator writes progress that often."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """Which cluster, and which namespace if one was named; or `local`: the runs on this machine."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None
    local: bool = False

    def resolved_namespace(self) -> str:
        """The namespace that was named, else the one that kubectl would use."""
        if self.local:
            return ""
        return self.namespace or _user().default_namespace(self.kubeconfig, self.context)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[JobSource]:
        """The place where the jobs are."""
        if self.local:
            yield LocalJobs(root(os.environ))
            return
        async with self.open_cluster() as cluster:
            yield cluster

    @contextlib.asynccontextmanager
    async def open_cluster(self) -> AsyncIterator[UserCluster]:
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


def job_options(command: F) -> F:
    """Options --local, -n, --kubeconfig and --context, given to the command as one argument `access`."""
    option = click.option("--local", is_flag=True, help="Runs of `llmtrain local` on this machine, not the cluster's.")
    result: F = option(cluster_options(command))
    return result


def cluster_options(command: F) -> F:
    """Options -n, --kubeconfig and --context, given to the command as one argument `access`."""

    def called(
        *args: Any,
        namespace: str | None,
        kubeconfig: Path | None,
        context: str | None,
        local: bool = False,
        **others: Any,
    ) -> Any:
        if local and (namespace or kubeconfig or context):
            raise click.UsageError("--local is this machine: it goes with none of -n, --kubeconfig, --context")
        return command(*args, access=Access(kubeconfig, context, namespace, local), **others)

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
    if "forbidden" in text and "HTTP 403" in text:
        return f"{text}. The cluster's administrator grants it: the chart adds jobs to the roles view, edit and admin"
    if isinstance(error, Unavailable):
        known = text if "no access to a cluster" in text else f"the cluster does not answer: {text}"
        return f"{known}. Is it up, and is $KUBECONFIG (or --kubeconfig, --context) right?{_instead()}"
    return text


def is_local(name: str = "*") -> bool:
    """Whether there is, or was, a run of that name on this machine; by default of any name."""
    return any(root(os.environ).glob(f"jobs/{name}/status.json"))


def _instead() -> str:
    return " Runs on this machine are shown with --local." if is_local() else ""
