"""Properties of the sample order and of its split over ranks, for any world size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_trainer.elastic_data import BatchPlan, Course, SampleOrder

plans = st.builds(
    BatchPlan,
    global_batch=st.integers(1, 200),
    world_size=st.integers(1, 70),
    micro_batch=st.none() | st.integers(1, 64),
)


def positions(plan: BatchPlan, step: int, rank: int) -> list[int]:
    return [place for row in plan.samples(step, rank) for place in row if place is not None]


@given(plan=plans, step=st.integers(0, 10**9))
def test_the_ranks_together_take_exactly_the_global_batch(plan, step):
    """Every position of the step goes to one rank, shares differ by at most one, all ranks run the same shape."""
    shares = [positions(plan, step, rank) for rank in range(plan.world_size)]
    first = step * plan.global_batch
    assert sorted(place for share in shares for place in share) == list(range(first, first + plan.global_batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in range(plan.world_size):
        shape = [len(row) for row in plan.samples(step, rank)]
        assert shape == [plan.micro_batch] * plan.micro_steps


@given(
    total=st.integers(1, 300),
    global_batch=st.integers(1, 40),
    resizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_a_resize_at_any_step_neither_repeats_nor_skips_a_sample(total, global_batch, resizes):
    """Training through any changes of the world size consumes the same samples at each step as one process does."""
    order = SampleOrder(seed=7, total=total)
    consumed: list[int] = []
    step = 0
    for world_size, steps in resizes:
        plan = BatchPlan(global_batch, world_size)
        for _ in range(steps):
            taken = [place for rank in range(world_size) for place in positions(plan, step, rank)]
            consumed += order.indices(sorted(taken)).tolist()
            step += 1
    assert consumed == order.indices(np.arange(step * global_batch)).tolist()
    counts = Counter(consumed)
    passes, rest = divmod(len(consumed), total)
    assert {counts[index] for index in range(total)} <= ({passes} if rest == 0 else {passes, passes + 1})


stretches = st.lists(
    st.tuples(st.integers(0, 120), st.integers(1, 30)).map(lambda pair: (pair[0], sum(pair))), max_size=5
)


@given(place=st.integers(0, 100), position=st.integers(0, 50), left_out=stretches)
def test_a_course_passes_exactly_the_stretches_that_are_left_out(place, position, left_out):
    """Whatever they overlap, and wherever it begins: in the midst of one, or behind it."""
    course = Course.begin(position, place, left_out)
    out = {at for first, end in left_out for at in range(first, end)}
    expected = [at for at in range(place, 500) if at not in out][:100]
    assert course.places(range(position, position + 100)).tolist() == expected
    assert course.place(position + 7) == expected[7]


@given(
    rounds=st.lists(
        st.tuples(
            st.integers(1, 12),  # global batch
            st.integers(1, 5),  # world size
            st.integers(0, 9),  # steps
            st.integers(0, 9),  # how many of the checkpoints there are the next round goes back by
            st.booleans(),  # whether the batch that would have come is left out from then on
        ),
        min_size=1,
        max_size=8,
    )
)
def test_through_any_roll_backs_each_sample_is_trained_on_once_or_left_out(rounds):
    """From older and newer checkpoints, with other worlds and batches: what a checkpoint stands on is complete."""
    saved = [(0, 0, ())]  # step, place, and what was trained on up to there
    left_out = []
    for global_batch, world_size, steps, back, leave_out in rounds:
        step, place, trained = saved[-1]
        course = Course.begin(step * global_batch, place, left_out)
        plan = BatchPlan(global_batch, world_size)
        for _ in range(steps):
            taken = sorted(at for rank in range(world_size) for at in positions(plan, step, rank))
            places = course.places(taken).tolist()
            assert not {at for first, end in left_out for at in range(first, end)} & set(places)
            step, trained = step + 1, (*trained, *places)
            saved.append((step, course.place(step * global_batch), trained))
        if leave_out:
            first, last = course.place(step * global_batch), course.place((step + 1) * global_batch - 1)
            left_out.append((first, last + 1))
        del saved[max(1, len(saved) - back) :]
        for _, reached, done in saved:
            missing = set(range(reached)) - set(done)
            assert list(done) == sorted(set(done))
            assert all(at < reached for at in done)
            assert missing <= {at for first, end in left_out for at in range(first, end)}


@pytest.mark.parametrize(
    ("global_batch", "world_size", "bound", "micro_batch", "micro_steps"),
    [
        pytest.param(24, 3, None, 8, 1, id="whole share"),
        pytest.param(9, 1, None, 5, 2, id="balanced instead of 8 + 1 padded to 16"),
        pytest.param(3, 5, None, 1, 1, id="fewer samples than ranks"),
        pytest.param(32, 2, 4, 4, 4, id="bound by the user"),
        pytest.param(7, 2, 100, 4, 1, id="a bound above the share"),
    ],
)
def test_the_share_runs_in_as_few_and_as_small_micro_steps_as_the_bound_allows(
    global_batch, world_size, bound, micro_batch, micro_steps
):
    """The bound decides the number of micro-steps; their size is then the smallest that fits."""
    plan = BatchPlan(global_batch, world_size, bound)
    assert (plan.micro_batch, plan.micro_steps) == (micro_batch, micro_steps)


@given(plan=plans)
def test_the_loss_scale_gives_the_mean_over_the_batch_in_spite_of_padding(plan):
    """Scaled sums, averaged over ranks and micro-steps as DeepSpeed does, are the plain mean over all tokens."""
    tokens_per_sample = 3
    loss = np.random.default_rng(plan.global_batch).random((plan.global_batch, tokens_per_sample))
    scale = plan.loss_scale(plan.global_batch * tokens_per_sample)
    sums = [
        scale * sum(loss[place].sum() for place in row if place is not None)
        for rank in range(plan.world_size)
        for row in plan.samples(0, rank)
    ]
    assert np.mean(sums) == pytest.approx(loss.mean())


@given(seed=st.integers(-(2**70), 2**70), total=st.integers(1, 3000), epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(seed, total, epoch):
    """Each pass over the data takes every sample once, for any seed, also with the epoch's start inside a query."""
    order = SampleOrder(seed, total)
    start = epoch * total
    assert sorted(order.indices(np.arange(start, start + total)).tolist()) == list(range(total))
    straddling = np.arange(start + total - 1, start + total + 1)
    assert order.indices(straddling).tolist() == [order[int(place)] for place in straddling]


