"""Work that is lent out counts once, whatever happens to whoever has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.leases import Leases


def test_shares_are_contiguous_and_even():
    leases = Leases(7)
    given_ = leases.give(["a", "b", "c"], 0.0, 10.0)
    assert [lease.items for lease in given_] == [(0, 1, 2), (3, 4), (5, 6)]
    assert leases.busy(["a", "d"]) == {"a"}
    assert Leases(1).give(["a", "b"], 0.0, 1.0)[0].items == (0,)


def test_what_a_dead_member_had_goes_to_another_first_and_counts_once():
    leases = Leases(4)
    one, two = leases.give(["a", "b"], 0.0, 10.0)
    leases.take(two, ["c", "d"])
    assert leases.revoke("a") == (0, 1)
    [again] = leases.give(["b"], 1.0, 10.0)
    leases.take(one, ["late", "late"])
    leases.take(again, ["a", "b"])
    assert leases.results() == ["late", "late", "c", "d"]
    assert leases.attempts == [2, 2, 1, 1]


def test_a_lease_is_overdue_at_its_deadline():
    leases = Leases(2)
    leases.give(["a", "b"], 5.0, 10.0)
    assert leases.overdue(14.9) == []
    assert leases.overdue(15.0) == ["a", "b"]


def test_results_must_be_one_an_item_and_all_there():
    leases = Leases(2)
    [lease] = leases.give(["a"], 0.0, 1.0)
    with pytest.raises(ValueError, match="lent 2 items and brought 1 results"):
        leases.take(lease, ["x"])
    with pytest.raises(RuntimeError, match="2 of 2 items are not done"):
        leases.results()


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["back", "dies", "late"])), max_size=40),
)
def test_every_item_is_done_exactly_once_however_members_behave(count, story):
    leases, old = Leases(count), []
    lent = {}
    for member, fate in [*story, *[(m, "back") for m in "abc"] * (count + 1)]:
        idle = [m for m in "abc" if m not in leases.busy("abc")]
        lent |= {lease.member: lease for lease in leases.give(idle, 0.0, 1.0)}
        lease = lent.pop(member, None)
        if lease is None:
            continue
        if fate == "back":
            leases.take(lease, [("done", item) for item in lease.items])
        else:
            leases.revoke(member)
            old += [lease] if fate == "late" else []
    for lease in old:
        leases.take(lease, [("late", item) for item in lease.items])
    assert not leases.open
    assert [item for _, item in leases.results()] == list(range(count))
