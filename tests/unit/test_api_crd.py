"""The CRD as generated, and the lists that were generated or copied from elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubernetes.client.models.v1_container import V1Container
from kubernetes.client.models.v1_pod_spec import V1PodSpec

from llmtrain_operator.api import crd, deepspeed_keys, template_check

ROOT = Path(__file__).parents[2]
SCHEMA = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_file_is_what_the_models_say():
    """crds/llmtrainjobs.yaml is never edited by hand; `make crd` renews it."""
    assert (ROOT / "crds/llmtrainjobs.yaml").read_text() == crd.as_yaml()


def fields(node, path=""):
    for name, each in node.get("properties", {}).items():
        yield f"{path}.{name}", each
        yield from fields(each, f"{path}.{name}")
        yield from fields(each.get("items", {}), f"{path}.{name}[]")


def test_every_field_is_explained():
    """`kubectl explain` has a sentence for each field of spec and status."""
    assert [path for path, node in fields(SCHEMA["properties"]["spec"]) if not node.get("description")] == []
    assert [path for path, node in fields(SCHEMA["properties"]["status"]) if not node.get("description")] == []


def test_no_status_field_has_a_default():
    """The API server adds nothing to the status, so the operator recognises its own writes."""
    assert [path for path, node in fields(SCHEMA["properties"]["status"]) if "default" in node] == []


def test_deepspeed_keys_are_those_of_the_installed_deepspeed():
    """The list is renewed with the pinned DeepSpeed: `python -m tests.support.deepspeed_keys`."""
    command = [sys.executable, "-m", "tests.support.deepspeed_keys"]
    environment = {**os.environ, "PYTHONPATH": "operator:.", "DS_ACCELERATOR": "cpu"}
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    generated = printed.stdout[printed.stdout.index('"""DeepSpeed\'s configuration keys') :]
    assert generated == Path(deepspeed_keys.__file__).read_text()


@pytest.mark.parametrize(
    ("known", "model"),
    [
        pytest.param(template_check.POD_FIELDS, V1PodSpec, id="pod"),
        pytest.param(template_check.CONTAINER_FIELDS, V1Container, id="container"),
    ],
)
def test_template_fields_are_those_of_the_kubernetes_client(known, model):
    """A field that Kubernetes has is not called a typo."""
    assert known == {info.serialization_alias or name for name, info in model.model_fields.items()}


def test_the_file_is_one_yaml_document():
    """`kubectl apply -f` takes it as it is."""
    assert yaml.safe_load((ROOT / "crds/llmtrainjobs.yaml").read_text())["kind"] == "CustomResourceDefinition"
