"""Kubernetes quantities of memory."""

import pytest

from llmtrain_operator import quantity


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4Gi", 4 * 2**30),
        ("1.5G", 1_500_000_000),
        ("512Mi", 2**29),
        ("100", 100),
        ("1500m", 2),
        ("much", None),
        ("1Xi", None),
    ],
)
def test_a_quantity_is_read(text, count):
    """None for what is none."""
    assert quantity.parse(text) == count


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 2**20, 3 * 2**30, 2**30 + 2**20])
def test_what_is_shown_reads_the_same(count):
    """In the largest unit that is exact."""
    assert quantity.parse(quantity.show(count)) == count
    assert quantity.show(3 * 2**30) == "3Gi"
