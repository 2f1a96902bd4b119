"""Real agents, workers and coordinator as processes on loopback; the test decides on rounds. No cluster."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain_operator.api import JobSpec
from llmtrain_operator.contract import wire
from llmtrain_operator.manifests import torchrun_environment
from llmtrain_operator.preflight import shortfalls
from llmtrain_operator.state import JobView
from tests.support.director import PYTHONPATH, ROOT, Director, script


@pytest.fixture
async def director(tmp_path):
    async with Director(tmp_path) as director:
        yield director


async def test_three_members_form_a_round_and_finish_their_script(director):
    """Agents join, enter the round, run an unmodified torchrun script, and end with 0 when told to stop."""
    uids = [director.start_agent(i, script("allreduce.py", 3, 0.01)) for i in range(3)]
    await director.until_state("joining", *uids)
    director.run(1, *uids)
    await director.until_state("succeeded", *uids, number=1)
    director.stop(*uids)
    assert await director.exit_codes(*uids) == [0, 0, 0]
    assert "[rank 2] step 2 of attempt 0" in director.log(uids[2]).read_text()


async def test_members_are_measured_before_they_join_and_a_bad_node_is_found(director):
    """Three agents measure at once, each against the next; one may write 1 MiB to its disk and no more. Those that pass
    train together."""
    spec = script("allreduce.py", 3, 0.01) | {"recovery": {"preflight": {"enabled": True, "seconds": 20}}}
    uids = [director.start_agent(i, spec, LLMTRAIN_DATA_CACHE=str(director.folder / "cache")) for i in range(3)]
    resource.prlimit(director.agents[uids[2]].pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    await director.until_state("joining", *uids)
    for uid, other in zip(uids, [*uids[1:], uids[0]], strict=True):
        seen = director.reports[other]
        against = wire.Neighbour(seen.pod, seen.host, seen.preflight.port, seen.preflight.key)
        director.tell(wire.Directive("wait", "not in a round yet", check=wire.Check(1, against)), uid)
    await director.until(lambda: all(director.reports[uid].preflight.attempt == 1 for uid in uids))
    found = {uid: director.reports[uid].preflight for uid in uids}
    assert shortfalls(found, 0.01) == {uids[2]: "the check failed: disk: [Errno 27] File too large"}
    assert all(min(found[uid].matmul, found[uid].memory, found[uid].network, found[uid].disk) > 0 for uid in uids[:2])
    director.run(1, *uids[:2])
    await director.until_state("succeeded", *uids[:2], number=1)
    assert director.reports[uids[2]].state == "joining"
    director.stop(*uids)
    assert await director.exit_codes(*uids) == [0, 0, 143]


async def test_ten_restarts_in_a_row_recover(director):
    """A killed worker is reported with its signal; ten new rounds all train, without an intermediate step."""
    uids = [director.start_agent(i, script("allreduce.py", 10_000, 0.01)) for i in range(2)]
    await director.until_state("joining", *uids)
    durations = []
    for number in range(1, 12):
        start = time.monotonic()
        director.run(number, *uids)
        await director.until_state("running", *uids, number=number)
        await asyncio.gather(*(printed(director, uid, f"step 1 of attempt {number - 1}\n") for uid in uids))
        durations.append(time.monotonic() - start)
        victim = uids[number % 2]
        os.kill(director.worker_pids(victim)[0], signal.SIGKILL)
        await director.until(lambda victim=victim, number=number: failure_of(director, victim, number))
        failure = director.reports[victim].failure
        assert (failure.reason, failure.signal) == ("Killed", signal.SIGKILL)
    print("publish to second step:", ", ".join(f"{d:.1f}" for d in durations))


async def test_training_goes_on_without_a_coordinator(director):
    """A killed coordinator disturbs no worker; its successor hears from all agents."""
    uids = [director.start_agent(i, script("allreduce.py", 10_000, 0.05)) for i in range(2)]
    await director.until_state("joining", *uids)
    director.run(1, *uids)
    await asyncio.gather(*(printed(director, uid, "step 1 ") for uid in uids))
    before = [director.worker_pids(uid) for uid in uids]
    director.kill_coordinator()
    await director.until(lambda: not director.link.connected)
    await asyncio.sleep(3)  # long enough for several attempts to reconnect
    director.reports.clear()
    director.start_coordinator()
    await director.until_state("running", *uids, number=1)
    assert [director.worker_pids(uid) for uid in uids] == before


async def test_an_older_round_is_ignored(director, tmp_path):
    """A round that is not newer than the current one changes nothing, a newer one replaces the workers at once."""
    (uid,) = (director.start_agent(0, script("patient.py", tmp_path)),)
    await director.until_state("joining", uid)
    director.run(5, uid)
    await exists(tmp_path / "pid-0-round-5")
    director.run(4, uid)
    director.kill_coordinator()  # a new one has no memory of round 5 and passes round 4 on
    director.start_coordinator()
    await director.until(lambda: director.link.connected)
    director.run(4, uid)
    await asyncio.sleep(1.5)
    assert director.reports[uid].round == 5
    director.run(6, uid)
    start = time.monotonic()
    await exists(tmp_path / "pid-0-round-6")
    assert director.reports[uid].failure is None
    assert not alive(int((tmp_path / "pid-0-round-5").read_text()))
    print(f"round 5 to 6: {time.monotonic() - start:.2f} s")


@pytest.mark.parametrize("how", ["directive", "SIGTERM"])
async def test_a_stop_gives_workers_time_to_save(director, tmp_path, how):
    """SIGTERM reaches every worker, each may save, and the agent ends with 143 because the job is not done. What came
    from elsewhere than the operator is told to it before the workers have ended."""
    uid = director.start_agent(0, script("patient.py", tmp_path), procs=2)
    await director.until_state("joining", uid)
    director.run(1, uid, procs=2)
    await asyncio.gather(*(exists(tmp_path / f"pid-{rank}-round-1") for rank in range(2)))
    await asyncio.sleep(0.3)
    if how == "directive":
        director.stop(uid)
    else:
        director.agents[uid].terminate()
    assert await director.exit_codes(uid) == [143]
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(2))
    await director.until_state("stopped", uid)
    told = [(update.report.state, update.report.leaving) for update in director.history if update.report]
    assert (("running", "SIGTERM") in told) == (how == "SIGTERM")


@pytest.mark.parametrize(
    ("name", "args", "saves"),
    [("patient.py", (0,), True), ("patient.py", (143,), True), ("allreduce.py", (10_000, 0.01), False)],
    ids=["exits with 0", "exits with 143", "dies of SIGTERM"],
)
async def test_a_script_told_to_save_leaves_its_round_without_having_failed(director, tmp_path, name, args, saves):
    """Workers get SIGTERM once and their grace, whatever is said of the same round meanwhile; a newer one starts them
    again."""
    spec = script(name, tmp_path, *args) if saves else script(name, *args)
    uid = director.start_agent(0, spec, procs=2)
    await director.until_state("joining", uid)
    same_round = director.run(1, uid, procs=2)
    await director.until_state("running", uid, number=1)
    if saves:
        await asyncio.gather(*(exists(tmp_path / f"pid-{rank}-round-1") for rank in range(2)))
    else:
        await printed(director, uid, "step 1 ")
    director.tell(wire.Directive("save", "to resize"), uid)
    await printed(director, uid, "are to save and leave")
    director.tell(wire.Directive("run", "on second thoughts", same_round), uid)
    await director.until_state("joining", uid, number=1)
    assert director.reports[uid].failure is None
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(2)) is saves
    assert director.worker_pids(uid) == []
    director.run(2, uid, procs=2)
    await director.until_state("running", uid, number=2)


async def test_workers_that_do_not_leave_within_their_grace_are_killed(director, tmp_path):
    """A script that ignores SIGTERM holds up a resize for the grace period, no longer."""
    uid = director.start_agent(0, script("stubborn.py", tmp_path))
    await director.until_state("joining", uid)
    director.run(1, uid)
    await exists(tmp_path / "0")
    start = time.monotonic()
    director.tell(wire.Directive("save", "to resize"), uid)
    await director.until_state("joining", uid, number=1)
    assert 4 < time.monotonic() - start < 8
    assert director.reports[uid].failure is None


@pytest.mark.parametrize("action", ["newer round", "wait", "stop"])
async def test_a_newer_word_ends_the_saving(director, tmp_path, action):
    """Workers that take their time to leave are ended at once by a newer round or a wait; a stop is a stop."""
    uid = director.start_agent(0, script("stubborn.py", tmp_path), LLMTRAIN_GRACE_SECONDS="30")
    await director.until_state("joining", uid)
    director.run(1, uid)
    await exists(tmp_path / "0")
    director.tell(wire.Directive("save", "to resize"), uid)
    await printed(director, uid, "are to save and leave")
    if action == "newer round":
        director.run(2, uid)
        await director.until_state("running", uid, number=2, within=20)
    elif action == "wait":
        director.tell(wire.Directive("wait", "too few members"), uid)
        await director.until_state("joining", uid, number=1, within=20)
    else:
        director.stop(uid)
        await printed(director, uid, "SIGTERM")
    assert director.reports[uid].failure is None
    for pid in director.worker_pids(uid):  # not to wait for their grace
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("bare", [False, True], ids=["options", "environment"])
async def test_plain_torchrun_runs_an_unmodified_script(director, bare):
    """`torchrun --rdzv-backend=llmtrain` needs no endpoint and ends like any torchrun; as a pod's own command it needs
    no option at all."""
    options = ["--rdzv-backend=llmtrain", "--nnodes=1:4", "--nproc-per-node=2"]
    nodes = {"min": 1, "max": 4, "procPerNode": 2}
    own = JobSpec.model_validate({"entrypoint": {"script": "allreduce.py"}, "nodes": nodes})
    environment = torchrun_environment(JobView("j", "d", "uid", 1), own) if bare else {}
    torchrun = [str(Path(sys.executable).parent / "torchrun"), *([] if bare else options)]
    torchrun += [str(ROOT / "tests/support/scripts/allreduce.py"), "3", "0.01"]
    environment |= entry_points(director.folder)
    uids = [director.start_agent(i, {}, command=torchrun, **environment) for i in range(2)]
    await director.until_state("joining", *uids)
    director.run(1, *uids, procs=2)
    await director.until_state("succeeded", *uids, number=1)
    assert await director.exit_codes(*uids) == [0, 0]


async def test_a_frozen_agent_is_lost_and_comes_back(director, tmp_path):
    """SIGSTOP is noticed by missing heartbeats within the deadline; after SIGCONT the agent reports again."""
    uid = director.start_agent(0, script("patient.py", tmp_path))
    await director.until_state("joining", uid)
    start = time.monotonic()
    director.agents[uid].send_signal(signal.SIGSTOP)
    await director.until(lambda: not director.history[-1].connected, within=30)
    assert "no heartbeat" in director.history[-1].detail
    print(f"frozen agent lost after {time.monotonic() - start:.1f} s")
    director.agents[uid].send_signal(signal.SIGCONT)
    await director.until(lambda: director.history[-1].connected, within=30)


async def test_a_frozen_worker_is_named_and_killed(director, tmp_path):
    """The others would wait for it for ever: within a second or so its agent tells who it was, and a round follows."""
    uid = director.start_agent(0, script("patient.py", tmp_path), procs=2)
    await director.until_state("joining", uid)
    director.run(1, uid, procs=2)
    await exists(tmp_path / "pid-1-round-1")
    start = time.monotonic()
    os.kill(int((tmp_path / "pid-1-round-1").read_text()), signal.SIGSTOP)
    await director.until(lambda: director.reports[uid].failure, within=20)
    print(f"frozen worker noticed after {time.monotonic() - start:.1f} s")
    failure = director.reports[uid].failure
    assert (failure.reason, failure.round) == ("Hang", 1)
    assert "rank 1 was stopped (SIGSTOP)" in failure.message
    await director.until(lambda: not director.worker_pids(uid))
    await director.until_state("joining", uid, number=1)
    director.run(2, uid, procs=2)
    await director.until_state("running", uid, number=2)


@pytest.mark.parametrize(
    ("how", "within", "words"),
    [
        ("lock", 4.0, ("Hang", "rank 1 takes no step and hangs in", "in wait_for_ever")),
        ("mismatch", 45.0, ("PeerLost", "waits for the others in", "torch/distributed")),
        ("slow", 0.0, ()),
    ],
)
async def test_a_worker_that_hangs_is_named_with_its_stack(director, how, within, words):
    """Its peers are fine, and wait for it; one that is merely slow is waited for. The next round goes on to the end."""
    uid = director.start_agent(0, script("hanging.py", how), procs=2)
    await director.until_state("joining", uid)
    director.run(1, uid, procs=2)
    await director.until(lambda: step_of(director.reports[uid]) >= 19)
    if how == "slow":
        await director.until_state("succeeded", uid, number=1)
        return
    start = time.monotonic()
    await director.until(lambda: director.reports[uid].failure, within=60)
    print(f"{how}: noticed after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < within
    failure = director.reports[uid].failure
    assert (failure.reason, failure.step) == (words[0], 19)
    assert words[1] in failure.message
    assert words[2] in failure.traceback
    await director.until_state("joining", uid, number=1)
    director.run(2, uid, procs=2)
    await director.until_state("succeeded", uid, number=2)


def step_of(report):
    return report.progress.step if report.progress else 0


async def test_a_frozen_coordinator_loses_nobody(director, tmp_path):
    """The coordinator blames its own lag, not the agents."""
    uids = [director.start_agent(i, script("patient.py", tmp_path)) for i in range(2)]
    await director.until_state("joining", *uids)
    director.coordinator.send_signal(signal.SIGSTOP)
    await asyncio.sleep(director.deadline * 1.5)
    director.coordinator.send_signal(signal.SIGCONT)
    await asyncio.sleep(director.deadline * 0.6)
    assert all(update.connected for update in director.history if "no heartbeat" in update.detail)


async def test_a_failing_script_is_reported_in_its_own_words(director, tmp_path):
    """Exit code and last words of a script without error files reach the controller; a new round restarts it."""
    bad = tmp_path / "bad.py"
    bad.write_text("raise ValueError('no such column: text')\n")
    uid = director.start_agent(0, {"entrypoint": {"script": str(bad)}})
    await director.until_state("joining", uid)
    for number in (1, 2):
        director.run(number, uid)
        await director.until(lambda number=number: failure_of(director, uid, number))
        failure = director.reports[uid].failure
        assert (failure.reason, failure.exit_code, failure.rank) == ("UserError", 1, 0)
        assert failure.message == "exit code 1: ValueError: no such column: text"
        assert "Traceback" in failure.traceback


async def test_one_failed_worker_ends_its_siblings_at_once(director, tmp_path):
    """A sibling that would take long to stop is killed, and the member is ready for the next round."""
    spec = script("stubborn.py", tmp_path)
    uid = director.start_agent(0, spec, procs=2)
    await director.until_state("joining", uid)
    director.run(1, uid, procs=2)
    await asyncio.gather(exists(tmp_path / "0"), exists(tmp_path / "1"))
    start = time.monotonic()
    (tmp_path / "go").touch()
    await director.until(lambda: failure_of(director, uid, 1), within=5)
    assert time.monotonic() - start < 2
    failure = director.reports[uid].failure
    assert (failure.rank, failure.message) == (1, "exit code 1: rank 1 gives up")
    assert director.worker_pids(uid) == []


async def test_an_unreachable_store_is_reported_and_the_next_round_works(director, tmp_path):
    """A member that cannot reach its round's host says so, keeps its connection meanwhile, and joins again."""
    uid = director.start_agent(0, script("patient.py", tmp_path))
    await director.until_state("joining", uid)
    me = director.reports[uid]
    ghost = wire.Member(1, 0, "job-1-0", "uid-1", "127.0.0.1", 9)
    myself = wire.Member(0, 0, me.pod, uid, me.host, me.store_port)
    director.tell(wire.Directive("run", "round 1", wire.Round(1, (ghost, myself), 1)), uid)
    await director.until(lambda: failure_of(director, uid, 1))
    failure = director.reports[uid].failure
    assert (failure.reason, failure.rank) == ("PeerLost", -1)
    assert "no connection to the store of job-1-0 at 127.0.0.1:9" in failure.message
    assert all(update.connected for update in director.history)
    director.run(2, uid)
    await exists(tmp_path / "pid-0-round-2")


