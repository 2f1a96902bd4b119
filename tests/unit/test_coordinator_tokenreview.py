import pytest

from llmtrain_operator.cluster.tokenreview import TokenReviewAuthenticator, identity_of
from llmtrain_operator.contract import names
from llmtrain_operator.coordinator.auth import AuthenticationUnavailable, Identity, Unauthenticated
from llmtrain_operator.ports import Unavailable

POD = Identity("ns", "job-0-0", "uid-0")
GOOD = {
    "authenticated": True,
    "audiences": [names.TOKEN_AUDIENCE],
    "user": {
        "username": "system:serviceaccount:ns:job",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["job-0-0"],
            "authentication.kubernetes.io/pod-uid": ["uid-0"],
        },
    },
}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        pytest.param({"error": "token expired"}, "token expired", id="not authenticated"),
        pytest.param({**GOOD, "audiences": ["api"]}, "audience", id="for the API server"),
        pytest.param({**GOOD, "user": {"username": "alice"}}, "not bound to a pod", id="a person's"),
        pytest.param(
            {**GOOD, "user": {"username": "system:serviceaccount:ns:job"}}, "not bound", id="a legacy service account's"
        ),
    ],
)
def test_only_a_pod_bound_token_for_us_is_accepted(status, word):
    """Anything else than a projected token of our audience is refused with the reason."""
    with pytest.raises(Unauthenticated, match=word):
        identity_of(status)


class Reviewer:
    """Stands in for the API server's client: answers, or fails, and counts."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    async def request(self, verb, resource, *, body):
        self.asked += 1
        assert (verb, resource.plural) == ("create", "tokenreviews")
        assert body["spec"]["audiences"] == [names.TOKEN_AUDIENCE]
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"status": self.answer}


async def test_a_good_answer_is_remembered_briefly():
    """The same token is reviewed once per memory span; another token is another question."""
    now = [0.0]
    reviewer = Reviewer(GOOD)
    authenticator = TokenReviewAuthenticator(reviewer, clock=lambda: now[0])
    assert await authenticator.identify("t") == POD
    assert await authenticator.identify("t") == POD
    assert reviewer.asked == 1
    await authenticator.identify("u")
    now[0] = 11.0
    await authenticator.identify("t")
    assert reviewer.asked == 3


async def test_an_api_server_that_does_not_answer_is_not_the_tokens_fault():
    """The agent is told to come back rather than that its token is bad."""
    with pytest.raises(AuthenticationUnavailable, match="no route"):
        await TokenReviewAuthenticator(Reviewer(Unavailable("no route"))).identify("t")
