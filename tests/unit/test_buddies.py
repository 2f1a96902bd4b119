"""Who keeps copies of whose snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_operator.buddies import choose


def places(*texts):
    return [tuple(text.split("/")) for text in texts]


@pytest.mark.parametrize(
    ("where", "level"),
    [
        (places("a/r1/n1", "a/r1/n2", "b/r2/n3", "b/r2/n4"), 0),
        (places("a/r1/n1", "a/r1/n2", "a/r2/n3", "a/r2/n4"), 1),
        (places("//n1", "//n1", "//n2", "//n2"), 2),
        (places("a//1", "a//2", "a//3", "b//4", "b//5", "b//6", "c//7", "c//8", "c//9"), 0),
        (places("//A", "//A", "//B", "//C"), 2),
        (places("//A", "//A", "//A", "//B", "//B", "//C"), 2),
        (places("a//1", "a//1", "a//2", "a//2", "a//3", "b//4", "b//4", "b//4"), 2),
    ],
    ids=["zones", "racks", "nodes", "three-zones", "one-node-of-two", "half-on-one-node", "uneven-zones"],
)
def test_a_copy_is_as_far_away_as_it_can_be(where, level):
    """In another zone where there are some, else in another rack, else on another node."""
    for rank, found in enumerate(choose(where)):
        assert where[rank][level] != where[found[0]][level]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from("nmo")), max_size=40))
def test_everyone_keeps_as_many_copies_as_everyone_else(where):
    """The first choices are a permutation, and so are the second: no member's memory is asked for more than others'."""
    found = choose(where)
    assert len(found) == len(where)
    for place in range(min(2, len(where) - 1)):
        assert sorted(each[place] for each in found) == list(range(len(where)))
    for rank, each in enumerate(found):
        assert rank not in each
        assert len(set(each)) == len(each)


@given(st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=24))
def test_none_keeps_its_copy_on_its_own_node_where_that_can_be_avoided(nodes):
    """It can as long as no node has more than half of the members."""
    found = choose([("", "", node) for node in nodes])
    stay = sum(nodes[rank] == nodes[buddies[0]] for rank, buddies in enumerate(found))
    largest = max(nodes.count(node) for node in nodes)
    assert stay <= max(0, 2 * largest - len(nodes))


def test_a_member_alone_has_no_buddy():
    """And nobody has none."""
    assert choose([("", "", "n")]) == ((),)
    assert choose([]) == ()


def test_a_thousand_members_take_no_time():
    """It is done while a round is formed."""
    found = choose([(f"z{number % 3}", f"r{number % 50}", f"n{number}") for number in range(5000)])
    assert len(found) == 5000
