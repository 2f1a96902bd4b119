import pytest

from llmtrain_operator.contract.wire import Check, Directive, Member, Pace, Progress, Round
from llmtrain_trainer.agent.orders import decide, newest, paces

ME, OTHER = (Member(i, 0, f"pod-{i}", uid, "host", 1) for i, uid in enumerate(("me", "other")))


def run(number, *members):
    return Directive("run", "go", Round(number, members, 1))


@pytest.mark.parametrize(
    ("directive", "current", "in_round", "kind"),
    [
        pytest.param(None, 3, True, "stay", id="nobody said anything"),
        pytest.param(run(3, ME), 3, True, "stay", id="the round it is in"),
        pytest.param(run(2, ME), 3, True, "stay", id="an older round is fenced off"),
        pytest.param(run(4, ME), 3, True, "leave", id="a newer round: leave first"),
        pytest.param(run(4, OTHER), 3, True, "leave", id="a newer round without it"),
        pytest.param(run(4, ME), 3, False, "enter", id="ready for a newer round"),
        pytest.param(run(4, OTHER), 3, False, "stay", id="not named"),
        pytest.param(run(3, ME), 3, False, "stay", id="its workers failed in this round: never again"),
        pytest.param(run(2, ME), 3, False, "stay", id="an older round is fenced off while joining"),
        pytest.param(Directive("run", "broken"), 3, True, "stay", id="no round given"),
        pytest.param(Directive("wait", "too few"), 3, True, "leave", id="wait while in a round"),
        pytest.param(Directive("wait", "too few"), 3, False, "stay", id="wait while joining"),
        pytest.param(Directive("save", "three members"), 3, True, "save", id="save while in a round"),
        pytest.param(Directive("save", "three members"), 3, False, "stay", id="save while joining"),
        pytest.param(Directive("stop", "suspended"), 3, True, "stop", id="stop"),
    ],
)
def test_a_directive_means_one_thing_in_each_state(directive, current, in_round, kind):
    """Only a newer round moves a member, and it leaves the old one before it enters."""
    order = decide(directive, "me", current, in_round=in_round)
    assert order.kind == kind
    assert order.reason
    assert (order.round is not None) == (kind == "enter")


def test_the_newest_pace_of_each_worker_is_kept():
    """In order of rank, so that equal reports are equal; a worker that has none yet changes nothing."""
    known = paces(paces((), Pace(3, 0.5, 1.0)), Pace(2, 0.4, 1.0))
    assert known == (Pace(2, 0.4, 1.0), Pace(3, 0.5, 1.0))
    assert paces(known, Pace(3, 0.6, 1.0)) == (Pace(2, 0.4, 1.0), Pace(3, 0.6, 1.0))
    assert paces(known, None) == known


@pytest.mark.parametrize(
    ("attempt", "measured", "in_round", "kind"),
    [
        pytest.param(1, 0, False, "measure", id="the first check"),
        pytest.param(2, 1, False, "measure", id="another one"),
        pytest.param(1, 1, False, "stay", id="it is done"),
        pytest.param(1, None, False, "stay", id="it makes none"),
        pytest.param(1, 0, True, "leave", id="while in a round: leave first"),
    ],
)
def test_each_check_is_made_once_and_between_rounds(attempt, measured, in_round, kind):
    """The directive stays the same until the operator has heard of the result."""
    directive = Directive("wait", "not in a round yet", check=Check(attempt))
    assert decide(directive, "me", 0, in_round=in_round, measured=measured).kind == kind


@pytest.mark.parametrize(
    ("kept", "new", "takes_new"),
    [
        pytest.param(None, Progress(1, 1), True, id="the first"),
        pytest.param(Progress(0, 1, step=1, loss=1.0), Progress(0, 1, step=2, loss=0.9), True, id="newer of same rank"),
        pytest.param(Progress(0, 1, loss=1.0), Progress(1, 1, loss=1.0), False, id="a higher rank"),
        pytest.param(Progress(1, 1, loss=1.0), Progress(0, 1, loss=1.0), True, id="a lower rank"),
        pytest.param(Progress(1, 1, loss=1.0), Progress(0, 1), False, id="a lower rank without a loss"),
        pytest.param(Progress(0, 1), Progress(1, 1, loss=1.0), True, id="the first loss"),
        pytest.param(Progress(0, 1, loss=1.0), Progress(1, 2), True, id="a later round"),
    ],
)
def test_the_lowest_rank_that_knows_the_loss_is_reported(kept, new, takes_new):
    """One worker's figures stand for the member."""
    assert newest(kept, new) is (new if takes_new else kept)
