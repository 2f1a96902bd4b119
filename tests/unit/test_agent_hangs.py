"""When a worker hangs, and when it is merely slow."""

import random

import pytest

from llmtrain_operator.contract.wire import Progress
from llmtrain_trainer.agent.hangs import HangWatch, Sample
from llmtrain_trainer.agent.sampling import main_stack

LOCKED = Sample('  File "threading.py", line 327 in wait\n  File "train.py", line 88 in step', 1000)
COLLECTIVE = Sample(
    '  File "/x/torch/distributed/distributed_c10d.py", line 9 in all_reduce\n  File "train.py", line 9', 7
)


class Life:
    """A worker under watch, on a clock of its own; `look` is what a look finds."""

    def __init__(self, look=lambda: LOCKED):
        self.watch, self.look, self.now, self.step = HangWatch(), look, 0.0, 0

    def steps(self, *seconds, phase="training"):
        """Steps that take so long; the verdict on the way, if there was one."""
        for each in seconds:
            if hang := self.wait(each):
                return hang
            self.step += 1
            self.watch.hear(Progress(0, 1, phase, self.step, step_seconds=each), self.now)
        return None

    def wait(self, seconds):
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            if self.watch.due(self.now) and (hang := self.watch.judge(self.look(), self.now)):
                return hang
        return None


@pytest.mark.parametrize(("step", "after"), [(0.1, 2.0), (1.0, 6.0)])
def test_a_worker_at_the_same_place_without_computing_hangs(step, after):
    """After two seconds, or six steps if these are longer; the place is named."""
    life = Life()
    life.steps(*[step] * 10)
    began = life.now
    hang = life.wait(60)
    assert (hang.where, hang.waits) == ('File "threading.py", line 327 in wait', False)
    assert after <= life.now - began <= after + 0.2


@pytest.mark.parametrize("kind", ["computes", "moves"])
def test_a_worker_that_does_something_is_slow(kind):
    """It computes, or is at another place each time: nothing is certain."""
    ticks = iter(range(0, 10**9, 50))

    def look():
        number = next(ticks)
        return Sample(LOCKED.stack, number) if kind == "computes" else Sample(f"line {number}", 0)

    life = Life(look)
    life.steps(*[0.1] * 10)
    assert life.wait(300) is None


@pytest.mark.parametrize("stack", [LOCKED.stack, COLLECTIVE.stack])
def test_one_that_gets_no_processor_is_not_to_blame(stack):
    """It stays where it is for want of time to compute. Once it gets that and does nothing with it, it hangs; a busy
    machine that merely delays its answers protects nobody."""
    starved = 0.0

    def look():
        nonlocal starved
        starved += 0.5 if life.now < 100 else 0.1
        return Sample(stack, 0, starved)

    life = Life(look)
    life.steps(*[0.1] * 10)
    assert life.wait(90) is None
    assert life.wait(60)


def test_one_that_computed_and_then_locked_up_is_found_all_the_same():
    """Every look is compared with the one before."""
    busy = iter([Sample(LOCKED.stack, ticks) for ticks in (0, 100, 200)])
    life = Life(lambda: next(busy, LOCKED))
    life.steps(*[0.1] * 10)
    assert life.wait(20)


@pytest.mark.parametrize(
    "stack",
    [
        COLLECTIVE.stack,
        '  File "/x/deepspeed/utils/nvtx.py", line 20 in wrapped\n'
        '  File "/x/deepspeed/runtime/zero/partition_parameters.py", line 720 in wait',
        "",
    ],
    ids=["all-reduce", "ZeRO-3's gather", "a call that nothing interrupts"],
)
@pytest.mark.parametrize("busily", [False, True])
def test_one_that_waits_for_others_is_not_the_culprit(stack, busily):
    """The culprit's own agent is given time; if nobody is found, the wait is ended, also one that computes."""
    ticks = iter(range(0, 10**9, 50 * busily or 1)) if busily else iter([0] * 10**4)
    life = Life(lambda: Sample(stack, next(ticks)))
    life.steps(*[0.1] * 10)
    assert life.wait(29) is None
    hang = life.wait(3)
    assert hang.waits
    assert hang.where


def test_storage_has_its_moments():
    """A worker that waits for its next batch is given ten seconds."""
    batch = Sample('  File "threading.py", line 1 in wait\n  File "/x/llmtrain_trainer/data/prefetching.py", line 9', 0)
    life = Life(lambda: batch)
    life.steps(*[0.1] * 10)
    assert life.wait(9) is None
    assert not life.wait(3).waits


@pytest.mark.parametrize("phase", ["evaluating", "saving", "exporting", "restoring"])
def test_other_phases_take_as_long_as_they_take(phase):
    """And the step after them is watched again only when it is done."""
    life = Life()
    life.steps(*[0.1] * 10)
    life.watch.hear(Progress(0, 1, phase, life.step), life.now)
    assert life.wait(3600) is None
    life.steps(0.1)
    assert life.wait(10)


def test_first_steps_teach():
    """Compilation and autotuning make them long, and nothing is known yet."""
    life = Life()
    assert life.steps(120.0, 30.0, 0.1, 0.1) is None


def test_no_false_alarm_in_ten_thousand_noisy_steps():
    """2x and 5x outliers, evaluations and saves in between, and looks that all find the same: the worst case."""
    dice = random.Random(7)
    for typical in (0.02, 0.3, 1.0):
        life = Life()
        for number in range(3_400):
            factor = dice.choices((1, 2, 5), (90, 7, 3))[0]
            assert life.steps(typical * factor * dice.uniform(0.7, 1.1)) is None
            if number % 100 == 99:
                life.watch.hear(Progress(0, 1, dice.choice(("evaluating", "saving")), life.step), life.now)
                assert life.wait(dice.uniform(1, 60)) is None
                life.watch.hear(Progress(0, 1, "training", life.step), life.now)


def test_the_main_thread_is_the_last_that_is_shown():
    """Also if another one took the signal."""
    text = (
        'Thread 0x00007f (most recent call first):\n  File "a.py", line 1 in run\n\n'
        'Current thread 0x00008f [pt_data] (most recent call first):\n  File "b.py", line 2 in wait\n'
        '  File "train.py", line 3 in <module>\n'
    )
    assert main_stack(text) == '  File "b.py", line 2 in wait\n  File "train.py", line 3 in <module>'
