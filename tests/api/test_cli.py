"""The command line against a real API server."""

import asyncio
import json
import os
import signal
import stat
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from llmtrain_operator.cluster.resources import BY_KIND, EVENTS, JOBS, PODS
from llmtrain_operator.contract import names
from tests.support.specs import job

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from llmtrain_operator.cli import main; main(prog_name='llmtrain')")
RUNNING = {
    "observedGeneration": 1,
    "state": "Running",
    "nodes": "1/1",
    "restarts": 0,
    "progress": {"step": 40, "maxSteps": 100, "loss": 3.25, "eta": "3m12s", "phase": "training"},
}


@pytest.fixture
def llmtrain(kubeconfig, namespace):
    """Start the command in the test's namespace."""

    async def start(*arguments, config=kubeconfig):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "KUBECONFIG": str(config), "NO_COLOR": "1"}
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        return await asyncio.create_subprocess_exec(
            *(*COMMAND, *arguments, "-n", namespace),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    return start


@pytest.fixture
def run(llmtrain):
    """Run the command to its end: exit code, output, errors."""

    async def done(*arguments, **options):
        process = await llmtrain(*arguments, **options)
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, output.decode(), errors.decode()

    return done


@pytest.fixture
async def running(client, namespace):
    """A job that trains, with a member and an event."""
    created = await client.request("create", JOBS, namespace, body=job("job"))
    await patch_status(client, namespace, RUNNING)
    labels = {names.LABEL_JOB: "job", names.LABEL_INDEX: "0", names.LABEL_INCARNATION: "1"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "job-0-1", "labels": labels},
        # Another node in each test: pods of one that has long not existed are collected by Kubernetes, at any moment.
        "spec": {"nodeName": f"node-{namespace}", "containers": [{"name": names.CONTAINER, "image": "none"}]},
    }
    made = await client.request("create", PODS, namespace, body=pod)
    await post_event(client, namespace, made, "FailedMount", "no such claim")
    await post_event(client, namespace, created, "RoundStarted", "round 1 with 1 members")
    return created


@pytest.fixture
def plugin(tmp_path):
    """A directory for $PATH with the programs that kubectl looks for, as pip makes them."""
    programs = {
        "kubectl-llmtrain": "from llmtrain_operator.cli import main; main()",
        "kubectl_complete-llmtrain": "from llmtrain_operator.cli.completion import complete_for_kubectl as c; c()",
        "llmtrain": "from llmtrain_operator.cli import main; main()",
    }
    for name, code in programs.items():
        (tmp_path / name).write_text(f"#!{sys.executable}\n{code}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    return tmp_path


@pytest.fixture
def shell(plugin, kubeconfig, namespace):
    """Run a program with kubectl's plugins on its path; the kubeconfig's context names the test's namespace."""
    content = yaml.safe_load(kubeconfig.read_text())
    content["contexts"][0]["context"]["namespace"] = namespace
    (plugin / "kubeconfig").write_text(json.dumps(content))
    environment = {
        **os.environ,
        "PATH": f"{plugin}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "operator"),
        "KUBECONFIG": str(plugin / "kubeconfig"),
    }
    environment.pop("KUBERNETES_SERVICE_HOST", None)

    async def done(*command):
        process = await asyncio.create_subprocess_exec(
            *map(str, command), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, output.decode(), errors.decode()

    return done


async def patch_status(client, namespace, status):
    await client.request("patch", JOBS, namespace, "job", subresource="status", body={"status": status})


async def post_event(client, namespace, about, reason, message):
    reference = {key: about["metadata"][key] for key in ("name", "namespace", "uid")}
    event = {
        "metadata": {"generateName": "job."},
        "involvedObject": {"apiVersion": about["apiVersion"], "kind": about["kind"], **reference},
        "reason": reason,
        "message": message,
        "type": "Normal",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "test"},
    }
    await client.request("create", EVENTS, namespace, body=event)


async def test_status_shows_the_jobs_of_a_namespace(run, running):
    """Like kubectl get, plain where no terminal is."""
    code, output, _ = await run("status")
    assert (code, output.splitlines()[1].split()[:5]) == (0, ["job", "Running", "1/1", "40/100", "3.25"])


async def test_status_of_a_job_shows_its_members_and_events(run, running, namespace):
    """One page from three resources."""
    _, output, _ = await run("status", "job")
    assert "step 40/100  40%  ETA 3m12s" in output
    assert f"job-0-1  node-{namespace}" in output
    assert "RoundStarted  round 1 with 1 members" in output


async def test_status_as_json_is_for_programs(run, running, namespace):
    """The job object as it is, and what the page shows beside it."""
    _, output, _ = await run("status", "job", "-o", "json")
    shown = json.loads(output)
    assert shown["job"]["status"]["progress"]["step"] == 40
    assert (shown["pods"][0]["node"], shown["events"][0]["reason"]) == (f"node-{namespace}", "RoundStarted")


async def line_with(process, words):
    async with asyncio.timeout(30):
        while words not in (line := (await process.stdout.readline()).decode()):
            assert line, (await process.stderr.read()).decode()
    return line


@pytest.mark.parametrize(("state", "code"), [("Complete", 0), ("Failed", 1)])
async def test_watching_a_job_ends_with_it(llmtrain, client, namespace, running, state, code):
    """A line per change, and an exit code that a script can use."""
    process = await llmtrain("status", "job", "--watch")
    await line_with(process, "RoundStarted: round 1 with 1 members")
    await line_with(process, "Running  step 40/100  loss 3.25")
    await patch_status(client, namespace, {"progress": {"step": 60}})
    await line_with(process, "step 60/100")
    await patch_status(client, namespace, {"state": state, "completionTime": "2026-01-01T01:00:00Z"})
    await line_with(process, f"{state}  step 60/100")
    assert await asyncio.wait_for(process.wait(), 30) == code


async def test_an_interrupt_ends_watching_quietly(llmtrain, running):
    """Control-C is how one leaves, not an error."""
    process = await llmtrain("status", "--watch")
    await line_with(process, "step 40/100")
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, errors) == (130, b"")


