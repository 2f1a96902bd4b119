"""Every element comes from where it lies, exactly once, whatever cut it; what is missing or double is named."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_trainer.checkpoint import flats, layout
from llmtrain_trainer.checkpoint.layout import LayoutError, Segment, place, plan_reads

KINDS = ("master", "exp_avg")


def by_stage(stage, sizes, world_size):
    """The ranges (parameter, start, stop) that each rank holds at a ZeRO stage, cut as DeepSpeed cuts."""
    if stage == 0:
        parts = [layout.share(sizes, rank, world_size) for rank in range(world_size)]
        return [[(f"p{index}", start, stop) for index, start, stop in part] for part in parts]
    if stage == 3:
        each = [-(-size // world_size) for size in sizes]
        return [
            [
                (f"p{index}", rank * n, min((rank + 1) * n, size))
                for index, (size, n) in enumerate(zip(sizes, each, strict=True))
                if rank * n < size
            ]
            for rank in range(world_size)
        ]
    places = [(f"p{index}", sum(sizes[:index]), size) for index, size in enumerate(sizes)]
    partition = 2 * -(-sum(sizes) // (2 * world_size))  # padded to a multiple of twice the world size
    cuts = [flats.cut(places, rank * partition, (rank + 1) * partition) for rank in range(world_size)]
    return [[(part.parameter, part.start, part.stop) for part in cut] for cut in cuts]


def shards_of(ranks):
    """Each rank's segments, placed in its shard."""
    return [
        place(Segment(name, kind, start, stop, "float32") for kind in KINDS for name, start, stop in ranges)
        for ranges in ranks
    ]


def contents(segments):
    """A shard's data: for each 4-byte item a word that says which element of what it is; None is padding."""
    words = [None] * (layout.data_bytes(segments) // 4)
    for segment in segments:
        for element in range(segment.start, segment.stop):
            words[segment.offset // 4 + element - segment.start] = (segment.parameter, segment.kind, element)
    return words


def carried_out(reads, wanted, stored):
    """What lands in each wanted segment; a word that is written twice, or outside of its read, is an error."""
    results = [[None] * (segment.stop - segment.start) for segment in wanted]
    for read in reads:
        for copy in read.copies:
            assert read.offset <= copy.source
            assert copy.source + copy.length <= read.offset + read.length
            for word in range(copy.length // 4):
                assert results[copy.wanted][copy.target // 4 + word] is None
                results[copy.wanted][copy.target // 4 + word] = stored[read.shard][copy.source // 4 + word]
    return results


sizes_of_parameters = st.lists(st.integers(1, 40), min_size=1, max_size=6)
stages, worlds = st.integers(0, 3), st.integers(1, 5)


@given(sizes=sizes_of_parameters, before=stages, after=stages, n=worlds, m=worlds, chunk=st.sampled_from([4, 64, 1024]))
def test_every_element_comes_from_where_it_lies_exactly_once(sizes, before, after, n, m, chunk):
    """From any number of ranks and stage to any other, in reads that each stay within one chunk and never repeat."""
    shards = shards_of(by_stage(before, sizes, n))
    stored = [contents(shard) for shard in shards]
    for wanted in shards_of(by_stage(after, sizes, m)):
        reads = plan_reads(wanted, shards, chunk)
        for segment, result in zip(wanted, carried_out(reads, wanted, stored), strict=True):
            assert result == [(segment.parameter, segment.kind, e) for e in range(segment.start, segment.stop)]
        touched = [(read.shard, read.offset // chunk) for read in reads]
        assert touched == sorted(set(touched))
        assert all(read.offset // chunk == (read.offset + read.length - 1) // chunk for read in reads)


@given(sizes=sizes_of_parameters, stage=stages, n=worlds)
def test_ranks_hold_each_element_once(sizes, stage, n):
    """The cuts of the stages, and so the test above, have no gap and no overlap."""
    held = [
        (name, e) for ranges in by_stage(stage, sizes, n) for name, start, stop in ranges for e in range(start, stop)
    ]
    assert sorted(held) == sorted((f"p{index}", e) for index, size in enumerate(sizes) for e in range(size))


@given(sizes=st.lists(st.integers(0, 50), max_size=6), n=worlds)
def test_shares_are_even(sizes, n):
    """No rank saves more than one element more than another."""
    shares = [sum(stop - start for _, start, stop in layout.share(sizes, rank, n)) for rank in range(n)]
    assert sum(shares) == sum(sizes)
    assert max(shares) - min(shares) <= 1


@given(sizes=sizes_of_parameters, stage=stages, n=worlds, data=st.data())
def test_a_range_that_is_gone_is_named(sizes, stage, n, data):
    """Without any one of the segments nothing is planned, and the error has the first element that is not there."""
    shards = [list(shard) for shard in shards_of(by_stage(stage, sizes, n))]
    shard = data.draw(st.sampled_from([shard for shard in shards if shard]))
    lost = shard.pop(data.draw(st.integers(0, len(shard) - 1)))
    wanted = [Segment(f"p{index}", kind, 0, size, "float32") for index, size in enumerate(sizes) for kind in KINDS]
    words = f"{lost.kind} of {lost.parameter}, elements {lost.start} to {lost.stop - 1} is in no shard"
    with pytest.raises(LayoutError, match=re.escape(words)):
        plan_reads(wanted, shards)


@given(sizes=sizes_of_parameters, stage=stages, n=worlds, data=st.data())
def test_a_range_in_two_places_is_named(sizes, stage, n, data):
    """A segment that another shard has too is an error: which of the two is right cannot be known."""
    shards = shards_of(by_stage(stage, sizes, n))
    twice = data.draw(st.sampled_from([segment for shard in shards for segment in shard]))
    with pytest.raises(LayoutError, match=rf"{twice.kind} of {twice.parameter}, elements .* in two places"):
        plan_reads([twice], [*shards, [dataclasses.replace(twice, start=twice.stop - 1)]])


def test_another_element_type_is_named():
    """fp32 weights are never filled from bf16 bytes."""
    with pytest.raises(LayoutError, match="is stored as bfloat16, but float32 is needed"):
        plan_reads([Segment("p", "weights", 0, 4, "float32")], [place([Segment("p", "weights", 0, 4, "bfloat16")])])


@pytest.mark.parametrize("dtype", sorted(layout.ITEM_BYTES))
def test_segments_are_aligned_and_survive_json(dtype):
    """Any element type can be viewed in place, and an index read back is the one written."""
    placed = place([Segment("odd", "master", 0, 3, dtype), Segment("p", "master", 5, 12, dtype)])
    assert all(segment.offset % layout.ALIGNMENT == 0 for segment in placed)
    assert placed[0].end <= placed[1].offset
    assert tuple(Segment.from_json(json.loads(json.dumps(segment.to_json()))) for segment in placed) == placed


@pytest.mark.parametrize(
    "raw",
    [None, [], ["p", "k", 0, 4, "float32"], ["p", "k", 4, 4, "float32", 0], ["p", "k", 0, 4, "float3", 0], ["p"] * 6],
)
def test_what_is_no_segment_is_refused(raw):
    """An index of some other form does not become a segment by chance."""
    with pytest.raises(LayoutError, match="is no segment"):
        Segment.from_json(raw)


def test_the_layout_needs_no_torch():
    """Tools that only look at checkpoints do not wait for torch."""
    code = "import sys, llmtrain_trainer.checkpoint.layout; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
