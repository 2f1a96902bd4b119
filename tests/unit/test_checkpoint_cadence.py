import pytest

from llmtrain_trainer.checkpoint.cadence import Cadence, History, Votes, decide, due

FRESH = History(step=0, committed=False, at=100.0)
SAVED = FRESH.saved(40, at=100.0)
FAILED = SAVED.failed(now=200.0)


@pytest.mark.parametrize(
    ("cadence", "history", "step", "now", "hurry", "expected"),
    [
        pytest.param(Cadence(600), FRESH, 5, 699, False, False, id="not yet"),
        pytest.param(Cadence(600), FRESH, 5, 700, False, True, id="time is up"),
        pytest.param(Cadence(600, 10), FRESH, 9, 101, False, False, id="too few steps"),
        pytest.param(Cadence(600, 10), FRESH, 10, 101, False, True, id="a multiple of everySteps"),
        pytest.param(Cadence(600, 10), SAVED, 49, 101, False, False, id="too few steps since the last"),
        pytest.param(Cadence(600, 10), SAVED, 53, 101, False, True, id="one that was put off is made up for"),
        pytest.param(Cadence(1, 1), SAVED, 40, 999, False, False, id="a saved step is not written again"),
        pytest.param(Cadence(1, 1), SAVED, 40, 999, True, False, id="not even in a hurry"),
        pytest.param(Cadence(600), History(40, False, 100), 40, 101, True, True, id="saved elsewhere, not here"),
        pytest.param(Cadence(600), SAVED, 41, 101, True, True, id="in a hurry"),
        pytest.param(Cadence(600, 1), FAILED, 41, 209, False, False, id="a failing storage gets a pause"),
        pytest.param(Cadence(600), FAILED, 41, 210, False, True, id="which the cadence does not prolong"),
        pytest.param(Cadence(1), FAILED.failed(220).failed(250), 41, 289, False, False, id="longer each time"),
        pytest.param(Cadence(1), FAILED.failed(220).failed(250), 41, 290, False, True, id="40 s after the third"),
        pytest.param(Cadence(1), FAILED.failed(220).failed(250), 41, 260, True, True, id="in a hurry always 10 s"),
        pytest.param(Cadence(600), FAILED.saved(41, 300.0), 42, 301, False, False, id="a success ends that"),
    ],
)
def test_a_checkpoint_is_due_by_time_by_steps_or_after_a_failure(cadence, history, step, now, hurry, expected):
    """And never for a step that is saved."""
    is_due, why = due(cadence, history, step, now, hurry=hurry)
    assert is_due is expected
    assert why


def test_the_pause_after_a_failure_has_a_bound():
    """However long the storage is away, it is asked every minute."""
    history = SAVED
    for _ in range(20):
        history = history.failed(1000.0)
    assert due(Cadence(600), history, 50, 1060.0, hurry=False)[0]


@pytest.mark.parametrize(
    ("votes", "action"),
    [
        pytest.param(Votes(), "train", id="nothing"),
        pytest.param(Votes(due=1), "save", id="due"),
        pytest.param(Votes(due=1, writing=2), "put off", id="two ranks still write"),
        pytest.param(Votes(writing=2), "train", id="writing goes on beside training"),
        pytest.param(Votes(stop=1), "stop", id="one worker was stopped"),
        pytest.param(Votes(stop=1, leave=3, failing=1), "stop", id="stopped, whatever the storage does"),
        pytest.param(Votes(leave=3), "leave", id="asked to leave"),
        pytest.param(Votes(leave=3, writing=1), "train", id="nobody stands still for a volume that may hang"),
        pytest.param(Votes(leave=3, writing=1, due=1), "put off", id="nor begins another save"),
        pytest.param(Votes(leave=3, failing=1), "train", id="nobody leaves what cannot be saved"),
        pytest.param(Votes(leave=3, failing=1, due=1), "save", id="but it is tried again"),
    ],
)
def test_all_workers_decide_alike(votes, action):
    """From the sum of their votes."""
    decided, why = decide(Votes.of(votes.values()))
    assert decided == action
    assert why
