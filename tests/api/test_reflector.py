"""The reflector against a real API server: what it promises when the watch breaks."""

import asyncio
from contextlib import aclosing

import pytest

from llmtrain_operator.cluster.client import Client, Gone, connect
from llmtrain_operator.cluster.reflector import Reflector
from llmtrain_operator.cluster.resources import JOBS, PODS
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Rejected
from tests.support import tcp_proxy

SPEC = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}


class Mirror:
    """A running reflector of labelled jobs that keeps nothing but their annotation `value`."""

    def __init__(self, client: Client, namespace: str, **options) -> None:
        self.changes: list[tuple] = []
        self._moved = asyncio.Event()
        self.reflector = Reflector(
            client, JOBS, self._project, self._changed, namespace=namespace, selector="mirror=yes", **options
        )

    async def __aenter__(self):
        self._task = asyncio.create_task(self.reflector.run())
        await asyncio.wait_for(self.reflector.synced.wait(), 20)
        return self

    async def __aexit__(self, *error):
        self._task.cancel()
        await asyncio.wait([self._task])

    @staticmethod
    def _project(raw):
        value = raw["metadata"]["annotations"]["value"]
        return None if value == "hidden" else value

    def _changed(self, key, old, new):
        self.changes.append((key.split("/")[-1], old, new))
        self._moved.set()

    @property
    def items(self):
        return {key.split("/")[-1]: self.reflector.get(key) for key in self.reflector}

    async def until(self, **items):
        """Wait until the mirror shows exactly these."""
        async with asyncio.timeout(30):
            while self.items != items:
                self._moved.clear()
                await self._moved.wait()


def job(namespace, name, value):
    metadata = {"name": name, "namespace": namespace, "labels": {"mirror": "yes"}, "annotations": {"value": value}}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": SPEC}


async def put(client, namespace, **values):
    """Create or change jobs; returns the last answer."""
    answer = None
    for name, value in values.items():
        answer = await client.request(
            "apply",
            JOBS,
            namespace,
            name,
            query={"fieldManager": "test", "force": "true"},
            body=job(namespace, name, value),
        )
    return answer


async def drop(client, namespace, name):
    await client.request("delete", JOBS, namespace, name)


async def test_changes_arrive_and_unchanged_projections_do_not(client, namespace):
    """Each difference of the projection is told once with old and new; other writes to the object are silent."""
    await put(client, namespace, a="1", b="1")
    async with Mirror(client, namespace) as mirror:
        assert mirror.items == {"a": "1", "b": "1"}
        await client.request("patch", JOBS, namespace, "a", body={"metadata": {"annotations": {"x": "y"}}})
        await put(client, namespace, a="2")
        await drop(client, namespace, "b")
        await mirror.until(a="2")
        assert mirror.changes[2:] == [("a", "1", "2"), ("b", "1", None)]


async def test_objects_come_and_go_with_their_label_and_projection(client, namespace):
    async with Mirror(client, namespace) as mirror:
        await put(client, namespace, a="1", b="hidden")
        await mirror.until(a="1")
        await put(client, namespace, a="hidden", b="2")
        await mirror.until(b="2")
        await client.request("patch", JOBS, namespace, "b", body={"metadata": {"labels": {"mirror": "no"}}})
        await mirror.until()


async def test_a_long_list_comes_in_pages(client, namespace, monkeypatch):
    monkeypatch.setattr("llmtrain_operator.cluster.reflector._PAGE", 3)
    values = {f"c{i}": str(i) for i in range(8)}
    await put(client, namespace, **values)
    async with Mirror(client, namespace) as mirror:
        assert mirror.items == values


@pytest.fixture
async def cut(kubeconfig, tmp_path):
    """A cable that a test can pull, and a client at its end."""
    async with tcp_proxy.cable_to(kubeconfig, tmp_path) as (cable, copy), connect(copy) as client:
        yield cable, client


