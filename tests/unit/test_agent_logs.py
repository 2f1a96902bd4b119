import subprocess

import pytest

from llmtrain_trainer.agent.logs import ERROR_FILE, RankLogs


@pytest.fixture
def logs(tmp_path):
    logs = RankLogs(tmp_path)
    yield logs
    logs.finish()


def work(path, *lines):
    """A worker that writes to its pipe and ends."""
    with open(path, "w") as out:  # noqa: PTH123 - as torch opens it
        subprocess.run(["cat"], input="".join(lines).encode(), stdout=out, check=True)


def test_each_line_carries_its_rank(logs, capfdbinary):
    """Output of all workers comes out by lines, whole, and also when a worker did not end its last one."""
    envs = {0: {"RANK": "4"}, 1: {"RANK": "5"}}
    destinations = logs.reify(envs)
    work(destinations.stdouts[0], "one\ntwo\n", "10%\r20%\r\n", "end")
    work(destinations.stderrs[1], "warning\n")
    logs.finish()
    out, err = capfdbinary.readouterr()
    assert out == b"[rank 4] one\n[rank 4] two\n[rank 4] 10%\n[rank 4] 20%\n[rank 4] end\n"
    assert err == b"[rank 5] warning\n"
    assert logs.tail(1) == "warning"
    assert envs[0][ERROR_FILE] == str(logs.error_file(0))


def test_only_the_last_lines_are_kept(logs, capfdbinary):
    """A failure's report gets thirty lines of stderr, however much there was; all of it was passed on."""
    destinations = logs.reify({0: {"RANK": "0"}})
    work(destinations.stderrs[0], *(f"line {i}\n" for i in range(20_000)))
    logs.finish()
    assert logs.tail(0).splitlines() == [f"line {i}" for i in range(19_970, 20_000)]
    assert capfdbinary.readouterr().err.count(b"\n") == 20_000


def test_a_new_round_starts_afresh(logs, tmp_path):
    """Pipes and error files of the former round are gone, whoever still holds them."""
    logs.reify({0: {"RANK": "0"}})
    logs.error_file(0).write_text("old")
    logs.reify({0: {"RANK": "0"}})
    assert not logs.error_file(0).exists()
    assert len(list(tmp_path.iterdir())) == 1
