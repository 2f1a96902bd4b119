"""Pods that are kept off nodes, beside what their template says of nodes."""

from __future__ import annotations

import kubernetes_validate
import pytest

from llmtrain_operator import affinity, manifests
from llmtrain_operator.contract import names
from tests.support.planner import JOB, spec

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
NOT_A = {"key": "metadata.name", "operator": "NotIn", "values": ["a"]}
NOT_B = {"key": "metadata.name", "operator": "NotIn", "values": ["b"]}
GPU = {"key": "gpu", "operator": "Exists"}
ZONE = {"key": "zone", "operator": "In", "values": ["z1"]}


def required(*terms):
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(terms)}}}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({}, required({"matchFields": [NOT_A, NOT_B]}), id="nothing-said"),
        pytest.param({"affinity": None}, required({"matchFields": [NOT_A, NOT_B]}), id="null"),
        pytest.param(
            required({"matchExpressions": [GPU]}, {"matchExpressions": [ZONE]}),
            required(
                {"matchExpressions": [GPU], "matchFields": [NOT_A, NOT_B]},
                {"matchExpressions": [ZONE], "matchFields": [NOT_A, NOT_B]},
            ),
            id="every-alternative",
        ),
        pytest.param(
            required({"matchFields": [NOT_B]}), required({"matchFields": [NOT_B, NOT_A, NOT_B]}), id="fields-of-its-own"
        ),
        pytest.param(required({}), required({}), id="a-term-that-allows-no-node"),
        pytest.param(required(), required(), id="no-term"),
        pytest.param({"affinity": "none"}, {"affinity": "none"}, id="odd"),
        pytest.param({"affinity": {"nodeAffinity": [1]}}, {"affinity": {"nodeAffinity": [1]}}, id="odd-inside"),
    ],
)
def test_each_alternative_rules_the_nodes_out(before, after) -> None:
    """Terms are alternatives, so one that did not would let the pod onto the node."""
    assert affinity.keep_off(before, ["a", "b"]) == after
    assert affinity.keep_off(before, []) == before


def test_other_affinities_stay() -> None:
    """Preferences, and what is said of other pods."""
    mine = {"podAntiAffinity": {"x": 1}, "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [1]}}
    kept = affinity.keep_off({"affinity": mine}, ["a"])["affinity"]
    assert kept["podAntiAffinity"] == {"x": 1}
    assert kept["nodeAffinity"].keys() == {REQUIRED, "preferredDuringSchedulingIgnoredDuringExecution"}


def test_a_members_pod_is_valid_and_says_what_it_avoids() -> None:
    """The operator finds by the annotation which waiting pods are out of date; the template is not changed."""
    template = {"metadata": {"annotations": {"mine": "1"}}, "spec": required({"matchExpressions": [GPU]})}
    job = spec(template=template)
    settings = manifests.Settings("trainer", "operator", "wss://c:7443", "CA")
    made = manifests.member_pod(JOB, job, 0, 1, settings, avoid=("a", "b"))
    kubernetes_validate.validate(made, "1.36", strict=True)
    assert made["metadata"]["annotations"] == {"mine": "1", names.ANNOTATION_AVOIDS: "a,b"}
    [term] = made["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [GPU], "matchFields": [NOT_A, NOT_B]}
    plain = manifests.member_pod(JOB, job, 0, 1, settings)
    assert plain["metadata"]["annotations"] == {"mine": "1"}
    assert plain["spec"]["affinity"] == template["spec"]["affinity"]
