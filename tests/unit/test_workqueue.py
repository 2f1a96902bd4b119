"""The queue's promises, on a clock that only moves when a test moves it."""

import asyncio

import pytest

from llmtrain_operator.ports import Unavailable
from llmtrain_operator.workqueue import Schedule, WorkQueue


def test_schedule_keeps_each_key_once_at_its_earliest_time():
    schedule = Schedule()
    schedule.add("a", 5.0)
    schedule.add("a", 3.0)
    schedule.add("a", 9.0)
    schedule.add("b", 4.0)
    assert (len(schedule), schedule.next_at()) == (2, 3.0)
    assert schedule.pop(2.9) is None
    assert schedule.pop(9.0) == ("a", 3.0)
    assert schedule.pop(9.0) == ("b", 4.0)
    assert schedule.pop(9.0) is None
    assert schedule.next_at() is None


class Stage:
    """A queue whose passes are recorded and end only when told to; `turn` lets everything happen that can."""

    def __init__(self, *, workers: int = 4) -> None:
        self.now = 100.0
        self.passes: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.answers: dict[str, list] = {}
        self.observed: list[tuple] = []
        self.queue = WorkQueue(
            self.process, workers=workers, clock=lambda: self.now, on_pass=lambda *seen: self.observed.append(seen)
        )

    async def process(self, key: str) -> float | None:
        self.passes.append(key)
        if key in self.gates:
            await self.gates[key].wait()
        answers = self.answers.get(key)
        answer = answers.pop(0) if answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.queue._news.set()  # a real clock would end the wait by itself
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def stage():
    stage = Stage()
    task = asyncio.create_task(stage.queue.run())
    yield stage
    for gate in stage.gates.values():
        gate.set()
    stage.queue.stop()
    await task


async def test_changes_within_the_window_share_one_pass(stage):
    """Three adds within 20 ms are one pass, a later one is another."""
    stage.queue.add("a")
    await stage.turn(0.01)
    stage.queue.add("a")
    stage.queue.add("a")
    assert stage.passes == []
    await stage.turn(0.011)
    assert stage.passes == ["a"]
    await stage.turn(1)
    assert stage.passes == ["a"]
    stage.queue.add("a")
    await stage.turn(0.021)
    assert stage.passes == ["a", "a"]


async def test_a_key_added_during_its_pass_gets_another_afterwards(stage):
    """Passes of one key never overlap, and none is lost."""
    stage.gates["a"] = asyncio.Event()
    stage.queue.add("a")
    await stage.turn(0.1)
    stage.queue.add("a")
    await stage.turn(0.1)
    assert stage.passes == ["a"]
    stage.gates["a"].set()
    await stage.turn(0.1)
    assert stage.passes == ["a", "a"]


async def test_a_long_pass_does_not_hold_up_other_keys(stage):
    stage.gates["slow"] = asyncio.Event()
    stage.queue.add("slow")
    stage.queue.add("quick")
    await stage.turn(0.1)
    stage.queue.add("quick")
    await stage.turn(0.1)
    assert stage.passes == ["slow", "quick", "quick"]


async def test_no_more_passes_at_once_than_workers():
    """A key beyond the number of workers begins when one becomes free, and waits are observed."""
    stage = Stage(workers=2)
    stage.gates = {key: asyncio.Event() for key in "abc"}
    task = asyncio.create_task(stage.queue.run())
    for key in "abc":
        stage.queue.add(key)
    await stage.turn(1)
    assert sorted(stage.passes) == ["a", "b"]
    assert stage.queue.depth() == 3
    stage.gates["a"].set()
    await stage.turn(1)
    assert sorted(stage.passes) == ["a", "b", "c"]
    for gate in stage.gates.values():
        gate.set()
    stage.queue.stop()
    await task
    key, waited, seconds, succeeded = stage.observed[-1]
    assert (key, succeeded) in {("b", True), ("c", True)}
    assert waited >= 0 < seconds + 1


async def test_a_pass_says_when_it_wants_the_next(stage):
    stage.answers["a"] = [5.0]
    stage.queue.add("a")
    await stage.turn(0.1)
    await stage.turn(4.9)
    assert stage.passes == ["a"]
    await stage.turn(0.2)
    assert stage.passes == ["a", "a"]


@pytest.mark.parametrize("error", [Unavailable("down"), ZeroDivisionError("bug")], ids=["expected", "bug"])
async def test_failing_passes_back_off_and_success_resets(stage, error):
    """Pauses double from 0.1 s; after a success they start over."""
    stage.answers["a"] = [error, error, None, error]
    stage.queue.add("a")
    await stage.turn(0.05)
    counts = []
    for seconds in (0.09, 0.02, 0.18, 0.03):
        await stage.turn(seconds)
        counts.append(len(stage.passes))
    assert counts == [1, 2, 2, 3]
    stage.queue.add("a")
    await stage.turn(0.05)
    await stage.turn(0.11)
    assert len(stage.passes) == 5


async def test_changes_hasten_a_failing_key_but_not_beyond_once_a_second(stage):
    stage.answers["a"] = [Unavailable("down")] * 20
    stage.queue.add("a")
    for _ in range(8):
        await stage.turn(40)
    failed = len(stage.passes)
    for _ in range(30):
        stage.queue.add("a")
        await stage.turn(0.1)
    assert 2 <= len(stage.passes) - failed <= 3


async def test_stop_finishes_the_pass_in_work_and_begins_none():
    stage = Stage()
    stage.gates["a"] = asyncio.Event()
    task = asyncio.create_task(stage.queue.run())
    stage.queue.add("a")
    await stage.turn(1)
    stage.queue.add("b")
    stage.queue.stop()
    await stage.turn(1)
    assert not task.done()
    stage.gates["a"].set()
    await task
    assert stage.passes == ["a"]
