"""Work that is lent out counts once, whatever happens to whoever has it."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.task_queue import LeaseTable

ANY = float("inf")


def test_shares_are_contiguous_and_even():
    leases = LeaseTable(7)
    assert leases.give({"a": ANY, "b": ANY, "c": ANY}) == {"a": (0, 1, 2), "b": (3, 4), "c": (5, 6)}
    assert LeaseTable(1).give({"a": ANY, "b": ANY}) == {"a": (0,)}


def test_nobody_gets_more_than_there_is_room_for_and_who_has_least_gets_most():
    leases = LeaseTable(4)
    assert leases.give({"a": 3}) == {"a": (0, 1, 2)}
    for _ in range(5):
        leases.add()
    assert leases.give({"a": 1, "b": 3, "c": 0}) == {"a": (3,), "b": (4, 5, 6)}
    assert (leases.waiting, leases.lent, leases.held("a"), leases.held("c")) == (2, 7, 4, 0)


def test_what_a_dead_member_had_goes_to_another_first_and_counts_once():
    leases = LeaseTable(5)
    leases.give({"a": 2, "b": 2})
    leases.take(2, "c")
    assert leases.revoke("a") == (0, 1)
    assert leases.give({"b": 2}) == {"b": (0, 1)}
    leases.take(0, "late")  # from a, which was not dead after all
    leases.take(0, "again")
    leases.take(1, "b")
    assert leases.collect() == {2: "c", 0: "late", 1: "b"}
    assert leases.attempts == {3: 1}
    assert leases.held("b") == 1


def test_what_is_called_off_is_not_taken():
    leases = LeaseTable(2)
    leases.give({"a": 1})
    leases.call_off()
    leases.take(0, "x")
    assert (leases.open, leases.collect(), leases.add()) == (False, {}, 2)


@given(
    st.integers(1, 12),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["back", "part", "dies", "late", "gives back"])), max_size=40
    ),
)
def test_every_item_is_done_exactly_once_however_members_behave(count, story):
    leases, late, done = LeaseTable(count), [], {}
    has: dict[str, list[int]] = {member: [] for member in "abc"}
    for member, fate in [*story, *[(m, "back") for m in "abc"] * (count + 1)]:
        for name, items in leases.give(dict.fromkeys("abc", 2)).items():
            has[name] += items
        items = has[member]
        if fate == "gives back" and items:
            leases.give_back(items.pop())
        elif fate in ("back", "part"):
            for item in items[: None if fate == "back" else 1]:
                leases.take(item, item)
            has[member] = [] if fate == "back" else items[1:]
        elif fate in ("dies", "late"):
            leases.revoke(member)
            late += items if fate == "late" else []
            has[member] = []
        for item, result in leases.collect().items():
            assert item not in done
            done[item] = result
    for item in late:
        leases.take(item, "late")
    assert leases.collect() == {}
    assert not leases.open
    assert done == {item: item for item in range(count)}
