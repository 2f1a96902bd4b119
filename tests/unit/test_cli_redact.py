"""Secrets stay out of what is passed on."""

from __future__ import annotations

import pytest

from llmtrain_operator.cli.redact import GONE, text, value

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        pytest.param("Authorization: Bearer abc.DEF-123456", f"Authorization: Bearer {GONE}", id="bearer"),
        pytest.param("got eyJhbGci.eyJzdWIi.c2ln today", f"got {GONE} today", id="JSON web token"),
        pytest.param("s3://me:hunter2@host/b", f"s3://me:{GONE}@host/b", id="password in a URL"),
        pytest.param("using hf_abcdefghijklmnopqrst", f"using {GONE}", id="hub token"),
        pytest.param("key AKIAABCDEFGHIJKLMNOP", f"key {GONE}", id="AWS key ID"),
        pytest.param("password=hunter2 next", f"password={GONE} next", id="assignment"),
        pytest.param('{"api_key": "abc", "a": 1}', f'{{"api_key": "{GONE}", "a": 1}}', id="JSON"),
        pytest.param("AWS_SECRET_ACCESS_KEY=x/y+z", f"AWS_SECRET_ACCESS_KEY={GONE}", id="variable"),
        pytest.param(f"a\n{KEY}\nb", f"a\n{GONE}\nb", id="private key"),
        pytest.param("step 3 loss 2.1 1234 tokens/s", "step 3 loss 2.1 1234 tokens/s", id="progress"),
        pytest.param("tokenizer: byte, 257 tokens: all", "tokenizer: byte, 257 tokens: all", id="tokens of text"),
        pytest.param("key=3 in keys", "key=3 in keys", id="a key of something"),
    ],
)
def test_words(words, left):
    """Known forms go, everything else stays readable."""
    assert text(words) == left


def test_objects():
    """Values go by the names of their variables and options; references to secrets are no secrets."""
    env = [
        {"name": "HF_TOKEN", "value": "abc"},
        {"name": "STEPS", "value": "3"},
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "secret"}}},
    ]
    thing = {
        "metadata": {
            "name": "j",
            "managedFields": [1],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "all of it again", "a": "b"},
        },
        "spec": {"args": ["--api-key", "abc", "--steps", "3"], "env": env},
    }
    assert value(thing) == {
        "metadata": {"name": "j", "annotations": {"a": "b"}},
        "spec": {
            "args": ["--api-key", GONE, "--steps", "3"],
            "env": [{"name": "HF_TOKEN", "value": GONE}, env[1], env[2]],
        },
    }