async def test_suspend_asks_before_it_loses_steps(run, client, namespace, running):
    """Without leave nothing is changed; with it the operator is told so too."""
    code, _, errors = await run("suspend", "job")
    assert (code, "40 steps that are saved nowhere" in errors) == (1, True)
    assert not (await client.request("get", JOBS, namespace, "job"))["spec"]["suspend"]
    assert (await run("suspend", "job", "--discard-progress"))[0] == 0
    suspended = await client.request("get", JOBS, namespace, "job")
    assert suspended["spec"]["suspend"]
    assert names.ANNOTATION_DISCARD_PROGRESS in suspended["metadata"]["annotations"]


async def test_resume_takes_the_leave_back(run, client, namespace, running):
    """Leave to discard progress is for one suspension."""
    await run("suspend", "job", "--discard-progress")
    assert (await run("resume", "job"))[0] == 0
    resumed = await client.request("get", JOBS, namespace, "job")
    assert not resumed["spec"]["suspend"]
    assert names.ANNOTATION_DISCARD_PROGRESS not in resumed["metadata"].get("annotations", {})


async def test_a_job_that_is_not_there_is_one_clear_line(run):
    """No traceback, and where to look, whatever was asked."""
    for code, _, errors in await asyncio.gather(
        *(run(it, "nobody") for it in ("status", "logs", "events", "explain", "suspend", "resume"))
    ):
        assert (code, errors.count("\n")) == (1, 1)
        assert "there is no job nobody in namespace" in errors


async def test_logs_of_a_member_that_has_not_started_say_so(run, running):
    """The reason goes to stderr, so that piped logs stay logs."""
    code, output, errors = await run("logs", "job")
    assert (code, output, "no log of job-0-1" in errors) == (0, "", True)
    assert "has no member 7 now" in (await run("logs", "job", "--member", "7"))[2]


async def test_a_cluster_without_the_kind_is_named_as_such(run, kubeconfig, client, tmp_path):
    """The remedy is to install the operator."""
    # The same server under a path where it serves nothing stands in for a cluster without the CRD.
    other = tmp_path / "kubeconfig"
    content = yaml.safe_load(kubeconfig.read_text())
    content["clusters"][0]["cluster"]["server"] += "/nothing"
    other.write_text(json.dumps(content))
    code, _, errors = await run("status", config=other)
    assert (code, "install the operator's chart" in errors) == (1, True), errors


