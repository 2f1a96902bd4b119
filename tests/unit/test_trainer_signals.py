import os
import signal

import pytest

from llmtrain_trainer.signals import Wishes


@pytest.mark.parametrize(
    ("number", "stop", "leave"), [(signal.SIGTERM, True, False), (signal.SIGUSR1, False, True)], ids=["stop", "leave"]
)
def test_a_signal_becomes_a_wish_for_the_next_boundary(number, stop, leave):
    """It interrupts nothing, and stays."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        wishes = Wishes()
        wishes.listen()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert (wishes.stop, wishes.leave) == (stop, leave)
