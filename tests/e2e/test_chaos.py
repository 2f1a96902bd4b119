"""Short campaigns of random faults: `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disturbed import Result, differences, disturbed, undisturbed

STEPS = 300


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The job that is left alone."""
    return undisturbed(tmp_path_factory.mktemp("alone"), STEPS)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("elastic", "seed", "drawn"),
    [
        pytest.param(
            False, 10, ["corrupt-snapshot", "kill-zygote", "freeze-worker"], id="one after the other, hurried"
        ),
        pytest.param(True, 22, ["kill-pod", "corrupt-snapshot"], id="elastic"),
    ],
)
def test_random_faults_change_nothing_but_the_time(
    alone: Result, tmp_path: Path, elastic: bool, seed: int, drawn: list[str]
) -> None:
    """The job completes with the undisturbed losses, no committed step is lost, no process or memory is left."""
    struck = disturbed(tmp_path, STEPS, seed, len(drawn), elastic=elastic)
    assert not struck.wrongs
    assert struck.faults
    assert struck.faults == drawn[: len(struck.faults)]
    assert not differences(alone, struck, elastic=elastic)
