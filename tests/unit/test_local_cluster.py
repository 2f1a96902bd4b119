"""Jobs in memory and processes in place of pods."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import Unauthenticated
from llmtrain_operator.local.cluster import LocalCluster
from llmtrain_operator.local.folder import RunFolder
from llmtrain_operator.local.init import living
from llmtrain_operator.local.pods import Machine
from llmtrain_operator.local.stored import as_stored
from llmtrain_operator.manifests import Settings, member_pod
from llmtrain_operator.ports import Conflict, Rejected
from llmtrain_operator.state import JobView
from tests.support.specs import job

KEY = "default/j"


class Place:
    """A cluster of so many nodes with one job, whose pods run a shell script."""

    def __init__(self, folder, nodes):
        self.changed, self.lines = asyncio.Event(), []
        stored = as_stored(job("j"), "job-uid", 0)
        own = {names.ENV_VOLUMES: str(folder / "volumes"), "PYTHONPATH": "operator"}
        self.view = JobView("j", "default", stored["metadata"]["uid"], 1)
        self.cluster = LocalCluster(
            stored,
            Machine(tuple(f"node-{i}" for i in range(1, nodes + 1)), os.environ, own),
            RunFolder(folder),
            wake=lambda _: self.changed.set(),
            say=self.say,
        )

    def say(self, pod, line):
        self.lines.append((pod.index, line))
        self.changed.set()

    async def create(self, index, script):
        template = {"spec": {"containers": [{"name": names.CONTAINER, "command": ["sh", "-c", script]}]}}
        spec = parse("j", job("j", {"template": template})["spec"])[0]
        await self.cluster.create(member_pod(self.view, spec, index, 1, Settings("i", "i", "ws://127.0.0.1:1", "")))

    async def until(self, met):
        """The pods by index, as soon as `met` holds of them."""
        async with asyncio.timeout(30):
            while not met(found := {pod.index: pod for pod in self.cluster.pods(KEY)}):
                self.changed.clear()
                await self.changed.wait()
        return found


@pytest.fixture
async def place(tmp_path):
    """Two nodes."""
    made = Place(tmp_path, 2)
    yield made
    await made.cluster.close(0)


async def test_a_pod_ends_as_its_process_does(place, tmp_path):
    """Phase and exit code follow; what it printed is told and kept."""
    await place.create(0, "echo hello; exit 3")
    await place.create(1, "exit 0")
    found = await place.until(lambda pods: {pod.phase for pod in pods.values()} == {"Failed", "Succeeded"})
    assert (found[0].phase, found[0].exit_code, found[0].message) == ("Failed", 3, "exit code 3")
    assert (found[1].phase, found[1].reason) == ("Succeeded", "")
    assert place.lines == [(0, "hello")]
    assert (tmp_path / "logs/j-0-1.log").read_text() == "hello\n"


async def test_a_pod_without_a_node_waits_until_one_is_free(place):
    """It says why; the place of a deleted pod is the next one's."""
    for index in range(3):
        await place.create(index, "exec sleep 1000")
    found = await place.until(lambda pods: pods[1].phase == "Running")
    assert (found[2].scheduled, "`--nodes 3` makes room" in found[2].unschedulable_message) == (False, True)
    await place.cluster.delete("Pod", "default", found[0].name, found[0].uid)
    found = await place.until(lambda pods: 0 not in pods and pods[2].phase == "Running")
    assert (found[2].node, found[2].unschedulable_message) == ("node-1", "")


async def test_a_deaf_pod_is_killed_when_its_time_is_over(place):
    """With everything that it began, in whatever session."""
    await place.create(0, "trap '' TERM; setsid sleep 1000 & echo $!; wait; sleep 1000")
    await place.until(lambda _: place.lines)
    [pod] = place.cluster.pods(KEY)
    await place.cluster.delete("Pod", "default", pod.name, pod.uid, grace=1)
    await place.until(lambda pods: not pods)
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.lines[0][1]), 0)


async def test_a_pod_ends_below_nohup_too(place):
    """Which has every process ignore SIGHUP from its first moment, until it says otherwise itself."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await place.create(0, "exec sleep 1000")
        await place.until(lambda pods: pods[0].phase == "Running")  # its first process has only just begun
    finally:
        signal.signal(signal.SIGHUP, before)
    async with asyncio.timeout(10):
        await place.cluster.close(0)


async def test_a_status_is_written_only_over_the_one_that_was_seen(place, tmp_path):
    """As with an API server's resourceVersion; the newest is on disk."""
    seen = place.cluster.job(KEY)
    await place.cluster.patch_status(seen, {"state": "Pending"})
    with pytest.raises(Conflict):
        await place.cluster.patch_status(seen, {"state": "Running"})
    assert json.loads((tmp_path / "status.json").read_text())["status"] == {"state": "Pending"}


async def test_a_token_is_good_for_its_own_pod_only(place, tmp_path):
    """Each pod finds one of its own; a guess is refused."""
    await place.create(1, "exec sleep 1000")
    await place.until(lambda pods: pods[1].phase == "Running")
    identity = await place.cluster.identify((tmp_path / "tokens/j-1-1").read_text())
    assert (identity.pod, identity.uid) == ("j-1-1", place.cluster.pods(KEY)[0].uid)
    with pytest.raises(Unauthenticated):
        await place.cluster.identify("guess")


async def test_nothing_is_left_when_a_pods_first_process_is_killed(place):
    """It had no chance to end what it began, in whatever session; the pod counts as failed when all is gone."""
    await place.create(0, "setsid sleep 1000 & echo $!; echo $PPID; wait")
    await place.until(lambda _: len(place.lines) == 2)
    helper, first = (int(line) for _, line in place.lines)
    os.kill(first, signal.SIGKILL)
    found = await place.until(lambda pods: pods[0].phase == "Failed")
    assert found[0].exit_code == -signal.SIGKILL
    assert helper not in living()


async def test_what_the_pods_were_stays_on_record_after_the_end(place, tmp_path):
    """For those who look at a run that is over."""
    await place.create(0, "exec sleep 1000")
    await place.until(lambda pods: pods[0].phase == "Running")
    await place.cluster.close(1)
    [pod] = json.loads((tmp_path / "pods.json").read_text())
    assert (pod["name"], pod["phase"]) == ("j-0-1", "Failed")


async def test_a_users_patch_is_another_generation_or_is_refused(place):
    """As an API server would have it; the refusal names the field."""
    assert place.cluster.patch({"spec": {"suspend": True}})["metadata"]["generation"] == 2
    with pytest.raises(Rejected, match=r"spec\.nodes\.desired"):
        place.cluster.patch({"spec": {"nodes": {"desired": 7}}})


async def test_temporary_files_go_with_the_pod_that_was_killed(place, tmp_path):
    """Nobody is left in it who could remove them."""
    await place.create(0, 'touch "$TMPDIR/left" && echo "$TMPDIR"; kill -9 $$')
    await place.until(lambda pods: pods[0].phase == "Failed" and place.lines)
    [(_, scratch)] = place.lines
    assert RunFolder(tmp_path).scratches == Path(scratch).parent
    await place.cluster.close(0)
    assert not Path(scratch).parent.exists()
