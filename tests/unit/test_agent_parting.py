import pytest

from llmtrain_trainer.agent.environment import runs_reference_trainer
from llmtrain_trainer.agent.parting import Parting

OURS = Parting.begin(True, now=100.0, grace=5.0)
THEIRS = Parting.begin(False, now=100.0, grace=5.0)


@pytest.mark.parametrize(
    ("parting", "exits", "now", "over"),
    [
        pytest.param(OURS, {}, 101, False, id="not started"),
        pytest.param(OURS, {0: None, 1: None}, 10_000, False, id="ours may take its time"),
        pytest.param(OURS, {0: 143, 1: None}, 101, False, id="one has left, the other follows"),
        pytest.param(OURS, {0: 143, 1: 143}, 101, True, id="both have left"),
        pytest.param(OURS, {0: -10, 1: 143}, 101, True, id="one had nothing to save yet"),
        pytest.param(OURS, {0: 0, 1: 0}, 101, False, id="ours finished the job: that is no leaving"),
        pytest.param(OURS, {0: 143, 1: 1}, 101, False, id="one failed"),
        pytest.param(THEIRS, {0: None}, 104.9, False, id="a script has its grace"),
        pytest.param(THEIRS, {0: None}, 105, True, id="its time is up"),
        pytest.param(THEIRS, {0: -15, 1: 143}, 101, True, id="scripts died of SIGTERM, or handled it"),
        pytest.param(THEIRS, {0: 0, 1: 0}, 101, True, id="scripts that saved and exit with 0 are not done"),
        pytest.param(THEIRS, {0: 1}, 101, False, id="a script failed"),
    ],
)
def test_a_round_is_left_when_all_workers_ended_as_asked(parting, exits, now, over):
    """What is neither done nor left is a failure or still to come."""
    assert parting.over(exits, now) is over


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ({}, True),
        ({"entrypoint": None}, True),
        ({"entrypoint": {"module": "llmtrain_trainer.train"}}, True),
        ({"entrypoint": {"script": "train.py"}}, False),
        ({"entrypoint": {"module": "my.train"}}, False),
    ],
)
def test_only_the_reference_trainer_is_asked_by_sigusr1(spec, reference):
    """A script of the user's would die of it."""
    assert runs_reference_trainer(spec) is reference
