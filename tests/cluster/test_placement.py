"""Held resources: for all ranks of a learner or for none, and for no other actor."""

import os

import pytest
import ray

from cluster.actor_pool import ActorPool
from cluster.placement import Placement, missing_resources
from cluster.pool_calls import ActorPoolConfig
from cluster.replica_state import ReplicaState
from tests.cluster.conftest import CPUS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.xdist_group("cluster")]
RANK = {"CPU": CPUS - 0.5}
"""Leaves room for half a CPU of something else on a node."""


class Idle:
    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os._exit(1)


@pytest.fixture(scope="module")
def nodes(cluster):
    """Two nodes of as many CPUs; one of them has something special."""
    second = cluster.add_node(num_cpus=CPUS, resources={"special": 2})
    yield
    cluster.remove_node(second)


def put(place: Placement, bundle: int = 0):
    return ray.remote(Idle).options(**place.options(bundle)).remote()


def node_of(actor) -> str:
    return ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=60)


def test_ranks_lie_as_they_are_to_or_do_not_start(nodes):
    together = Placement("learner", RANK, RANK, strategy="STRICT_PACK")
    assert together.resources == {"CPU": 15.0}
    assert not together.wait(2)
    assert not together.held
    assert missing_resources(together.resources) == "no single node has enough free resources"
    together.release()
    apart = Placement("learner", RANK, RANK, strategy="STRICT_SPREAD")
    assert apart.wait(30)
    assert apart.held
    assert missing_resources({"CPU": 3.0}) == "it needs 3 CPU more than the cluster has free"
    assert len({node_of(put(apart, bundle)) for bundle in range(2)}) == 2
    apart.release()


def test_what_nodes_were_started_with_decides_who_goes_where(nodes):
    [special] = [node["NodeID"] for node in ray.nodes() if node["Alive"] and "special" in node["Resources"]]
    places = [Placement("rollout-0", {"CPU": 0.5, "GPU": 0.0, "special": 1.0}) for _ in range(3)]
    assert [place.wait(5) for place in places] == [True, True, False]
    actors = [put(place) for place in places[:2]]
    assert [node_of(actor) for actor in actors] == [special, special]
    places[0].release()
    assert places[2].wait(30)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actors[0].pid.remote(), timeout=60)
    for place in places[1:]:
        place.release()


def test_pools_grow_without_what_the_learner_needs(nodes):
    """A waiting start never gets the bundle of a dead rank."""
    ranks = Placement("learner", RANK, RANK)
    assert ranks.wait(30)
    pool = ActorPool(
        ActorPoolConfig(
            role="rollout", num_replicas=1, start_timeout_s=100.0, update_timeout_s=30.0,
            task_timeout_s=30.0, heartbeat_timeout_s=60.0, needs_update=False, resources={"CPU": 0.5},
        ),
        create=lambda name, place: put(place),
        warm_up=lambda actor: actor.pid.remote(),
        emit_event=lambda kind, **fields: None,
    )  # fmt: skip
    pool.start()
    first = put(ranks)
    ray.get(first.pid.remote(), timeout=60)
    pool.resize(4)  # two fit, two do not

    def work() -> None:
        pool.run(["an item"], lambda actor, items: actor.__ray_call__.remote(lambda _: [1]), "working")

    while len(pool.names) < 2:
        work()
    first.die.remote()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(first.pid.remote(), timeout=60)
    for _ in range(5):
        work()
    ray.get(put(ranks).pid.remote(), timeout=60)  # a replacement of the rank starts at once
    work()
    assert (len(pool.names), len(pool.replicas.names_in(ReplicaState.STARTING))) == (2, 2)
    pool.stop()
    ranks.release()
