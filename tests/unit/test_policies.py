"""The test tier's own reading of NetworkPolicy: each sentence of the specification that the chart relies on."""

from __future__ import annotations

import pytest

from tests.support.policies import Network, Pod, selects

NAMESPACES = {"a": {"team": "x"}, "b": {"team": "y"}}
WEB = Pod("a", {"app": "web"}, {"http": 8080})
DB = Pod("a", {"app": "db"})
OTHER = Pod("b", {"app": "web"})
OUTSIDE = "203.0.113.9"


def policy(selector, *, ingress=None, egress=None, types=("Ingress",), namespace="a"):
    spec = {"podSelector": selector, "policyTypes": list(types), "ingress": ingress, "egress": egress}
    return {"metadata": {"name": "p", "namespace": namespace}, "spec": {k: v for k, v in spec.items() if v is not None}}


def network(*policies) -> Network:
    return Network(policies, NAMESPACES)


ALL = policy({}, ingress=[{}], egress=[{}], types=("Ingress", "Egress"))


@pytest.mark.parametrize(
    ("policies", "source", "destination", "port", "refused"),
    [
        pytest.param([], OTHER, WEB, 80, "", id="no-policy-no-isolation"),
        pytest.param([policy({})], OTHER, WEB, 80, "Ingress of p", id="selected-without-rules-denies"),
        pytest.param([policy({}, namespace="b")], DB, WEB, 80, "", id="policies-are-of-a-namespace"),
        pytest.param([policy({"matchLabels": {"app": "db"}})], OTHER, WEB, 80, "", id="only-selected-pods"),
        pytest.param([policy({}), ALL], OTHER, WEB, 80, "", id="policies-add-up"),
        pytest.param([policy({}, types=("Egress",))], OTHER, WEB, 80, "", id="the-other-direction-is-free"),
        pytest.param([policy({}, types=("Egress",))], WEB, OTHER, 80, "Egress of p", id="egress-denied"),
        pytest.param(
            [policy({}, egress=[{}], types=("Egress",)), policy({}, namespace="b")],
            WEB,
            OTHER,
            80,
            "Ingress of p",
            id="both-ends-must-agree",
        ),
        pytest.param(
            [policy({}, ingress=[{"from": [{"podSelector": {}}]}])], DB, WEB, 80, "", id="pod-selector-same-namespace"
        ),
        pytest.param(
            [policy({}, ingress=[{"from": [{"podSelector": {}}]}])],
            OTHER,
            WEB,
            80,
            "Ingress of p",
            id="pod-selector-not-another-namespace",
        ),
        pytest.param(
            [policy({}, ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]}])],
            OTHER,
            WEB,
            80,
            "",
            id="namespace-selector",
        ),
        pytest.param(
            [
                policy(
                    {}, ingress=[{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}}]}]
                )
            ],
            OTHER,
            WEB,
            80,
            "Ingress of p",
            id="one-peer-needs-both-selectors",
        ),
        pytest.param(
            [policy({}, egress=[{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}], types=("Egress",))],
            WEB,
            OUTSIDE,
            443,
            "",
            id="address-in-block",
        ),
        pytest.param(
            [
                policy(
                    {},
                    egress=[{"to": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": [f"{OUTSIDE}/32"]}}]}],
                    types=("Egress",),
                )
            ],
            WEB,
            OUTSIDE,
            443,
            "Egress of p",
            id="address-excepted",
        ),
        pytest.param(
            [policy({}, egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}], types=("Egress",))],
            WEB,
            OTHER,
            443,
            "Egress of p",
            id="a-block-is-not-taken-for-pods",
        ),
        pytest.param([policy({}, ingress=[{"ports": [{"port": 80}]}])], OTHER, WEB, 80, "", id="port"),
        pytest.param([policy({}, ingress=[{"ports": [{"port": 80}]}])], OTHER, WEB, 81, "Ingress of p", id="no-port"),
        pytest.param([policy({}, ingress=[{"ports": [{"port": 80, "endPort": 90}]}])], OTHER, WEB, 85, "", id="range"),
        pytest.param([policy({}, ingress=[{"ports": [{"port": "http"}]}])], OTHER, WEB, 8080, "", id="named-port"),
        pytest.param(
            [policy({}, ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])],
            OTHER,
            WEB,
            80,
            "Ingress of p",
            id="protocol",
        ),
    ],
)
def test_a_connection_passes_as_the_specification_says(policies, source, destination, port, refused) -> None:
    assert network(*policies).refusal(source, destination, port) == refused


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ({"operator": "In", "values": ["web", "db"]}, True),
        ({"operator": "In", "values": ["db"]}, False),
        ({"operator": "NotIn", "values": ["db"]}, True),
        ({"operator": "Exists"}, True),
        ({"operator": "DoesNotExist"}, False),
    ],
    ids=lambda value: str(value.get("operator")) if isinstance(value, dict) else str(value),
)
def test_label_expressions(expression, matches) -> None:
    assert selects({"matchExpressions": [{"key": "app", **expression}]}, WEB.labels) is matches


def test_an_operator_that_does_not_exist_is_an_error() -> None:
    """Else a typo in a policy would read as a match or a mismatch."""
    with pytest.raises(ValueError, match="Sometimes"):
        selects({"matchExpressions": [{"key": "app", "operator": "Sometimes"}]}, {})
