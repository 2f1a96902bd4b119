"""`llmtrain dashboard`: a live page about jobs in the user's own browser, for clusters without Grafana."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import click

from llmtrain_operator.cli.access import Access, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.dashboard.door import has_screen, key, opened

if TYPE_CHECKING:
    from llmtrain_operator.dashboard.feed import Feed

_LOCAL: Final = "default"
"""The namespace that local runs say they are in."""


@click.command()
@job_argument(required=False)
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of all namespaces.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="Default: one that is free. With the same port an open page goes on after a restart.",
)
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    metavar="IP",
    help="Where to listen. On any but the default others on the network may read along.",
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@job_options
def dashboard(
    name: str | None, *, all_namespaces: bool, port: int, address: str, browser: bool, access: Access
) -> None:
    """Show jobs live in a browser: state, loss, goodput, members on nodes, incidents.

    The page comes from this command, with your own rights, and only reads; its address has a key that other users of
    this machine do not know. Ctrl-C ends it.
    """
    if access.local and all_namespaces:
        raise click.UsageError("--local knows no namespaces")
    if name and all_namespaces:
        raise click.UsageError("give either NAME or --all-namespaces")
    try:
        loopback = ip_address(address).is_loopback
    except ValueError as error:
        raise click.UsageError(f"--address {address} is no IP address, such as 127.0.0.1") from error
    if not loopback:
        click.echo(f"{address} is open to the network, and what goes over it is not encrypted", err=True)
    run(_serve(access, name, "" if all_namespaces else access.resolved_namespace(), address, port, browser=browser))


async def _serve(access: Access, name: str | None, namespace: str, address: str, port: int, *, browser: bool) -> None:
    from llmtrain_operator.dashboard.feed import Feed  # which is made of this package's other modules

    async with access.open() as source:
        feed = Feed(source, namespace)
        with _served(feed, address, port) as place:
            here = f"{place}#/{quote(namespace or _LOCAL)}/{quote(name)}" if name else place
            click.echo(f"The jobs are shown at {here}\nCtrl-C ends it.")
            with opened(here) if browser and has_screen() else contextlib.nullcontext():
                await feed.run()


@contextlib.contextmanager
def _served(feed: Feed, address: str, port: int) -> Iterator[str]:
    from llmtrain_operator.dashboard.server import serving

    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(serving(feed.board, key(), address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                words = f"port {port} is taken; another --port, or none, helps"
            else:
                words = f"cannot listen at {address}, port {port}: {error.strerror or error}"
            raise click.ClickException(words) from error
        yield place
