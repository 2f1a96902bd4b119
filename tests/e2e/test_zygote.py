"""Workers forked from a real zygote: what they are, how they end, and what happens without it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from llmtrain_trainer import zygote as process
from llmtrain_trainer.agent.forking import forked_from
from llmtrain_trainer.agent.zygote import NotForked, Zygote

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", "tests/support/scripts"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PATIENCE = 60.0


def started(*program):
    zygote = Zygote({**ENVIRONMENT, "ONLY_THE_ZYGOTES": "1"}, *program)
    deadline = time.monotonic() + PATIENCE
    while not zygote.ready and not zygote.gone and time.monotonic() < deadline:
        zygote.listen(1.0)
    assert zygote.ready
    return zygote


@pytest.fixture(scope="module")
def zygote():
    made = started("-m", "forked")
    yield made
    made.close()


class Output:
    """A worker's stdout and stderr."""

    def __init__(self, folder, name="worker"):
        self.paths = folder / f"{name}.out", folder / f"{name}.err"
        self.files = [path.open("w") for path in self.paths]

    def fds(self):
        return self.files[0].fileno(), self.files[1].fileno()

    def until(self, text):
        deadline = time.monotonic() + PATIENCE
        while text not in self.paths[0].read_text():
            assert time.monotonic() < deadline, [path.read_text() for path in self.paths]
            time.sleep(0.01)

    def said(self):
        return json.loads(self.paths[0].read_text().splitlines()[0])


def test_a_worker_is_what_a_new_process_would_be_but_for_its_imports(zygote, tmp_path):
    """Its own arguments, environment, output, group, random numbers; the libraries are there."""
    outputs = [Output(tmp_path, str(rank)) for rank in range(2)]
    workers = [
        zygote.fork(["exit", "7"], {**ENVIRONMENT, "RANK": str(rank)}, output.fds())
        for rank, output in enumerate(outputs)
    ]
    assert [worker.wait(PATIENCE) for worker in workers] == [7, 7]
    assert [worker.poll() for worker in workers] == [7, 7]
    first, second = (output.said() for output in outputs)
    assert first["argv"] == ["exit", "7"]
    assert (first["rank"], second["rank"], first["left"]) == ("0", "1", None)
    assert first["command"] == [sys.executable, "-u", "-m", "forked", "exit", "7"]
    assert first["name"] == "__main__"
    assert first["group"]
    assert first["interrupt"]
    assert first["random"] != second["random"]
    assert first["modules"] == ["deepspeed", "torch._dynamo"]
    assert (first["sum"], first["threads"]) == (300.0**3, 1)
    assert outputs[0].paths[1].read_text() == "to stderr\n"


AGENT = """
import os, sys
import torch
from llmtrain_trainer.agent.zygote import Zygote
sys.agents_own = "seen"
secret = open("/dev/zero")
made = Zygote({**os.environ, "ONLY_THE_ZYGOTES": "1"}, "-m", "forked", of_this=True)
while not made.ready and not made.gone:
    made.listen(1.0)
assert os.getsid(made._process.pid) == made._process.pid
code = made.fork(sys.argv[1:], {**os.environ, "RANK": "5"}, (1, 2)).wait(60)
made.close()
made.close()
sys.exit(code)
"""


