"""`llmtrain checkpoints --tier memory`: real stores and the real tool, in local runs and behind exec."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys

import aiohttp.web
import click
import pytest
import yaml
from click.testing import CliRunner

from llmtrain_operator.cli import main, memory
from llmtrain_operator.cli.access import Access
from llmtrain_operator.cli.members import Answer
from llmtrain_operator.cluster.user import open_cluster
from llmtrain_operator.contract import names
from llmtrain_operator.local.control import serving
from llmtrain_operator.local.folder import RunFolder, root
from llmtrain_operator.ports import Rejected, Unavailable
from llmtrain_operator.state import PodView
from llmtrain_trainer.checkpoint.catalog import Catalog
from llmtrain_trainer.checkpoint.storage import open_storage
from llmtrain_trainer.flash.header import Edition
from tests.support.flash_stores import JOB, fill, spoil, store_in
from tests.support.specs import job

OLD, NEW = Edition(10, 3, 2), Edition(20, 3, 2)
STORED = {**job("j"), "metadata": {"name": "j", "namespace": "ns", "uid": JOB, "generation": 1, "resourceVersion": "1"}}


def filled(directories):
    """Step 10 whole in both members, of step 20 in each its own rank."""
    stores = [store_in(directory) for directory in directories]
    for rank, store in enumerate(stores):
        fill(store.own(0, 0), OLD, rank)
        fill(store.replica(OLD, 1 - rank, 0), OLD, 1 - rank)
        fill(store.own(0, 1), NEW, rank, proved=False)
    return stores


# A run on this machine


@pytest.fixture
async def local(tmp_path, monkeypatch):
    """A run that goes on, with two members; their stores."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    folder = RunFolder(root(os.environ) / "jobs" / "j")
    folder.make()
    folder.write("status", STORED)
    folder.write("pods", [dataclasses.asdict(view(index)) for index in (0, 1)])
    stores = filled([folder.memory(f"uid-{index}") for index in (0, 1)])
    async with serving(folder, lambda patch: patch):
        yield stores
    folder.forget_memories()


def view(index):
    facts = {"phase": "Running", "ready": True, "node": "n", "deleting": False, "ip": "127.0.0.1", "reason": ""}
    facts |= {"message": "", "exit_code": None, "created": "", "scheduled": True, "unschedulable_message": ""}
    return PodView(f"j-{index}-1", "ns", f"uid-{index}", "j", index, 1, **facts)


async def test_ls_shows_all_members_in_one_table(local, capsys):
    """The newest step first, each line with its member."""
    assert await memory.look(Access(local=True), "j", "ls", None, as_json=False) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["MEMBER", "STEP", "ROUND", "RANK", "KIND", "MB", "STATE"]
    assert [(line[0], line[1], line[3], line[4], line[6]) for line in lines[1:]] == [
        ("0", "20", "0/2", "own", "unproved"),
        ("1", "20", "1/2", "own", "unproved"),
        ("0", "10", "0/2", "own", "proved"),
        ("1", "10", "0/2", "replica", "proved"),
        ("0", "10", "1/2", "replica", "proved"),
        ("1", "10", "1/2", "own", "proved"),
    ]


async def test_verify_finds_damage_in_any_member(local, capsys):
    """Exit code 1, also where nothing was found; JSON says which member."""
    assert await memory.look(Access(local=True), "j", "verify", None, as_json=True) == 0
    assert [each["member"] for each in json.loads(capsys.readouterr().out)["members"]] == [0, 1]
    assert await memory.look(Access(local=True), "j", "verify", 11, as_json=False) == 1
    spoil(local[1].scan()[0][0], 3)
    (local[0].root / "own-0-1.head").write_bytes(b"x")
    assert await memory.look(Access(local=True), "j", "verify", None, as_json=False) == 1
    out = capsys.readouterr().out
    assert "damaged: chunk 1 of 7: its bytes do not have their checksum" in out
    assert "damaged in member 0: own-0-1: the header" in out


