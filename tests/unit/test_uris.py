"""Where URIs of the spec lie in a pod."""

from __future__ import annotations

import pytest

from llmtrain_operator.contract import uris


@pytest.mark.parametrize(
    ("uri", "path", "claim"),
    [
        pytest.param("/data/corpus", "/data/corpus", None, id="plain-path"),
        pytest.param("file:///data/a%20b", "/data/a b", None, id="file"),
        pytest.param("pvc://models/gpt/small", "/llmtrain/volumes/models/gpt/small", "models", id="claim-and-path"),
        pytest.param("pvc://models", "/llmtrain/volumes/models", "models", id="root-of-a-claim"),
        pytest.param("pvc://models/", "/llmtrain/volumes/models", "models", id="root-with-slash"),
    ],
)
def test_a_uri_stands_for_a_path_and_a_claim(uri, path, claim):
    """Claims are mounted under one root, everything else is the pod's own file system."""
    assert uris.local_path(uri) == path
    assert uris.claim_of(uri) == claim


@pytest.mark.parametrize(
    "uri", ["s3://bucket/x", "pvc:///x", "file://host/x", "pvc://models/../other", "pvc://a/%2e%2e/b"]
)
def test_other_uris_are_refused_by_name(uri):
    """The error repeats the URI."""
    with pytest.raises(ValueError, match=uri.split(":", maxsplit=1)[0]):
        uris.local_path(uri)
