"""A loss that has left its course, among all the ways in which one that has not may look."""

import math
import random

import pytest

from llmtrain_trainer.spikes import ENOUGH, LONG, SHARP, WINDOW, Spikes


def called_at(losses, watch=None):
    """The step, from 0, at which it is called; None: it is not."""
    watch = watch or Spikes()
    return next((step for step, loss in enumerate(losses) if watch.look(loss)), None)


def noisy(seed, level, sigma, steps=3000):
    chance = random.Random(seed)
    return [chance.gauss(level(step), sigma) for step in range(steps)]


def with_outliers(seed, share, times):
    chance = random.Random(seed)
    return [loss * (times if chance.random() < share else 1.0) for loss in noisy(seed, lambda _: 2.5, 0.1)]


def falling(step):
    return 2.0 + 9.0 * math.exp(-step / 60)


def restarting(step):
    """Every 500 steps the learning rate is back at its peak: the loss jumps by half and falls again."""
    return 2.0 + 1.0 * math.exp(-(step % 500) / 80)


def warming_up(step):
    """A fine-tuned model that its first, too large updates set back for a while."""
    return 1.5 + 1.2 * math.exp(-(((step - 60) / 20) ** 2))


HEALTHY = {
    "flat": lambda seed: noisy(seed, lambda _: 2.5, 0.0),
    "noise": lambda seed: noisy(seed, lambda _: 2.5, 0.5),
    "small": lambda seed: noisy(seed, lambda _: 0.05, 0.02),
    "outliers-twice": lambda seed: with_outliers(seed, 0.2, 2.0),
    "outliers-fivefold": lambda seed: with_outliers(seed, 0.01, 5.0),
    "fall": lambda seed: noisy(seed, falling, 0.2),
    "fall-slowly": lambda seed: noisy(seed, lambda step: 11.0 - 0.003 * step, 0.05),
    "warm-restarts": lambda seed: noisy(seed, restarting, 0.02),
    "setback": lambda seed: noisy(seed, warming_up, 0.1),
    "rises-slowly": lambda seed: noisy(seed, lambda step: 2.0 + 0.001 * step, 0.05),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_healthy_curve_is_called(name):
    """Over 12,000 steps of each kind."""
    assert [called_at(HEALTHY[name](seed)) for seed in range(4)] == [None] * 4


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("up", "steps"), [(9.0, SHARP), (6.0, LONG)], ids=["sharp", "long"])
def test_a_loss_that_rises_and_stays_up_is_called(sigma, up, steps):
    """The higher, the sooner; at the same step by everybody."""
    curve = noisy(1, lambda step: up if step >= 500 else 2.2, sigma)
    assert called_at(curve) == 500 + steps - 1


def test_nothing_is_judged_before_there_is_a_yardstick():
    """The first losses of a run are anything."""
    assert called_at([2.0] * (ENOUGH - 1) + [9.0] * SHARP) is None
    assert called_at([2.0] * ENOUGH + [9.0] * SHARP) == ENOUGH + SHARP - 1


def test_a_bad_batch_or_two_are_passed_over_and_do_not_move_the_yardstick():
    """However high, and however often: the steps between them are as ever."""
    watch = Spikes()
    assert called_at(([2.0] * 40 + [11.0] * (SHARP - 1)) * 20, watch) is None
    assert set(watch.recent) == {2.0}
    assert called_at([11.0], watch) == 0, "the third in a row"


@pytest.mark.parametrize("cut", range(500, 503))
def test_a_restored_run_judges_as_if_it_had_not_been_interrupted(cut):
    """From what was kept, at any step."""
    curve = noisy(3, lambda step: 9.0 if step >= 500 else 2.2, 0.1)
    watch = Spikes()
    assert called_at(curve[:cut], watch) is None
    assert len(watch.recent) == WINDOW
    assert called_at(curve[cut:], Spikes(watch.recent, watch.risen)) == 502 - cut
