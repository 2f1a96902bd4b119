"""What namespaces are granted: defaults, limits, and the words for a job that is over them."""

from __future__ import annotations

import pytest

from llmtrain_operator import policy
from llmtrain_operator.api import JobSpec
from llmtrain_operator.policy import Policy

BASE = {"model": {"preset": "gpt-tiny"}, "data": {"source": "/data"}, "training": {"maxSteps": 1}}
POLICY = Policy.model_validate(
    {
        "contact": "platform@example",
        "default": {"maxNodes": 4, "defaults": {"queue": "shared", "ttlSecondsAfterFinished": 60}},
        "namespaces": {
            "big": {"maxNodes": 64},
            "strict": {
                "storage": ["s3://team/strict", "pvc://ckpt"],
                "s3Endpoints": ["https://minio.example:9000/"],
                "defaults": {"priorityClassName": "low"},
            },
        },
    }
)


def found(namespace: str, **spec) -> dict[str, str]:
    """Path -> message and remedy of each problem."""
    job = JobSpec.model_validate(BASE | spec)
    return {each.path: f"{each.message}. {each.remedy}" for each in policy.problems(POLICY, namespace, job)}


def test_the_message_names_the_limit_and_whom_to_ask() -> None:
    said = found("any", nodes={"min": 1, "max": 5})
    assert said == {
        "spec.nodes.max": "limit maxNodes of namespace any: at most 4 nodes per job. "
        "Take fewer, or ask platform@example for more"
    }
    assert list(found("any", nodes={"min": 5})) == ["spec.nodes.min"], "the field that the user wrote"
    assert not found("any", nodes={"min": 4})
    assert list(found("any", nodes={"min": 4, "spares": 1})) == ["spec.nodes.spares"], "they take nodes too"


def test_a_namespace_of_its_own_inherits_the_rest() -> None:
    assert not found("big", nodes={"min": 64})
    assert found("strict", nodes={"min": 5})
    grant = POLICY.grant("strict").defaults
    assert (grant.queue, grant.priority_class_name, grant.ttl_seconds_after_finished) == ("shared", "low", 60)


@pytest.mark.parametrize(
    ("storage", "allowed"),
    [
        ("s3://team/strict", True),
        ("s3://team/strict/a", True),
        ("s3://team/stricter", False),
        ("s3://team", False),
        ("pvc://ckpt/a", True),
        ("pvc://ckpt2/a", False),
        ("file:///tmp/a", False),
    ],
)
def test_storage_is_allowed_below_what_is_named(storage, allowed) -> None:
    """By whole names: a bucket that merely begins alike is another one."""
    for fields in ({"durable": {"storage": storage}}, {"restoreFrom": storage}):
        path = f"spec.checkpoint.{'restoreFrom' if 'restoreFrom' in fields else 'durable.storage'}"
        assert list(found("strict", checkpoint=fields)) == ([] if allowed else [path])
        assert not found("any", checkpoint=fields)


@pytest.mark.parametrize(("output", "allowed"), [("pvc://ckpt/m", True), ("/models/m", False)])
def test_models_are_kept_where_checkpoints_are(output, allowed) -> None:
    assert bool(found("strict", output=output)) is not allowed


def test_the_whole_file_system_may_be_allowed() -> None:
    files = Policy.model_validate({"default": {"storage": ["file:///"]}})
    assert not policy.problems(files, "n", JobSpec.model_validate(BASE | {"output": "/models/m"}))
    assert policy.problems(files, "n", JobSpec.model_validate(BASE | {"output": "pvc://c/m"}))


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [("https://minio.example:9000", True), ("https://elsewhere.example", False), (None, True)],
)
def test_only_servers_that_are_named_may_be_used(endpoint, allowed) -> None:
    checkpoint = {"durable": {"storage": "s3://team/strict"}, "s3": {"region": "a", "endpoint": endpoint}}
    assert bool(found("strict", checkpoint=checkpoint)) is not allowed


def test_defaults_fill_what_the_spec_leaves_open() -> None:
    filled = policy.with_defaults(POLICY.grant("strict"), BASE)
    assert filled["scheduling"] == {"queue": "shared", "priorityClassName": "low"}
    assert filled["ttlSecondsAfterFinished"] == 60
    own = {
        "scheduling": {"queue": "mine"},
        "ttlSecondsAfterFinished": 0,
        "template": {"spec": {"priorityClassName": "high"}},
    }
    assert policy.with_defaults(POLICY.grant("strict"), BASE | own) == BASE | own
    assert policy.with_defaults(Policy().default, BASE) == BASE
    odd = {"scheduling": "x", "template": "y"}
    assert policy.with_defaults(POLICY.grant("strict"), BASE | odd)["scheduling"] == "x", "left to be refused by name"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"default": {"maxNode": 3}}', "policy.default.maxNode"),
        ('{"namespaces": {"a": {"storage": ["bucket"]}}}', "policy.namespaces.a.storage.0"),
        ("no JSON", "JSON"),
    ],
)
def test_a_misspelt_policy_is_refused_by_name(text, says) -> None:
    with pytest.raises(ValueError, match=says):
        policy.read(text)
