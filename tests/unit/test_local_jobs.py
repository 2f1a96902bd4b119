"""Runs without a cluster as the command line sees them, and the socket that they take orders at."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import pytest

from llmtrain_operator.local import control
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.jobs import LocalJobs
from llmtrain_operator.local.stored import as_stored, merge_patch
from llmtrain_operator.ports import Rejected
from tests.support.planner import pod
from tests.support.specs import job

STATUS = {"observedGeneration": 1, "state": "Running", "progress": {"step": 4, "maxSteps": 9}}


class Run:
    """A run's folder, far too deep for the name of a socket, and what the run's process would hold in memory."""

    def __init__(self, root):
        self.folder = RunFolder(root / "jobs" / "j")
        self.folder.make()
        self.job = as_stored(job("j"), "uid", 0) | {"status": STATUS}
        self.folder.write("status", self.job)

    def patch(self, change):
        self.job = merge_patch(self.job, change)
        return self.job

    def serving(self):
        return control.serving(self.folder, self.patch)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "/".join(["a-long-name-of-a-folder"] * 5)


@pytest.fixture
def run(root):
    return Run(root)


async def test_an_order_reaches_the_run(run, root):
    """And the answer is the job as it is then."""
    async with run.serving():
        assert (await LocalJobs(root).job("", "j"))["status"]["state"] == "Running"
        changed = await LocalJobs(root).patch("", "j", {"spec": {"suspend": True}})
        await LocalJobs(root).scale("", "j", 2)
    assert changed["spec"]["suspend"]
    assert run.job["spec"]["nodes"]["desired"] == 2


@pytest.mark.parametrize("spec", [{"image": "x"}, {"nodes": {"procPerNode": 2}}, "text"], ids=str)
async def test_what_members_must_agree_on_cannot_be_ordered(run, root, spec):
    """As the API server refuses it."""
    async with run.serving():
        with pytest.raises(Rejected, match="edit the file, run it again"):
            await LocalJobs(root).patch("", "j", {"spec": spec})


async def test_a_run_that_is_over_takes_no_orders(run, root):
    """It is shown as what it was left as, even if it was killed and its socket is still there."""
    async with run.serving():
        pass
    run.folder.control.touch()
    assert (await LocalJobs(root).job("", "j"))["status"]["state"] == "Suspended"
    with pytest.raises(Rejected, match="takes it up again"):
        await LocalJobs(root).scale("", "j", 2)


async def test_a_run_that_never_was_is_named(root):
    """With where to look."""
    with pytest.raises(Rejected, match="there is no local run nobody"):
        await LocalJobs(root).job("", "nobody")
    assert await LocalJobs(root).jobs("") == []


async def lines(jobs, **options):
    return [line async for _, line in jobs.log("", "j-0-1", **options)]


async def test_logs_are_read_from_either_end(run, root):
    """All, the last ones, or what came after a place."""
    run.folder.log("j-0-1").write_text("a\nb\nc\nd")
    jobs = LocalJobs(root)
    assert await lines(jobs, follow=False) == ["a", "b", "c", "d"]
    assert await lines(jobs, follow=False, tail=2) == ["c", "d"]
    assert await lines(jobs, follow=False, since="000000000003") == ["d"]
    with pytest.raises(Rejected, match="waiting to start"):
        await anext(jobs.log("", "j-1-1", follow=False))


async def test_following_a_log_ends_with_its_pod(run, root):
    """Lines come as they are written, the last one though it has no end."""
    file = run.folder.log("j-0-1")
    file.write_text("first\nsec")
    run.folder.write("pods", [asdict(pod(0, name="j-0-1"))])
    async with run.serving():
        following = LocalJobs(root).log("", "j-0-1", follow=True)
        assert (await anext(following))[1] == "first"
        waiting = asyncio.ensure_future(anext(following))
        with file.open("a") as stream:
            stream.write("ond\nlast")
        assert (await waiting)[1] == "second"
        run.folder.write("pods", [asdict(pod(0, name="j-0-1", phase="Succeeded"))])
        assert [line async for _, line in following] == ["last"]