async def test_rm_removes_a_step_everywhere(local, capsys):
    """Only members that have it are asked."""
    fill(local[0].own(1, 0), Edition(5, 3, 2), 0)
    assert await memory.remove(Access(local=True), "j", 5) == 0
    assert await memory.remove(Access(local=True), "j", 10) == 0
    assert capsys.readouterr().out.splitlines() == [
        "member 0: removed 1 of step 5",
        "member 0: removed 2 of step 10",
        "member 1: removed 2 of step 10",
    ]
    assert {held.header.edition for store in local for held in store.scan()[0]} == {NEW}
    with pytest.raises(click.ClickException, match="no member has a snapshot of step 10"):
        await memory.remove(Access(local=True), "j", 10)


async def test_export_of_a_local_run_takes_all_members_together(local, tmp_path, capsys):
    """Their memory is on this machine, whoever holds what."""
    uri = f"file://{tmp_path}/durable"
    assert await memory.export(Access(local=True), "j", uri, None, force=False) == 0
    assert capsys.readouterr().out == f"step 20 written to {uri}\n"
    assert Catalog(open_storage(uri)).newest_valid()[0].job_uid == JOB


async def test_a_run_that_is_over_has_nothing_in_memory(local, capsys):
    """That is said, and not that there are no snapshots."""
    RunFolder(root(os.environ) / "jobs" / "j").write("pods", [])
    with pytest.raises(click.ClickException, match="no member that runs"):
        await memory.look(Access(local=True), "j", "ls", None, as_json=False)


# In a cluster


class Server:
    """An API server's part: one job, its pods, and exec, which runs the command here with the pod's memory."""

    def __init__(self, stores):
        self.stores, self.commands, self.forbidden = stores, [], False
        self.end = b""

    async def job(self, _):
        return aiohttp.web.json_response(STORED)

    async def pods(self, _):
        return aiohttp.web.json_response({"items": [pod(index) for index in range(len(self.stores))]})

    async def exec(self, request):
        if self.forbidden:
            return aiohttp.web.json_response({"message": "no"}, status=403)
        assert request.headers["Authorization"] == "Bearer token"
        assert request.query["container"] == names.CONTAINER
        link = aiohttp.web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await link.prepare(request)
        command = request.query.getall("command")
        self.commands.append(command)
        index = int(request.match_info["pod"].split("-")[1])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command[1:]),
            env={**os.environ, names.ENV_FLASH: str(self.stores[index].root), names.ENV_JOB_UID: JOB},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        half = len(output) // 2
        for message in (b"\x01", b"\x01" + output[:half], b"\x02" + errors, b"\x01" + output[half:]):
            await link.send_bytes(message)
        await link.send_bytes(b"\x03" + (self.end or status(process.returncode)))
        await link.close()
        return link


def status(code):
    causes = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
    ended = {"status": "Failure", "reason": "NonZeroExitCode", "details": causes} if code else {"status": "Success"}
    return json.dumps(ended).encode()


def pod(index):
    labels = {names.LABEL_JOB: "j", names.LABEL_INDEX: str(index), names.LABEL_INCARNATION: "1"}
    metadata = {"name": f"j-{index}-1", "namespace": "ns", "uid": f"uid-{index}", "labels": labels}
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    spec = {"nodeName": "n", "containers": [{"name": names.CONTAINER, "image": "i"}]}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


