import json
import os

import pytest

from llmtrain_operator.contract import names
from llmtrain_operator.contract.wire import Samples
from llmtrain_trainer.agent.failures import describe, first_to_fail

TRACEBACK = "Traceback (most recent call last):\n  ...\nValueError: bad column\n"


def error_file(message="NaN", **extra):
    return json.dumps({"message": {"message": message, "extraInfo": {"py_callstack": "where", **extra}}})


@pytest.mark.parametrize(
    ("exit_code", "text", "stderr", "expected"),
    [
        pytest.param(
            1,
            error_file(reason="NonFiniteLoss", step=7),
            "",
            {"reason": "NonFiniteLoss", "message": "NaN", "step": 7, "traceback": "where", "exit_code": 1},
            id="our trainer's error file",
        ),
        pytest.param(
            1, error_file(samples={"first": 8, "end": 16}), "", {"samples": Samples(8, 16)}, id="samples that it names"
        ),
        pytest.param(1, error_file(samples=[8, 16]), "", {"samples": None}, id="samples of another shape"),
        pytest.param(
            1, error_file(timestamp="1"), "", {"reason": "UserError", "message": "NaN", "step": 3}, id="@record's"
        ),
        pytest.param(1, '{"message": "plain"}', "", {"message": "plain"}, id="the short form"),
        pytest.param(1, error_file(reason="Nonsense"), "", {"reason": "UserError"}, id="a reason that is not ours"),
        pytest.param(
            1,
            '{"message": {"mess',
            TRACEBACK,
            {"message": "exit code 1: ValueError: bad column", "traceback": TRACEBACK},
            id="a cut-off error file",
        ),
        pytest.param(3, "", "", {"message": "exit code 3 without a word on stderr"}, id="silence"),
        pytest.param(
            -9,
            "",
            "some warning",
            {"reason": "Killed", "signal": 9, "exit_code": None, "message": "killed by signal 9 (SIGKILL)"},
            id="a signal",
        ),
    ],
)
def test_a_failure_is_told_in_the_best_words_there_are(exit_code, text, stderr, expected):
    """Error file first, then exit status and last words."""
    failure = describe(exit_code, text, stderr, round_number=2, rank=5, step=3)
    assert (failure.round, failure.rank) == (2, 5)
    assert {key: getattr(failure, key) for key in expected} == expected
    assert failure.reason in vars(names).values()


def test_the_first_error_file_tells_whom_to_blame(tmp_path):
    """Of several failed workers the earliest error counts, then a signal, then the lowest rank."""
    files = {rank: tmp_path / str(rank) for rank in range(4)}
    for rank, when in ((2, 100), (3, 50)):
        files[rank].write_text("{}")
        os.utime(files[rank], (when, when))
    assert first_to_fail({0: 1, 1: -9, 2: 1, 3: 1}, files) == 3
    assert first_to_fail({0: 1, 1: -9}, files) == 1
    assert first_to_fail({1: 1, 0: 1}, files) == 0
