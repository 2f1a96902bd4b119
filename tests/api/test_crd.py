"""The CRD in a real API server: what it refuses, what it fills in, what may change when, and how kubectl shows it."""

import asyncio
import json
from pathlib import Path

import pytest

from llmtrain_operator.api import JobSpec
from llmtrain_operator.cluster.resources import JOBS
from llmtrain_operator.contract import names
from llmtrain_operator.ports import Rejected
from tests.support.specs import BAD, GOOD, job

ROUND = {"number": 1, "procsPerMember": 1, "members": [], "startedAt": "2026-01-01T00:00:00Z"}


@pytest.fixture
def api(client, namespace):
    """Short forms of what the tests ask of the server."""
    return Api(client, namespace)


class Api:
    def __init__(self, client, namespace):
        self._client, self._namespace = client, namespace

    async def create(self, patch=None, name="job", **query):
        return await self._client.request("create", JOBS, self._namespace, body=job(name, patch), query=query)

    async def patch(self, spec):
        return await self._client.request("patch", JOBS, self._namespace, "job", body={"spec": spec})

    async def status(self, **fields):
        await self._client.request("patch", JOBS, self._namespace, "job", subresource="status", body={"status": fields})

    async def list(self, **query):
        return (await self._client.request("list", JOBS, self._namespace, query=query))["items"]


@pytest.fixture
def kubectl(control_plane, namespace):
    """Run kubectl in the test's namespace and return what it prints."""

    async def run(*arguments):
        process = await asyncio.create_subprocess_exec(
            *(str(control_plane.kubectl), f"--kubeconfig={control_plane.kubeconfig}", "-n", namespace, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        return output.decode()

    return run


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
async def test_a_bad_spec_is_refused_at_its_field(api, bad):
    """The server names the field; where a rule of ours was broken, in our words."""
    with pytest.raises(Rejected) as refused:
        await api.create(bad.patch, dryRun="All")
    assert bad.path in str(refused.value)
    assert bad.says in str(refused.value)


@pytest.mark.parametrize("name", ["9lives", "a.b", "x" * 59])
async def test_a_name_that_makes_no_host_name_is_refused(api, name):
    """Before it could fail at the first pod."""
    with pytest.raises(Rejected, match="it becomes the members' host names"):
        await api.create(name=name)


async def test_defaults_are_visible_in_the_object(api):
    """What the server fills in is what the models would."""
    spec = (await api.create())["spec"]
    assert JobSpec.model_validate(spec) == JobSpec.model_validate(GOOD)
    assert spec["training"]["optimizer"] == JobSpec.model_validate(GOOD).training.optimizer.model_dump(
        mode="json", by_alias=True
    )
    assert (spec["suspend"], spec["nodes"]) == (False, {"min": 1, "spares": 0, "procPerNode": 1})


FROZEN = {
    "image": {"image": "other"},
    "nodes.procPerNode": {"nodes": {"procPerNode": 2}},
    "nodes.acceleratorResource": {"nodes": {"acceleratorResource": "nvidia.com/gpu"}},
    "model": {"model": {"preset": "gpt-mini"}},
    "data": {"data": {"source": "/other"}},
    "training": {"training": {"maxSteps": 200}},
    "deepspeed": {"deepspeed": {"config": {"zero_optimization": {"overlap_comm": True}}}},
    "entrypoint": {"entrypoint": {"script": "a.py"}},
    "checkpoint": {"checkpoint": {"flash": {"replicas": 0}}},
    "output": {"output": "/out"},
    "template": {"template": {"spec": {"nodeSelector": {"a": "b"}}}},
}


@pytest.mark.parametrize("field", FROZEN)
async def test_what_members_agree_on_is_immutable_while_they_train(api, field):
    """Members of one round, and replacements of lost ones, all start from the same spec."""
    await api.create()
    await api.status(state="Running", round=ROUND)
    with pytest.raises(Rejected, match=rf"spec\.{field} cannot change while members train.*suspend the job"):
        await api.patch(FROZEN[field])


@pytest.mark.parametrize("field", FROZEN)
async def test_a_suspended_job_can_be_edited(api, field):
    """Once nothing runs, anything may change."""
    await api.create({"suspend": True})
    await api.status(state="Suspended")
    await api.patch(FROZEN[field])


async def test_a_job_found_invalid_can_be_corrected(api):
    """The remedy that the condition names can be followed without suspending first."""
    await api.create({"deepspeed": {"config": {"zero_optimisation": {}}}})
    await api.status(state="Invalid")
    await api.patch({"deepspeed": {"config": None}})


async def test_suspending_is_not_enough_while_a_round_runs(api):
    """A suspension that would lose progress is put off; until then the members still train."""
    await api.create({"suspend": True})
    await api.status(state="Running", round=ROUND)
    with pytest.raises(Rejected, match="wait for state Suspended"):
        await api.patch({"training": {"seed": 1}})


async def test_a_queue_can_start_and_stop_a_job_with_its_placement(api):
    """Kueue sets node selectors in the update that resumes, and takes them back in the one that suspends."""
    await api.create({"suspend": True})
    await api.patch({"suspend": False, "template": {"spec": {"nodeSelector": {"pool": "a"}}}})
    await api.status(state="Running", round=ROUND)
    await api.patch({"suspend": True, "template": None})


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param({"nodes": {"min": 2, "max": 5, "desired": 4}}, id="size"),
        pytest.param({"nodes": {"spares": 1}}, id="spares"),
        pytest.param({"suspend": True}, id="suspend"),
        pytest.param({"recovery": {"maxRestarts": 3}}, id="budget"),
        pytest.param({"ttlSecondsAfterFinished": 60}, id="time to live"),
    ],
)
async def test_what_the_operator_applies_to_a_running_job_may_change(api, patch):
    """Size, suspension and budgets are not part of what members agree on."""
    await api.create()
    await api.status(state="Running", round=ROUND)
    await api.patch(patch)


