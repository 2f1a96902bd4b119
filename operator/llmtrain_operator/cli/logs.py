"""`llmtrain logs`: what the members print, each line with its member's number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import click

from llmtrain_operator.cli.access import INTERVAL, Access, explain, job_options, run
from llmtrain_operator.cli.completion import job_argument
from llmtrain_operator.cli.source import JobSource
from llmtrain_operator.cli.status import find
from llmtrain_operator.cli.view import member_colour, pod_state
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.state import PodView


@click.command()
@job_argument()
@click.option("-f", "--follow", is_flag=True, help="Stay and print new lines, also of members that come later.")
@click.option("-m", "--member", type=click.IntRange(min=0), metavar="INDEX", help="Only this member.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of each. Default: all.")
@job_options
def logs(name: str, *, follow: bool, member: int | None, tail: int | None, access: Access) -> None:
    """Print the members' logs; the newest pod of each member, `--follow` also its successors."""
    namespace = access.resolved_namespace()
    run(_logs(access, _Reader(namespace, name, member, tail), follow=follow))


def newest(pods: Iterable[PodView], member: int | None) -> list[PodView]:
    """The newest pod of each member, or of this one only."""
    chosen = {pod.index: pod for pod in sorted(pods, key=lambda pod: pod.incarnation) if member in (None, pod.index)}
    return [chosen[index] for index in sorted(chosen)]


async def _logs(access: Access, reader: _Reader, *, follow: bool) -> None:
    async with access.open() as cluster:
        await find(cluster, reader.namespace, reader.job)
        if follow:
            await reader.follow(cluster)
        else:
            await reader.read(cluster)


class _Reader:
    def __init__(self, namespace: str, job: str, member: int | None, tail: int | None) -> None:
        self.namespace, self.job = namespace, job
        self._member, self._tail = member, tail

    async def read(self, cluster: JobSource) -> None:
        """Print what there is, member by member."""
        pods = newest(await cluster.pods(self.namespace, self.job), self._member)
        if not pods:
            raise click.ClickException(
                f"{self.job} has no {'pods' if self._member is None else f'member {self._member}'} now"
            )
        for pod in pods:
            say = self._printer(pod)
            try:
                async for _, line in cluster.log(self.namespace, pod.name, follow=False, tail=self._tail):
                    say(line)
            except Rejected as error:
                click.echo(f"no log of {pod.name} ({pod_state(pod)}): {error}", err=True)

    async def follow(self, cluster: JobSource) -> None:
        """Print as it comes, until the job has ended and all that it printed was read."""
        reading: dict[str, asyncio.Task[None]] = {}
        try:
            while not await self._look(cluster, reading):  # noqa: ASYNC110 - only the cluster knows
                await asyncio.sleep(INTERVAL)
        finally:
            for task in reading.values():
                task.cancel()
            await asyncio.gather(*reading.values(), return_exceptions=True)

    async def _look(self, cluster: JobSource, reading: dict[str, asyncio.Task[None]]) -> bool:
        """Begin to read the pods that are new; whether all is read and nothing more can come."""
        try:
            job = await find(cluster, self.namespace, self.job)
            pods = newest(await cluster.pods(self.namespace, self.job), self._member)
        except Unavailable as error:
            click.echo(explain(error), err=True)
            return False
        for pod in pods:
            if pod.uid not in reading and pod.phase != "Pending":
                reading[pod.uid] = asyncio.create_task(self._follow_pod(cluster, pod))
        done = [task for task in reading.values() if task.done()]
        for task in done:
            task.result()
        return bool(job.get("status", {}).get("completionTime")) and len(done) == len(reading)

    async def _follow_pod(self, cluster: JobSource, pod: PodView) -> None:
        """Print one pod's log to its end. A broken connection is taken up again after the last line that came."""
        say, last = self._printer(pod), ""
        while True:
            seen, tail = last, None if last else self._tail
            lines = cluster.log(self.namespace, pod.name, follow=True, tail=tail, since=seen or None)
            try:
                async for last, line in lines:
                    if last > seen:  # the server begins with the whole second
                        say(line)
            except Unavailable:
                pass
            except Rejected as error:
                if "waiting to start" not in str(error):
                    click.echo(f"no log of {pod.name}: {error}", err=True)
                    return
            else:
                return
            await asyncio.sleep(INTERVAL)

    def _printer(self, pod: PodView) -> Callable[[str], None]:
        prefix = click.style(f"[{pod.index}]", fg=member_colour(pod.index))
        return lambda line: click.echo(f"{prefix} {line}")