async def test_nothing_is_missed_while_the_connection_is_down(client, cut, namespace):
    """After a broken connection the watch resumes where it was: a deletion and a change in between arrive."""
    await put(client, namespace, a="1", b="1", c="1")
    cable, far = cut
    async with Mirror(far, namespace) as mirror:
        await cable.pull()
        await drop(client, namespace, "a")
        await put(client, namespace, b="2")
        assert mirror.items == {"a": "1", "b": "1", "c": "1"}
        await cable.plug()
        await mirror.until(b="2", c="1")
        assert mirror.changes[3:] == [("a", "1", None), ("b", "1", "2")]


class Deaf(Client):
    """A client whose watches say nothing."""

    async def watch(self, *_, **__):
        await asyncio.Event().wait()
        yield {}


async def test_a_refresh_knows_what_the_watch_has_not_told(client, namespace):
    """Changes, additions and deletions up to the call; a leader's first look at its jobs must not be an old one."""
    await put(client, namespace, a="1", b="1")
    async with Mirror(Deaf(client._api), namespace) as mirror:
        await put(client, namespace, a="2", c="1")
        await drop(client, namespace, "b")
        assert mirror.items == {"a": "1", "b": "1"}
        await mirror.reflector.refresh()
        assert mirror.items == {"a": "2", "c": "1"}


class Forgetful(Client):
    """A client whose server has lost its history while `stale`: asks to resume at version 1, until told 410 Gone."""

    stale = False

    async def watch(self, resource, namespace="", *, query):
        if self.stale:
            query = {**query, "resourceVersion": "1"}
        try:
            async with aclosing(super().watch(resource, namespace, query=query)) as events:
                async for event in events:
                    self.stale &= event["object"].get("code") != 410
                    yield event
        except Gone:
            self.stale = False
            raise


async def test_a_relist_after_gone_synthesises_the_deletions(client, cut, namespace):
    """When the server's history is too short to resume (410 Gone), the new list tells what disappeared."""
    await put(client, namespace, a="1", b="1", c="1")
    cable, far = cut
    forgetful = Forgetful(far._api)
    async with Mirror(forgetful, namespace) as mirror:
        await cable.pull()
        forgetful.stale = True
        await drop(client, namespace, "a")
        await drop(client, namespace, "b")
        await put(client, namespace, b="3", c="2")  # b is another object of the same name now
        await cable.plug()
        await mirror.until(b="3", c="2")
        assert ("a", "1", None) in mirror.changes
        assert not forgetful.stale, "the server never said 410, so nothing was shown"


async def test_own_writes_are_visible_at_once_and_late_answers_do_not_resurrect(client, namespace):
    """`absorb` shows a write before the watch does; an answer that comes late, after the deletion, is void."""
    async with Mirror(client, namespace) as mirror:
        answer = await put(client, namespace, a="1")
        mirror.reflector.absorb(answer)
        assert mirror.items == {"a": "1"}
        await put(client, namespace, a="2")
        await mirror.until(a="2")
        await drop(client, namespace, "a")
        await mirror.until()
        mirror.reflector.absorb(answer)
        assert mirror.items == {}
        await put(client, namespace, b="1")
        await mirror.until(b="1")
        assert [change for change in mirror.changes if change[0] == "a"] == [
            ("a", None, "1"),
            ("a", "1", "2"),
            ("a", "2", None),
        ]


async def test_a_refused_list_holds_up_only_what_is_not_optional(client, namespace, monkeypatch):
    """Without the right to read nodes the operator still becomes ready; without its jobs it does not."""

    async def refuse(*_, **__):
        raise Rejected("forbidden (HTTP 403)")

    monkeypatch.setattr(client, "request", refuse)
    async with Mirror(client, namespace, optional=True) as mirror:
        assert mirror.items == {}
    needed = Reflector(client, PODS, lambda raw: raw, lambda *_: None, namespace=namespace)
    task = asyncio.create_task(needed.run())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(needed.synced.wait(), 0.5)
    task.cancel()
    await asyncio.wait([task])
