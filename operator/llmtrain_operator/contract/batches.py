"""How a constant global batch falls into micro-steps, for any number of workers. Pure."""

from __future__ import annotations

from typing import Final

DEFAULT_MICRO_BATCH: Final = 8
"""Most samples per worker and micro-step when the job does not say."""


def split(global_batch: int, world_size: int, bound: int | None = None) -> tuple[int, int]:
    """Samples per micro-step and micro-steps per step of the worker with the most to do.

    `bound`: most samples that a worker holds at once. The first figure is the smallest that needs no more micro-steps
    than the bound does, so that little is spent on padding (a share of 9 under the bound 8 runs as 5 + 4, not 8 + 1
    padded to 16). Raises `ValueError` for a number below 1.
    """
    bound = DEFAULT_MICRO_BATCH if bound is None else bound
    for name, value in (("global_batch", global_batch), ("world_size", world_size), ("micro_batch", bound)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    largest_share = -(-global_batch // world_size)
    micro_steps = -(-largest_share // bound)
    return -(-largest_share // micro_steps), micro_steps
