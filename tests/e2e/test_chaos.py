"""A short campaign of random faults: `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.disturbed import Result, differences, disturbed, undisturbed

STEPS = 500
SEED = 1
FAULTS = 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The job that is left alone."""
    return undisturbed(tmp_path_factory.mktemp("alone"), STEPS)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("elastic", [False, True], ids=["fixed", "elastic"])
def test_random_faults_change_nothing_but_the_time(alone: Result, tmp_path: Path, elastic: bool) -> None:
    """The job completes with the undisturbed losses, no committed step is lost, no process or memory is left."""
    struck = disturbed(tmp_path, STEPS, SEED + elastic, FAULTS, elastic=elastic)
    assert struck.faults
    assert not struck.wrongs
    assert not differences(alone, struck, elastic=elastic)