@pytest.mark.parametrize(("unbuffered", "agents"), [(["-u"], "seen"), ([], None)])
def test_a_zygote_that_is_forked_from_the_agent_is_like_one_that_was_started(tmp_path, unbuffered, agents):
    """But that it has what the agent imported. Not where output would be buffered: then it is started."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    agent = subprocess.run(
        [sys.executable, *unbuffered, "-c", AGENT, "exit", "7"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert agent.returncode == 7, agent.stderr
    _, line = agent.stdout.splitlines()  # the zygote imports what is run here
    said = json.loads(line)
    assert said["agents"] == agents
    assert (said["rank"], said["left"], said["name"], said["interrupt"]) == ("5", None, "__main__", True)
    assert said["command"] == [sys.executable, "-u", "-m", "forked", "exit", "7"]
    assert said["path"] == str(tmp_path)
    assert not [name for name in said["open"] if "zero" in name or "socket" in name]
    assert said["modules"] == ["deepspeed", "torch._dynamo"]
    assert agent.stderr == 2 * "to stderr\n"


def test_a_long_command_can_be_read_too(zygote, tmp_path):
    """As one string: `ps` and `pgrep -f` show it like any other."""
    output = Output(tmp_path)
    assert zygote.fork(["x" * 1000], ENVIRONMENT, output.fds()).wait(PATIENCE) == 0
    assert output.said()["command"] == [f"{sys.executable} -u -m forked {'x' * 1000}"]


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["raise"], 1)])
def test_it_ends_as_python_ends(zygote, tmp_path, arguments, code):
    """Also with an exception, whose traceback is on its own stderr."""
    output = Output(tmp_path)
    assert zygote.fork(arguments, ENVIRONMENT, output.fds()).wait(PATIENCE) == code
    assert ("ValueError: its own words" in output.paths[1].read_text()) == bool(code)


SCRIPT = """
import json, pickle, sys
early = "torch" in sys.modules

import torch
import helper

class Own: ...

if sys.argv[1:] == ["raise"]:
    raise ValueError("its own words")
own = pickle.loads(pickle.dumps(Own())).__class__ is Own
print(json.dumps([early, __name__, __file__, sys.argv, sys.path[0], helper.__file__, own]))
"""


def test_a_script_is_what_python_would_make_of_it(tmp_path):
    """But that torch is there already. A traceback tells of the script alone."""
    script, helper = tmp_path / "script.py", tmp_path / "helper.py"
    script.write_text(SCRIPT)
    helper.write_text("")
    made = started(str(script))
    done, failed = Output(tmp_path, "done"), Output(tmp_path, "failed")
    assert made.fork(["a", "b"], ENVIRONMENT, done.fds()).wait(PATIENCE) == 0
    assert made.fork(["raise"], ENVIRONMENT, failed.fds()).wait(PATIENCE) == 1
    made.close()
    path = str(script)
    assert done.said() == [True, "__main__", path, [path, "a", "b"], str(tmp_path), str(helper), True]
    told = failed.paths[1].read_text().splitlines()
    assert (told[0], told[-1]) == ("Traceback (most recent call last):", "ValueError: its own words")
    assert [line for line in told if "File" in line] == [f'  File "{path}", line 11, in <module>']


def test_signals_reach_it_and_its_end_is_told_by_their_numbers(zygote, tmp_path):
    """The group is there as soon as the number is known; a wait for one that lives comes to an end."""
    output = Output(tmp_path)
    worker = zygote.fork(["sleep"], ENVIRONMENT, output.fds())
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.05)
    assert worker.poll() is None
    os.killpg(worker.pid, 0)
    output.until("asleep")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == -signal.SIGTERM
    worker.send_signal(signal.SIGTERM)  # gone already: nothing happens


def test_a_fork_costs_no_imports(zygote, tmp_path):
    """A generous limit: a new process takes seconds to import torch alone."""
    began = time.monotonic()
    output = Output(tmp_path)
    worker = zygote.fork(["exit", "0"], ENVIRONMENT, output.fds())
    output.until("argv")
    took = time.monotonic() - began
    assert worker.wait(PATIENCE) == 0
    cold = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, deepspeed"], env=ENVIRONMENT, check=True, capture_output=True)
    assert took < (time.monotonic() - cold) / 2


def test_workers_die_with_the_zygote_and_it_says_so(tmp_path):
    """Nobody else is their parent; their agent must not believe that they train on."""
    other = started("-m", "forked")
    output = Output(tmp_path)
    worker = other.fork(["sleep"], ENVIRONMENT, output.fds())
    output.until("asleep")
    os.kill(other._process.pid, signal.SIGKILL)
    assert worker.wait(PATIENCE) == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{worker.pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(NotForked, match="gone"):
        other.fork([], ENVIRONMENT, output.fds())
    other.close()
    successor = other.again()
    assert successor is not None, "it was ready once, so the next will be"
    successor.close()


def test_the_zygote_dies_with_its_agent():
    """Also if that gets a SIGKILL; nothing is left that holds a pod's memory."""
    program = (
        "import os, time; from llmtrain_trainer.agent.zygote import Zygote; z = Zygote(os.environ, '-m', 'forked')\n"
        "print(z._process.pid, flush=True); time.sleep(600)"
    )
    agent = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert agent.stdout
    pid = int(agent.stdout.readline())
    agent.kill()
    agent.wait()
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/fd").exists() and any(Path(f"/proc/{pid}/fd").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_that_cannot_import_is_gone_and_not_waited_for():
    """A user's image may lack something: the agent starts its workers anew, and these say what is missing."""
    broken = Zygote(ENVIRONMENT, "-m", "no.such.module")
    deadline = time.monotonic() + PATIENCE
    while not broken.gone and time.monotonic() < deadline:
        broken.listen(1.0)
    assert broken.gone
    assert not broken.ready
    assert broken.again() is None
    broken.close()