async def test_a_cluster_that_does_not_answer_is_named_as_such(run, tmp_path):
    """What was tried and what to check."""
    other = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {}}]
    other.write_text(json.dumps({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "x"}))
    code, _, errors = await run("status", config=other)
    assert (code, "the cluster does not answer" in errors, "KUBECONFIG" in errors) == (1, True, True), errors


async def test_scale_goes_through_the_scale_subresource(run, client, namespace):
    """What lies outside the job's bounds is refused with the field to change."""
    await client.request("create", JOBS, namespace, body=job("job", {"nodes": {"min": 1, "max": 3}}))
    code, output, _ = await run("scale", "job", "2")
    assert (code, output) == (0, "job is to have 2 members\n")
    scaled = await client.request("get", JOBS, namespace, "job", subresource="scale")
    assert scaled["spec"]["replicas"] == 2
    code, _, errors = await run("scale", "job", "4")
    assert (code, "change spec.nodes.max first" in errors) == (1, True)


async def test_scale_waits_and_tells_what_happens(llmtrain, client, namespace):
    """Until so many train; what happened before is not told again."""
    created = await client.request("create", JOBS, namespace, body=job("job", {"nodes": {"min": 1, "max": 3}}))
    await patch_status(client, namespace, RUNNING)
    await post_event(client, namespace, created, "Old", "long ago")
    process = await llmtrain("scale", "job", "1", "--wait")
    await line_with(process, "is to have 1 members")
    await post_event(client, namespace, created, "Resizing", "from 3 to 1")
    assert "Old" not in await line_with(process, "Resizing: from 3 to 1")
    member = {"index": 0, "incarnation": 1, "pod": "p", "uid": "u", "host": "h", "storePort": 1}
    begun = {"number": 2, "procsPerMember": 1, "members": [member], "startedAt": "2026-01-01T00:00:00Z"}
    await patch_status(client, namespace, {"targetNodes": 1, "round": begun})
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_events_are_those_of_the_job_and_its_members(run, running):
    """Who it is about stands beside it."""
    _, output, _ = await run("events", "job")
    rows = [line.split()[1:3] for line in output.splitlines()[1:]]
    assert sorted(rows) == [["FailedMount", "job-0-1"], ["RoundStarted", "the"]]


async def test_watched_events_come_once(llmtrain, client, namespace, running):
    """New ones as they happen, until the job ends."""
    process = await llmtrain("events", "job", "--watch")
    await line_with(process, "RoundStarted")
    await post_event(client, namespace, running, "WorkerFailed", "member 0")
    assert await line_with(process, "WorkerFailed") == "  WorkerFailed: member 0\n"
    await patch_status(client, namespace, {"state": "Complete", "completionTime": "2026-01-01T01:00:00Z"})
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output == b""


async def test_explain_runs_the_planner_and_changes_nothing(run, client, namespace, running):
    """On the real objects: the job's pod is not owned by it, so a new one would be made."""
    before = await client.request("get", JOBS, namespace, "job")
    code, output, errors = await run("explain", "job")
    assert code == 0, errors
    assert "create a pod for member 0, its incarnation 1" in output
    assert "what members tell the operator is not known here" in output
    assert await client.request("get", JOBS, namespace, "job") == before


async def test_who_may_not_is_told_what_grants_it(run, client, namespace, running, kubeconfig, tmp_path):
    """An account without rights: one line, with the server's words and the remedy."""
    account = BY_KIND["ServiceAccount"]
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = await client.request("create", account, namespace, "default", subresource="token", body=asked)
    content = yaml.safe_load(kubeconfig.read_text())
    content["users"][0]["user"] = {"token": token["status"]["token"]}
    (tmp_path / "poor").write_text(json.dumps(content))
    for words in (("status",), ("scale", "job", "1"), ("events", "job")):
        code, _, errors = await run(*words, config=tmp_path / "poor")
        assert (code, errors.count("\n"), "the roles view, edit and admin" in errors) == (1, 1, True), errors


async def test_kubectl_finds_the_plugin(shell, control_plane, running):
    """`kubectl llmtrain` is the same command, with kubectl's own idea of cluster and namespace."""
    code, output, errors = await shell(control_plane.kubectl, "llmtrain", "status", "job")
    assert (code, "step 40/100" in output) == (0, True), errors
    _, listed, _ = await shell(control_plane.kubectl, "plugin", "list", "--name-only")
    assert "kubectl-llmtrain" in listed


