import pytest

from llmtrain_operator.contract.wire import Report
from llmtrain_operator.coordinator.auth import (
    Identity,
    Unauthenticated,
    bearer,
    contradiction,
)

POD = Identity("ns", "job-0-0", "uid-0")


def report(**changes):
    fields = {"job": "ns/job", "pod": "job-0-0", "uid": "uid-0", "index": 0, "incarnation": 0, "host": "10.0.0.1"}
    return Report(**{**fields, "state": "joining", **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({}, None, id="itself"),
        pytest.param({"uid": "other"}, "UID", id="another pod's UID"),
        pytest.param({"pod": "other"}, "pod other", id="another pod's name"),
        pytest.param({"job": "else/job"}, "namespace else", id="another namespace"),
    ],
)
def test_a_pod_speaks_only_for_itself(changes, word):
    """A report must carry the identity that the token proves."""
    complaint = contradiction(POD, report(**changes))
    assert (complaint is None) if word is None else word in complaint


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer ", "token"])
def test_a_request_without_a_bearer_token_says_what_to_send(header):
    """The refusal names the header that is missing."""
    with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
        bearer(header)