def test_it_does_not_fork_where_that_is_not_safe(monkeypatch):
    """Locks that another thread holds are held for ever in the child; CUDA does not live through a fork."""
    import threading

    import torch

    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert "threads run in it" in process.unfit()
    stop.set()
    thread.join()
    monkeypatch.setattr(process.Path, "iterdir", lambda _: iter(["main"]))
    assert process.unfit() == ""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert "CUDA" in process.unfit()


def handler(zygote, folder, arguments):
    """As torch's elastic agent starts a worker."""
    prefix = (sys.executable, "-u", "-m", "forked")
    with forked_from(zygote, prefix):
        return api.get_subprocess_handler(
            entrypoint=prefix[0],
            args=(*prefix[1:], *arguments),
            env={"PYTHONPATH": PATHS, "RANK": "3"},
            stdout=str(folder / "worker.out"),
            stderr=str(folder / "worker.err"),
            local_rank_id=0,
            numa_options=None,
        )


def test_torchs_agent_gets_a_forked_worker(zygote, tmp_path):
    """Through the function that it starts processes with, which is its own again afterwards."""
    original = api.get_subprocess_handler
    started_one = handler(zygote, tmp_path, ["exit", "4"])
    assert api.get_subprocess_handler is original
    assert started_one.proc.wait(PATIENCE) == 4
    assert zygote.code(started_one.proc.pid) == 4
    started_one.close = None  # what it would do is to kill


def test_a_worker_that_ends_before_it_is_signalled_is_no_error(zygote, tmp_path):
    """torch looks, finds it alive, and signals its group, which the zygote may have buried meanwhile."""
    started_one = handler(zygote, tmp_path, ["exit", "0"])
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{started_one.proc.pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert started_one.proc.returncode is None, "nobody has listened yet"
    started_one.close(signal.SIGKILL)
    assert started_one._stdout.closed
    assert started_one.proc.wait(PATIENCE) == 0


def test_a_process_number_that_is_used_again_is_another_workers(zygote):
    """Within a job's life the kernel comes round."""
    zygote._codes[4711] = 1
    zygote._heard = bytearray(b'{"started": 4711}\n')
    zygote._understand()
    assert zygote._answers.pop() == {"started": 4711}
    assert zygote.code(4711) is None


def test_without_a_zygote_torchs_agent_gets_a_new_process(tmp_path, caplog):
    """And the log says why it took so long."""
    ended = Zygote(ENVIRONMENT, "-m", "forked")
    ended.close()
    started_one = handler(ended, tmp_path, ["exit", "4"])
    assert isinstance(started_one, SubprocessHandler)
    assert isinstance(started_one.proc, subprocess.Popen)
    assert started_one.proc.wait(PATIENCE) == 4
    assert "started anew" in caplog.text