async def test_kubectl_completes_names_of_jobs(shell, control_plane, running):
    """Through the program that kubectl asks for a plugin's completions; no file names are mixed in."""
    _, output, errors = await shell(control_plane.kubectl, "__complete", "llmtrain", "logs", "j")
    assert output.splitlines()[:2] == ["job", ":4"], errors


async def test_bash_completes_commands_options_and_names_of_jobs(shell, running):
    """With the script that `llmtrain completion bash` prints, in a real bash."""

    async def completed(*words):
        line = " ".join(f'"{word}"' for word in words)
        script = (
            'eval "$(llmtrain completion bash)"; '
            f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _llmtrain_completion llmtrain; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        _, output, errors = await shell("bash", "-c", script)
        assert not errors
        return output.split()

    assert await completed("llmtrain", "sus") == ["suspend"]
    assert await completed("llmtrain", "scale", "job", "--wa") == ["--wait"]
    assert await completed("llmtrain", "status", "") == ["job"]
    assert await completed("llmtrain", "status", "--local", "") == []


@pytest.mark.parametrize("kind", ["zsh", "fish"])
async def test_other_shells_have_their_script(shell, kind):
    """It asks the command for completions in that shell's form."""
    assert f"_LLMTRAIN_COMPLETE={kind}_complete" in (await shell("llmtrain", "completion", kind))[1]


async def test_a_support_bundle_says_what_is_in_it_and_what_is_not(run, client, namespace, tmp_path):
    """Objects, events, versions; no secrets; what the user may not read or is not there is named with the reason."""
    env = [{"name": "HF_TOKEN", "value": "very-secret"}, {"name": "EPOCHS", "value": "3"}]
    template = {"spec": {"containers": [{"name": names.CONTAINER, "env": env}]}}
    created = await client.request("create", JOBS, namespace, body=job("job", {"template": template}))
    await post_event(client, namespace, created, "WorkerFailed", "cannot open s3://user:very-secret@host/bucket")
    code, output, errors = await run("support-bundle", "job", "-o", str(tmp_path / "bundle.tar.gz"))
    assert code == 0, errors
    assert "crd.yaml" in output
    assert "not in it: the operator: there is none in any namespace" in output
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        files = {Path(each.name).name: archive.extractfile(each).read().decode() for each in archive.getmembers()}
    assert "v1alpha1" in files["crd.yaml"]
    assert "EPOCHS" in files["job.yaml"]
    assert "do nothing" in files["explain.txt"] or "create a pod" in files["explain.txt"]
    assert "WorkerFailed" in files["events.yaml"]
    assert "  events.yaml: events about the job and its pods" in files["README.txt"]
    assert not [name for name, text in files.items() if "very-secret" in text]


async def test_checkpoints_of_a_job_that_takes_none(run, client, namespace):
    """The field to give, before anything else that is missing; no pod is made."""
    await client.request("create", JOBS, namespace, body=job("job"))
    code, _, errors = await run("checkpoints", "ls", "job")
    assert (code, "it has no spec.checkpoint.durable" in errors) == (1, True)


async def test_checkpoints_name_the_image_that_they_need(run, client, namespace):
    """Where no member is left to take it from and nobody says which the operator uses."""
    storage = {"durable": {"storage": "s3://bucket/job"}}
    await client.request("create", JOBS, namespace, body=job("job", {"checkpoint": storage}))
    code, _, errors = await run("checkpoints", "verify", "job")
    assert (code, "name the image with --image" in errors) == (1, True)


async def test_the_checkpoints_pod_goes_with_the_command(llmtrain, client, namespace):
    """However it ends: here it is interrupted while the pod waits for a node, of which there is none."""
    storage = {"durable": {"storage": "s3://bucket/job"}}
    await client.request("create", JOBS, namespace, body=job("job", {"checkpoint": storage}))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "job"}}
    await client.request("create", BY_KIND["ServiceAccount"], namespace, body=account)
    process = await llmtrain("checkpoints", "ls", "job", "--image", "trainer")

    async def pods():
        return (await client.request("list", PODS, namespace))["items"]

    async with asyncio.timeout(30):
        while not await pods():  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 130
    assert await pods() == []
