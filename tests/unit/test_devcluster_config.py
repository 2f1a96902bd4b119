"""Settings of a devcluster: what is accepted, what follows, and that nothing is lost on the way to disk."""

import json

import pytest

from devcluster import config
from devcluster.config import ClusterConfig
from devcluster.errors import DevclusterError


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        pytest.param({"name": "Dev"}, "name 'Dev'", id="capitals"),
        pytest.param({"name": "../x"}, "name '../x'", id="path"),
        pytest.param({"name": "a" * 33}, "at most 32", id="too-long"),
        pytest.param({"nodes": 65}, "nodes 65", id="too-many-nodes"),
        pytest.param({"node_memory": "6G"}, "memory '6G'", id="decimal-memory"),
        pytest.param({"accelerators": {"gpu": 1}}, "accelerators gpu=1", id="resource-without-domain"),
    ],
)
def test_impossible_settings_are_refused_by_name_and_value(settings, complaint):
    """The error names the field and the value, before anything is started."""
    with pytest.raises(DevclusterError, match=complaint):
        ClusterConfig(**settings)


def test_settings_survive_the_state_file():
    """What is written as JSON reads back as the same settings."""
    settings = ClusterConfig(name="x", nodes=2, accelerators={"nvidia.com/gpu": 4}, node_memory="", grace_seconds=40)
    assert ClusterConfig.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("quantity", "expected"), [("512", 512), ("1Ki", 1024), ("6Gi", 6 << 30)], ids=["plain", "Ki", "Gi"]
)
def test_memory_quantities_are_binary(quantity, expected):
    """Suffixes are powers of 1024."""
    assert config.quantity_bytes(quantity) == expected


def test_accelerator_options_name_resource_and_count():
    """RESOURCE=COUNT, several times; anything else is refused with an example."""
    assert config.parse_accelerators(["nvidia.com/gpu=2", "amd.com/gpu=8"]) == {"nvidia.com/gpu": 2, "amd.com/gpu": 8}
    with pytest.raises(DevclusterError, match=r"nvidia.com/gpu=2"):
        config.parse_accelerators(["nvidia.com/gpu"])
