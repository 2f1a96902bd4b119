"""The examples that newcomers start from."""

from pathlib import Path

import pytest
import yaml

from llmtrain_operator.api.validation import parse
from llmtrain_operator.contract import names

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_is_a_valid_job(path):
    """Each file holds one job without problems."""
    (job,) = [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == names.KIND]
    assert parse(job["metadata"]["name"], job["spec"])[1] == ()