async def test_scaling_stays_within_the_elastic_range(api, kubectl):
    """`kubectl scale` and autoscalers drive nodes.desired between min and max."""
    await api.create({"nodes": {"min": 1, "max": 3}})
    assert "scaled" in await kubectl("scale", "ltj/job", "--replicas=3")
    assert (await api.list())[0]["spec"]["nodes"]["desired"] == 3
    assert "between nodes.min and nodes.max" in await kubectl("scale", "ltj/job", "--replicas=4")


async def test_the_scale_subresource_has_what_autoscalers_read(api, kubectl, namespace):
    """Wanted and present replicas and a label selector, as HPA and KEDA expect."""
    await api.create({"nodes": {"max": 2, "desired": 2}})
    await api.status(replicas=1, selector="llmtrain.io/job=job")
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}/job/scale"
    scale = json.loads(await kubectl("get", "--raw", path))
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 1, "selector": "llmtrain.io/job=job"})


@pytest.mark.parametrize("word", [names.SHORT_NAME, names.CATEGORY, names.SINGULAR])
async def test_kubectl_shows_how_a_job_is_doing(api, kubectl, word):
    """The columns say at a glance where training is, under every name of the kind."""
    await api.create()
    await api.status(
        state="Running",
        nodes="1/1",
        restarts=2,
        goodput="97.5%",
        progress={"step": 40, "loss": 3.25, "eta": "3m12s", "maxSteps": 100, "phase": "training"},
    )
    heads, row = (line.split() for line in (await kubectl("get", word)).splitlines())
    assert heads == ["NAME", "STATE", "NODES", "STEP", "LOSS", "ETA", "GOODPUT", "RESTARTS", "AGE"]
    assert row[:-1] == ["job", "Running", "1/1", "40", "3.25", "3m12s", "97.5%", "2"]


async def test_jobs_are_selected_by_state(api):
    """`kubectl get ltj --field-selector status.state=Running`."""
    await api.create(name="one")
    await api.create(name="job")
    await api.status(state="Running")
    assert [each["metadata"]["name"] for each in await api.list(fieldSelector="status.state=Running")] == ["job"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("spec.nodes.desired", "what `kubectl scale` and autoscalers set"),
        ("spec.training.globalBatchSize", "Sequences per optimizer step over all workers"),
        ("spec.deepspeed.config", "DeepSpeed's own configuration"),
        ("status.goodput", "Productive share"),
    ],
)
async def test_kubectl_explains_the_fields(kubectl, path, says):
    """The models' descriptions reach the user."""
    async with asyncio.timeout(30):  # the server publishes a new kind's documentation a moment after it serves it
        while "find resource" in (text := await kubectl("explain", f"ltj.{path}")):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert says in " ".join(text.split())


async def test_a_misspelt_field_is_refused_by_kubectl(kubectl, tmp_path):
    """kubectl asks for strict validation, so that a typo does not silently leave a default in place."""
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job("job", {"training": {"maxStep": 5}})))
    assert 'unknown field "spec.training.maxStep"' in await kubectl("apply", "-f", str(file))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.stem)
async def test_the_examples_are_accepted(kubectl, path):
    """With kubectl's strict validation, all objects of the file."""
    assert "created (server dry run)" in await kubectl("apply", "--dry-run=server", "-f", str(path))
