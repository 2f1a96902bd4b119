"""Which snapshot may be overwritten: whatever is acknowledged when, there is always a common step to go back to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_trainer.flash.pins import Pins, victim


@pytest.mark.parametrize(
    ("held", "pins", "reading", "chosen"),
    [
        ([None, None, None], Pins(), None, 0),
        ([1, None, None], Pins(None, 1), None, 1),
        ([1, 2, None], Pins(1, 2), None, 2),
        ([1, 2, 3], Pins(1, 2), None, 2),
        ([4, 2, 3], Pins(3, 4), None, 1),
        ([1, 2, 3, 4], Pins(1, 3), 2, 3),
        ([5], Pins(None, 5), None, None),
        ([], Pins(), None, None),
    ],
    ids=["fresh", "second", "third", "newest-goes", "oldest-goes", "being-read", "nothing-free", "no-slots"],
)
def test_what_is_given_up(held, pins, reading, chosen):
    """An empty slot, else the oldest that is neither committed nor on its way there nor being read."""
    assert victim(held, pins, reading) == chosen


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(3, 5))
def test_the_committed_step_is_never_overwritten(events, slots):
    """Two workers that do the same at each boundary, one of them killed in the midst of any copy, have a step in
    common that is at least the committed one."""
    held, pins = [None] * slots, Pins()
    for step, (nominate, acknowledged) in enumerate(events, 1):
        if acknowledged and pins.candidate is not None:
            pins = pins.acknowledged()
        number = victim(held, pins)
        assert number is not None
        torn = {each for index, each in enumerate(held) if index != number and each is not None}
        held[number] = step
        whole = set(held) - {None}
        if pins.committed is not None:
            assert max(torn & whole) >= pins.committed
        pins = pins.taken(step, nominate=nominate)
        if pins.candidate is not None:
            assert pins.candidate in whole


def test_a_candidate_stays_until_it_is_safe():
    """A newer snapshot does not take its place: its copy would be begun again and again, and never end."""
    pins = Pins().taken(3, nominate=True).taken(4, nominate=True)
    assert pins == Pins(None, 3)
    assert pins.acknowledged() == Pins(3, None)
    assert Pins(3, None).acknowledged() == Pins(3, None)
