"""Every task counts once, even if its actor dies or answers late."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.task_queue import LeaseTable

ANY = float("inf")


def test_shares_are_contiguous_and_even():
    leases = LeaseTable(7)
    assert leases.assign({"a": ANY, "b": ANY, "c": ANY}) == {"a": (0, 1, 2), "b": (3, 4), "c": (5, 6)}
    assert LeaseTable(1).assign({"a": ANY, "b": ANY}) == {"a": (0,)}


def test_assignment_respects_capacity_and_balances_actors():
    leases = LeaseTable(4)
    assert leases.assign({"a": 3}) == {"a": (0, 1, 2)}
    for _ in range(5):
        leases.add()
    assert leases.assign({"a": 1, "b": 3, "c": 0}) == {"a": (3,), "b": (4, 5, 6)}
    assert (leases.queued, leases.in_flight, leases.num_held("a"), leases.num_held("c")) == (2, 7, 4, 0)


def test_tasks_of_a_dead_actor_are_assigned_first_and_count_once():
    leases = LeaseTable(5)
    leases.assign({"a": 2, "b": 2})
    leases.complete(2, "c")
    assert leases.requeue("a") == (0, 1)
    assert leases.assign({"b": 2}) == {"b": (0, 1)}
    leases.complete(0, "late")  # from a, which was not dead after all
    leases.complete(0, "again")
    leases.complete(1, "b")
    assert leases.collect() == {2: "c", 0: "late", 1: "b"}
    assert leases.attempts == {3: 1}
    assert leases.num_held("b") == 1


def test_results_of_cancelled_tasks_are_dropped():
    leases = LeaseTable(2)
    leases.assign({"a": 1})
    leases.cancel()
    leases.complete(0, "x")
    assert (leases.unfinished, leases.collect(), leases.add()) == (False, {}, 2)


@given(
    st.integers(1, 12),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["back", "part", "dies", "late", "releases"])), max_size=40
    ),
)
def test_every_task_is_done_exactly_once(count, story):
    leases, late, done = LeaseTable(count), [], {}
    has: dict[str, list[int]] = {member: [] for member in "abc"}
    for member, fate in [*story, *[(m, "back") for m in "abc"] * (count + 1)]:
        for name, items in leases.assign(dict.fromkeys("abc", 2)).items():
            has[name] += items
        items = has[member]
        if fate == "releases" and items:
            leases.release(items.pop())
        elif fate in ("back", "part"):
            for item in items[: None if fate == "back" else 1]:
                leases.complete(item, item)
            has[member] = [] if fate == "back" else items[1:]
        elif fate in ("dies", "late"):
            leases.requeue(member)
            late += items if fate == "late" else []
            has[member] = []
        for item, result in leases.collect().items():
            assert item not in done
            done[item] = result
    for item in late:
        leases.complete(item, "late")
    assert leases.collect() == {}
    assert not leases.unfinished
    assert done == {item: item for item in range(count)}
