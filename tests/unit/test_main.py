"""The operator's process: what ends it, and how."""

from __future__ import annotations

import asyncio

import pytest

from llmtrain_operator.main import PartEnded, _first_end


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _fails() -> None:
    raise OSError("the disk is full")


async def _returns() -> None:
    pass


@pytest.mark.parametrize("part", [_fails, _returns], ids=["raises", "returns"])
def test_a_part_that_ends_ends_the_process_with_its_error(part) -> None:
    """The exit is not taken for an orderly one, and says which part it was and why."""
    with pytest.raises(PartEnded, match=part.__name__) as raised:
        asyncio.run(_first_end(asyncio.Event(), _for_ever(), part()))
    assert str(raised.value.__cause__ or "") == ("the disk is full" if part is _fails else "")


def test_a_stop_ends_all_parts_without_an_error() -> None:
    """Told to stop, the process cancels its parts and returns, even if one ends in the same moment."""

    async def stopped() -> None:
        stop = asyncio.Event()
        stop.set()
        await _first_end(stop, _for_ever(), _returns())

    asyncio.run(asyncio.wait_for(stopped(), 5))
