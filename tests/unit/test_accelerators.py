"""Which accelerator a name means."""

import pytest

from llmtrain_operator.contract.accelerators import ACCELERATORS, find


@pytest.mark.parametrize(
    ("device", "name", "tera_flops", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989, 80),
        ("NVIDIA-H100-80GB-HBM3", "H100", 989, 80),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756, 80),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 312, 80),
        ("NVIDIA A100-SXM4-40GB", "A100", 312, 40),
        ("nvidia-tesla-a100", "A100", 312, 40),
        ("NVIDIA L40S", "L40S", 362, 48),
        ("NVIDIA L4", "L4", 121, 24),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165, 24),
        ("AMD_Instinct_MI300X_OAM", "MI300X", 1307, 192),
        ("b200", "B200", 2250, 180),
    ],
)
def test_a_device_or_a_label_names_it(device, name, tera_flops, gigabytes):
    """Dashes, underscores and case do not matter; a word is a whole word: an L4 is no L40."""
    kind = find(device)
    assert (kind.name, kind.peak / 1e12, kind.memory / 1e9) == (name, tera_flops, gigabytes)


@pytest.mark.parametrize("device", ["", "NVIDIA A1000 Laptop GPU", "TPU v5e", "NVIDIA L400"])
def test_others_are_not_guessed(device):
    """Not by a part of a word either."""
    assert find(device) is None


def test_each_is_found_by_its_own_name():
    """No more general one stands before it."""
    assert [find(kind.name).name for kind in ACCELERATORS] == [kind.name for kind in ACCELERATORS]