def test_the_order_depends_on_seed_and_epoch_alone():
    """The same seed gives the same order; another seed or epoch gives another one."""
    first = SampleOrder(1, 1000).indices(np.arange(2000))
    assert (first == SampleOrder(1, 1000).indices(np.arange(2000))).all()
    assert (first[:1000] != first[1000:]).mean() > 0.9
    assert (first != SampleOrder(2, 1000).indices(np.arange(2000))).mean() > 0.9
    # A change of the algorithm would make resumed jobs repeat samples, so the order itself is pinned.
    assert SampleOrder(42, 10).indices(np.arange(10)).tolist() == [5, 0, 2, 4, 8, 3, 6, 1, 7, 9]


def test_small_orders_come_up_equally_often():
    """Over many seeds, all 24 orders of four samples appear, none conspicuously often (chi-squared, 23 degrees)."""
    seeds = 4800
    seen = Counter(tuple(SampleOrder(seed, 4).indices(np.arange(4)).tolist()) for seed in range(seeds))
    expected = seeds / 24
    assert len(seen) == 24
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 60


def test_neighbours_end_up_unrelated():
    """The distance between the samples of neighbouring positions is on average a third of the data, as for chance."""
    total = 100_000
    order = SampleOrder(3, total).indices(np.arange(total))
    assert np.abs(np.diff(order)).mean() / total == pytest.approx(1 / 3, abs=0.01)


def test_a_huge_corpus_costs_no_memory_and_no_shuffle_is_the_identity():
    """Positions far into a trillion samples are computed directly."""
    order = SampleOrder(1, 10**12)
    picked = order.indices(np.arange(10**12 - 500, 10**12 + 500))
    assert len(set(picked.tolist())) >= 999
    assert picked.min() >= 0
    assert picked.max() < 10**12
    assert order.epoch(15 * 10**11) == 1.5
    assert SampleOrder(1, 10, shuffle=False).indices([0, 9, 10, 25]).tolist() == [0, 9, 0, 5]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        pytest.param(lambda: BatchPlan(0, 1), "global_batch", id="no batch"),
        pytest.param(lambda: BatchPlan(1, 0), "world_size", id="no world"),
        pytest.param(lambda: BatchPlan(1, 1, 0), "micro_batch", id="no micro-batch"),
        pytest.param(lambda: BatchPlan(4, 2).samples(0, 2), "rank", id="rank outside the world"),
        pytest.param(lambda: BatchPlan(4, 2).loss_scale(0), "batch_tokens", id="no tokens"),
        pytest.param(lambda: SampleOrder(1, 0), "total", id="no samples"),
    ],
)
def test_impossible_sizes_are_refused_by_name(make, field):
    """The error names the argument."""
    with pytest.raises(ValueError, match=field):
        make()
