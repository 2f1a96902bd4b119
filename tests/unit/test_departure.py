"""Which taints announce that a node is about to go."""

from __future__ import annotations

import pytest

from llmtrain_operator import departure


@pytest.mark.parametrize(
    ("taints", "notice"),
    [
        pytest.param((), "", id="none"),
        pytest.param(("karpenter.sh/disrupted:NoSchedule",), "karpenter.sh/disrupted:NoSchedule", id="karpenter"),
        pytest.param(
            ("nvidia.com/gpu:NoSchedule", "ToBeDeletedByClusterAutoscaler:NoSchedule"),
            "ToBeDeletedByClusterAutoscaler:NoSchedule",
            id="among-others",
        ),
        pytest.param(("node.kubernetes.io/unschedulable:NoSchedule",), "", id="a-cordon-is-none"),
        pytest.param(("DeletionCandidateOfClusterAutoscaler:PreferNoSchedule",), "", id="nor-is-a-candidate"),
        pytest.param(("karpenter.sh/disrupted-not:NoSchedule",), "", id="no-prefixes"),
    ],
)
def test_a_notice_is_a_taint_that_is_listed(taints, notice) -> None:
    """By its whole key; what keeps newcomers away is not meant for those who are there."""
    assert departure.notice(taints, departure.TAINTS) == notice


def test_without_a_list_there_are_no_notices() -> None:
    """An installation can do without."""
    assert departure.notice(("karpenter.sh/disrupted:NoSchedule",), ()) == ""


def test_only_a_preference_lets_pods_come_back() -> None:
    """The scheduler keeps pods off nodes with the other effects."""
    effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
    assert [departure.is_soft(f"k:{effect}") for effect in effects] == [False, True, False]