AS_IN_A_POD = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "catatonit", "--", sys.executable]


async def test_orphans_leave_no_zombies_and_the_workers_end_is_known(director, tmp_path):
    """The pod's first process buries the former; the worker's own exit status is the agent's to see."""
    uid = director.start_agent(0, script("orphans.py"), command=[*AS_IN_A_POD, "-u", "-m", "llmtrain_trainer.agent"])
    await director.until_state("joining", uid)
    director.run(1, uid)
    await director.until(lambda: failure_of(director, uid, 1))
    assert director.reports[uid].failure.exit_code == 40
    director.stop(uid)
    assert await director.exit_codes(uid) == [143]


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.2, 1.0])
def test_an_agent_can_be_stopped_while_it_starts(pause):
    """A pod that is deleted as soon as it was made does not stay for its grace period: Python takes its time to begin,
    torch seconds to import."""
    # Without the operator's environment the agent exits with 2, once it is imported: 143 means that it was stopped.
    program = "from llmtrain_trainer.agent import main, start; start.main()"
    command = [*AS_IN_A_POD, "-c", program]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PYTHONPATH}) as parent:
        first = only_child(parent.pid)
        only_child(first)  # the agent, as the kernel made it: from now on the first process passes signals on
        time.sleep(pause)
        os.kill(first, signal.SIGTERM)
        assert parent.wait(20) == 143


def failure_of(director, uid, number):
    report = director.reports[uid]
    return report.state == "joining" and report.failure and report.failure.round == number


def only_child(pid):
    """The process that `pid` begins, as soon as it is there."""
    deadline = time.monotonic() + 20
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return int(found[0])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def entry_points(folder):
    """An installed llmtrain, as torchrun looks for it, for environments where it is only on the path."""
    import tomllib

    handlers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torchrun.handlers"]
    info = folder / "site" / "llmtrain_entry-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmtrain-entry\nVersion: 0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in handlers.items())
    (info / "entry_points.txt").write_text(f"[torchrun.handlers]\n{lines}\n")
    path = [str(folder / "site"), *(str(ROOT / part) for part in ("operator", "trainer_image", "."))]
    return {"PYTHONPATH": os.pathsep.join(path)}


async def exists(path, within=60):
    async with asyncio.timeout(within):
        while not path.exists():  # noqa: ASYNC110 - a file of another process has no event
            await asyncio.sleep(0.02)


async def printed(director, uid, text, within=120):
    try:
        async with asyncio.timeout(within):
            while text not in director.log(uid).read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{uid} never printed {text!r}:\n{director.log(uid).read_text()[-4000:]}") from None