@pytest.fixture
async def server(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    server = Server(filled([tmp_path / "0", tmp_path / "1"]))
    app = aiohttp.web.Application()
    app.router.add_get("/apis/llmtrain.io/v1alpha1/namespaces/ns/llmtrainjobs/j", server.job)
    app.router.add_get("/api/v1/namespaces/ns/pods", server.pods)
    app.router.add_get("/api/v1/namespaces/ns/pods/{pod}/exec", server.exec)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "c", "user": {"token": "token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    server.kubeconfig = tmp_path / "kubeconfig"
    server.kubeconfig.write_text(yaml.safe_dump(config))
    server.access = Access(server.kubeconfig, None, "ns")
    yield server
    await runner.cleanup()


async def test_in_a_cluster_the_tool_runs_in_each_member(server, capsys):
    """By exec, beside the workers."""
    assert await memory.look(server.access, "j", "ls", None, as_json=True) == 0
    members = json.loads(capsys.readouterr().out)["members"]
    assert [(each["member"], each["pod"], len(each["snapshots"])) for each in members] == [
        (0, "j-0-1", 3),
        (1, "j-1-1", 3),
    ]
    assert server.commands[0] == ["python3", "-m", "llmtrain_trainer.flash", "ls", "--json"]
    assert await memory.look(server.access, "j", "verify", 10, as_json=False) == 0


async def test_in_a_cluster_one_member_exports_what_it_holds_alone(server, tmp_path, capsys):
    """The newest step of which it has all shards; without one it is said what to do."""
    uri = f"file://{tmp_path}/durable"
    assert await memory.export(server.access, "j", uri, None, force=False) == 0
    assert capsys.readouterr().out == f"step 10 written to {uri}\n"
    with pytest.raises(click.ClickException, match="no member has the shards of all ranks of step 20"):
        await memory.export(server.access, "j", uri, 20, force=False)
    assert await memory.export(server.access, "j", f"file://{tmp_path}/no/such", None, force=False) == 2
    assert "mount the volume" in capsys.readouterr().err


async def test_a_member_that_cannot_be_asked_is_told_and_the_others_are_shown(server, capsys):
    """Exit code 2: what was found is not all."""
    server.end = b'{"status": "Failure", "message": "container not found", "details": {}}'
    assert await memory.look(server.access, "j", "ls", None, as_json=False) == 2
    printed = capsys.readouterr()
    assert printed.err.count("container not found") == 2
    server.forbidden = True
    assert await memory.look(server.access, "j", "ls", None, as_json=False) == 2
    assert "HTTP 403" in capsys.readouterr().err


async def test_exec_tells_output_from_errors_and_knows_the_exit_code(server):
    """As the command left them; a connection that ends before it does is no success."""
    async with open_cluster(server.kubeconfig, None) as cluster:
        script = "import sys; print('ü' * 9000); print('e', file=sys.stderr); sys.exit(7)"
        done = await cluster.execute("ns", "j-0-1", ["python3", "-c", script])
        assert (done.code, done.output, done.errors) == (7, "ü" * 9000 + "\n", "e\n")
        server.end = b" "
        with pytest.raises(Unavailable, match="before the command did"):
            await cluster.execute("ns", "j-0-1", ["python3", "-c", ""])
        server.forbidden = True
        with pytest.raises(Rejected, match="HTTP 403"):
            await cluster.execute("ns", "j-0-1", ["python3", "-c", ""])
    server.kubeconfig.write_text(server.kubeconfig.read_text().replace("127.0.0.1:", "127.0.0.1:1/"))
    async with open_cluster(server.kubeconfig, None) as cluster:
        with pytest.raises(Unavailable):
            await cluster.execute("ns", "j-0-1", ["python3"])


# Decisions


def snapshot(step, rank, world=2, state="proved"):
    return {
        "step": step,
        "round": 1,
        "worldSize": world,
        "rank": rank,
        "state": state,
        "why": "",
        "kind": "own",
        "size": 1,
    }


@pytest.mark.parametrize(
    ("held", "step", "chosen"),
    [
        pytest.param({0: [(1, 0), (1, 1)], 1: [(2, 0), (2, 1)]}, None, (1, 2), id="the newest"),
        pytest.param({0: [(1, 0), (1, 1)], 1: [(2, 0), (2, 1)]}, 1, (0, 1), id="the one asked for"),
        pytest.param({0: [(2, 0), (2, 1)], 1: [(2, 0), (2, 1)]}, None, (0, 2), id="the first of several"),
        pytest.param({0: [(2, 0)], 1: [(2, 1)]}, None, None, id="only together"),
        pytest.param({0: [(2, 0), (2, 0)], 1: []}, None, None, id="twice the same"),
    ],
)
def test_who_exports(held, step, chosen):
    """A member that needs nobody else."""
    answers = [Answer(m, "", 0, {"snapshots": [snapshot(*one) for one in there]}) for m, there in held.items()]
    assert memory.choose(answers, step) == chosen


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "--tier", "memory", "--storage", "s3://b/x"], "neither --storage nor --image"),
        (["ls", "j", "--tier", "memory", "--image", "i"], "neither --storage nor --image"),
        (["ls", "--tier", "memory"], "give either NAME or --storage"),
        (["export", "j", "--to", "x", "--tier", "memory", "--dtype", "bf16"], "no model"),
        (["export", "j", "--to", "pvc://a/b", "--force"], "--force goes with --tier memory"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, complaint):
    """Before anything is asked of a cluster."""
    result = CliRunner().invoke(main, ["checkpoints", *arguments])
    assert result.exit_code == 2
    assert complaint in result.output
