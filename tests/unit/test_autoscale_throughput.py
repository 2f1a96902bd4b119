"""What a job's own steps say of the sizes that it was not seen at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.autoscale import Sample, fit, observed
from llmtrain_operator.autoscale.throughput import KEPT_SIZES, Curve, enough, measured, sizes

SIZES = range(1, 17)


def seen(curve, *members, steps=100):
    return [Sample(n, curve(n), steps, 0.0) for n in members]


def linear(n):
    return 4.0 / n


def saturating(n):
    return 4.0 / n + 0.5


def retrograde(n):
    return 4.0 / n + 0.1 + 0.1 * (n - 1)


@pytest.mark.parametrize("truth", [linear, saturating, retrograde], ids=lambda truth: truth.__name__)
def test_three_sizes_tell_of_all_others(truth):
    """A curve of the model's own form, seen at three sizes, is known within a twentieth everywhere between them."""
    curve = fit(seen(truth, 1, 4, 16))
    assert [curve.seconds(n) for n in SIZES] == pytest.approx([truth(n) for n in SIZES], rel=0.05)


def test_one_size_gives_a_guess_that_is_near_to_linear_and_unsure():
    """A job seen at one size is taken to gain nearly in proportion, and to be the less known the farther away."""
    curve = fit(seen(linear, 2))
    assert curve.seconds(2) == pytest.approx(2.0, rel=0.01)
    assert curve.seconds(4) == pytest.approx(1.0, rel=0.1)
    assert curve.deviation(2) < 0.02 < curve.deviation(3) < curve.deviation(16)


def test_more_steps_make_it_surer():
    """The deviation of a size that is seen shrinks with its steps, and so does that of one that is not."""
    few, many = fit(seen(saturating, 1, 4, steps=3)), fit(seen(saturating, 1, 4, steps=300))
    assert many.deviation(1) < few.deviation(1)
    assert many.deviation(3) < few.deviation(3)


def test_what_was_seen_is_believed_more_than_the_form():
    """Six members that cannot share a batch better than four are predicted as they were seen."""
    samples = [*seen(linear, 1, 2, 4, 8), Sample(6, linear(4), 100, 0.0)]
    assert fit(samples).seconds(6) == pytest.approx(linear(4), rel=0.05)


def test_an_estimate_gives_the_shape_and_steps_give_the_level():
    """A prior that is off by a factor of three, and right about saturation, tells what one sample could not."""
    prior = [Sample(n, 3 * saturating(n), 1, 0.0) for n in (1, 8, 16)]
    curve = fit(seen(saturating, 2), prior)
    assert curve.seconds(16) == pytest.approx(saturating(16), rel=0.15)
    assert fit(seen(saturating, 2)).seconds(16) < 0.7 * saturating(16)


def test_nothing_is_known_of_a_job_that_was_never_seen():
    """Without samples and prior every member is worth as much as the first."""
    assert fit(()) == Curve()
    assert fit(()).speed(4) == pytest.approx(4 * fit(()).speed(1))
    assert fit(()).speed(0) == 0.0


@given(
    st.dictionaries(st.integers(1, 200), st.floats(0.01, 1000), min_size=1, max_size=12),
    st.integers(1, 1000),
    st.integers(1, 400),
)
def test_predictions_are_positive_whatever_was_seen(times, steps, n):
    """No samples, however contradictory, make a step take no time, or make the model fail."""
    curve = fit([Sample(members, seconds, steps, 0.0) for members, seconds in times.items()])
    assert curve.seconds(n) > 0
    assert curve.deviation(n) > 0


def test_older_steps_fade():
    """A job that becomes slower is known to be slower, whatever it was for long."""
    samples = ()
    for time in range(100):
        samples = observed(samples, 4, 1.0, 50, float(time))
    for time in range(100, 130):
        samples = observed(samples, 4, 2.0, 50, float(time))
    assert fit(samples).seconds(4) == pytest.approx(2.0, rel=0.1)
    assert samples[0].time == 129.0


def test_noise_is_learned():
    """Where looks differ more, more steps are asked for, and what was seen is believed less."""
    calm = noisy = ()
    for time, off in enumerate((1.0, 1.3, 0.7, 1.2, 0.8) * 4):
        calm, noisy = observed(calm, 4, 1.0, 5, float(time)), observed(noisy, 4, off, 5, float(time))
    assert enough(calm, 4) == enough((), 4) == 5
    assert enough(noisy, 4) > 50
    assert enough(noisy, 8) == enough(noisy, 4)
    assert fit(noisy).deviation(4) > 3 * fit(calm).deviation(4)


def test_few_sizes_are_kept():
    """The newest sizes are kept, in order; a size counts as measured after a few steps."""
    samples = ()
    for n in range(1, 100):
        samples = observed(samples, n, 1.0, 3, float(n))
    assert [each.members for each in samples] == list(range(100 - KEPT_SIZES, 100))
    assert not measured(samples, 99)
    assert measured(observed(samples, 99, 1.0, 3, 100.0), 99)
    assert not measured(samples, 1)


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(1, 10_000))
def test_sizes_to_look_at_are_few_and_include_the_ends(least, more, also):
    """However wide the range, about a hundred sizes are looked at, in order, with the ends and what is asked for."""
    found = sizes(least, least + more, (also,))
    assert found == tuple(sorted(set(found)))
    assert {least, least + more} <= set(found)
    assert len(found) < 130
    assert (also in found) or not least <= also <= least + more
