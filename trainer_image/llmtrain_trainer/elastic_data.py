"""Which samples a rank trains on at a step, for any world size. Pure.

Training consumes one endless sequence of samples whose order depends on the seed alone. Step `s` takes positions
`s * global_batch` up to `(s + 1) * global_batch` of it, and the ranks share these by place. So a resize or restart
at any step boundary neither repeats nor skips a sample: nothing but the step has to be remembered.
Samples that are to be left out are stretches of the sequence: positions count what is left, places count all of it.

Guarantees: the ranks' shares of a step are disjoint, together exactly the global batch, and differ by at most one
sample; all ranks run the same number of micro-steps of the same shape (collectives stay matched), filled up with
masked padding. A global batch smaller than the world leaves some ranks with padding only.
Limit: positions are counted with the global batch, so it must stay the same while a job runs; one that is restored with
another, or leaves samples out, says by `Course.begin` how far it had come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

from llmtrain_operator.contract.batches import split

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FEISTEL_ROUNDS = 6

_U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, init=False)
class BatchPlan:
    """How a global batch is split over ranks and micro-steps.

    `micro_batch` given to the constructor is an upper bound on the samples that a worker holds at once; the attribute
    is the smallest size that needs no more micro-steps than the bound does, so that little is spent on padding
    (a share of 9 under the bound 8 runs as 5 + 4, not 8 + 1 padded to 16).
    """

    global_batch: int
    world_size: int
    micro_batch: int
    micro_steps: int

    def __init__(self, global_batch: int, world_size: int, micro_batch: int | None = None) -> None:
        micro, micro_steps = split(global_batch, world_size, micro_batch)
        object.__setattr__(self, "global_batch", global_batch)
        object.__setattr__(self, "world_size", world_size)
        object.__setattr__(self, "micro_batch", micro)
        object.__setattr__(self, "micro_steps", micro_steps)

    def share(self, rank: int) -> range:
        """The rank's places within any global batch, a contiguous part of `range(global_batch)`; may be empty."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank is {rank}; it must be from 0 to {self.world_size - 1}")
        base, extra = divmod(self.global_batch, self.world_size)
        start = rank * base + min(rank, extra)
        return range(start, start + base + (rank < extra))

    def samples(self, step: int, rank: int) -> tuple[tuple[int | None, ...], ...]:
        """Positions in the sample sequence that `rank` trains on at `step` (from 0).

        Shape (micro_steps, micro_batch); None is a place for masked padding.
        """
        first = step * self.global_batch
        places: list[int | None] = [first + place for place in self.share(rank)]
        places += [None] * (self.micro_steps * self.micro_batch - len(places))
        return tuple(tuple(places[at : at + self.micro_batch]) for at in range(0, len(places), self.micro_batch))

    def loss_scale(self, batch_tokens: int) -> float:
        """Factor for a micro-batch's *summed* token losses that makes the step's gradient the mean over its tokens.

        `batch_tokens` is the number of label tokens in the whole global batch. Data parallelism averages gradients
        over ranks and accumulation averages over micro-steps; both treat a half-padded micro-batch like a full one,
        and a mean over none but padding would be 0/0. The factor undoes the two averages.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; a global batch has at least one label token")
        return self.world_size * self.micro_steps / batch_tokens


@dataclass(frozen=True, slots=True)
class Course:
    """From positions to places in the sequence: `offset` on, and past the stretches that are left out.

    `hits`: the place, as it would be without them, at which the course meets each stretch; `jumps`: how many places
    have been left out behind it.
    """

    offset: int = 0
    hits: tuple[int, ...] = ()
    jumps: tuple[int, ...] = ()

    @classmethod
    def begin(cls, position: int, place: int, left_out: Iterable[tuple[int, int]] = ()) -> Course:
        """The course on which `position` is at `place`, or at the first after it that is in none of the stretches
        `left_out` (first, end), which may overlap. What is before `place` was decided when it was passed."""
        hits, jumps = [], []
        reached, jumped = place, 0
        for first, end in sorted(left_out):
            start = max(first, reached)
            if end > start:
                hits.append(start - jumped)
                jumped += end - start
                jumps.append(jumped)
                reached = end
        return cls(place - position, tuple(hits), tuple(jumps))

    def places(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Of many positions at once, none of them before the beginning."""
        plain = np.asarray(positions, dtype=np.int64) + self.offset
        if not self.hits:
            return plain
        met = np.searchsorted(np.asarray(self.hits), plain, side="right")
        jumped: npt.NDArray[np.int64] = np.asarray((0, *self.jumps), dtype=np.int64)[met]
        return plain + jumped

    def place(self, position: int) -> int:
        """Of one."""
        return int(self.places(position))


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """Endless order of sample indices: one fresh permutation of `range(total)` per epoch, a function of the seed alone.

    Each index is computed from its position by a keyed Feistel network, which is a bijection by construction: no
    stored permutation (8 GB per worker for a billion samples), no state to save, and a resume at any step is free.
    The network works on pairs of digits to the base ceil(sqrt(total)), so its domain hardly exceeds `total`; the few
    values outside are sent round again until they fall inside (cycle walking), which keeps it a bijection.
    `course` leads from positions to places. Not cryptographic.
    """

    seed: int
    total: int
    shuffle: bool = True
    course: Course = Course()

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"total is {self.total}; an order needs at least 1 sample")

    def __getitem__(self, position: int) -> int:
        """The sample index at a position of the endless sequence."""
        return int(self.indices([position])[0])

    def indices(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Sample indices of many positions at once, same shape as `positions` (which may span epochs)."""
        places = self.course.places(positions).astype(np.uint64)
        epoch, within = np.divmod(places, np.uint64(self.total))
        if self.shuffle and self.total > 1:
            within = self._permuted(within, _mixed(epoch * np.uint64(_GOLDEN) ^ np.uint64(self.seed & _MASK)))
        return within.astype(np.int64)

    def epoch(self, position: int) -> float:
        """Passes over the data made before `position`."""
        return self.course.place(position) / self.total

    def _permuted(self, values: _U64, keys: _U64) -> _U64:
        result = _feistel(values, keys, self.total)
        while (outside := result >= self.total).any():
            result[outside] = _feistel(result[outside], keys[outside], self.total)
        return result


def _feistel(values: _U64, keys: _U64, total: int) -> _U64:
    """A keyed bijection of `range(ceil(sqrt(total)) ** 2)`, which holds `range(total)`."""
    base = np.uint64(isqrt(total - 1) + 1)
    left: _U64 = values // base
    right: _U64 = values % base
    for number in range(_FEISTEL_ROUNDS):
        noise = _mixed(keys + right * np.uint64(_GOLDEN) + np.uint64(number)) % base
        left, right = right, (left + noise) % base
    return np.asarray(left * base + right)


def _mixed(values: _U64) -> _U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
