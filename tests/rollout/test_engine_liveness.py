"""A real vLLM engine in a process of its own: when it dies its worker says so, and it goes where its worker goes."""

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayTaskError
from safetensors.torch import load_file

from cluster.monitored_actor import find_identity, stacks_of
from cluster.waiting import ActorUnusable, SyncInterrupted
from data.records import read_prompts
from rollout.vllm_engine import RolloutRequest, SamplingConfig
from rollout.worker import RolloutWorker, WeightCheck
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.chaos.members import members
from tests.rollout.examples import engine_settings
from weight_sync.broadcast import BroadcastSender
from weight_sync.senders import FileEntry
from weight_sync.update import WeightUpdate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.xdist_group("rollout life")]
SAMPLING = SamplingConfig(temperature=0.8, max_tokens=150)


@pytest.fixture(scope="module")
def prompts(world):
    return read_prompts(world / "data/train.parquet", Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens))[:8]


def orders(prompts, size: int) -> list[RolloutRequest]:
    return [
        RolloutRequest(number=number, prompt=prompt, group_size=size, sampling=SAMPLING, seed=number)
        for number, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def worker(world, prompts):
    settings = engine_settings(world, in_process=False)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    remote = ray.remote(RolloutWorker).options(num_cpus=1, runtime_env=one_thread)
    made = remote.remote("w", settings, PLAYGROUND, 0, "127.0.0.1", ray.util.get_node_ip_address())
    ray.get(made.warm_up.remote(prompts[:1], 2, SAMPLING), timeout=500)
    yield made
    ray.shutdown()


def test_a_worker_serves_what_its_engine_counts_though_that_is_another_process(worker, prompts):
    def counted() -> dict[str, float]:
        port = ray.get(worker.state.remote(), timeout=60)["metrics"]
        with urllib.request.urlopen(f"http://127.0.0.1{port}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        totals: dict[str, float] = {}
        for sample in (sample for family in families for sample in family.samples):
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    before = counted()
    drawn = ray.get(worker.run_for.remote(orders(prompts, 4), 60.0), timeout=80)
    after = counted()
    tokens = sum(len(reply.token_ids) for _, reply in drawn.replies)
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] == tokens
    assert after["vllm:request_success_total"] - before["vllm:request_success_total"] == 32
    assert after["vllm:num_requests_running"] == 0
    assert "vllm:kv_cache_usage_perc" in after
    assert after["process_resident_memory_bytes"] > 0


def test_weights_that_come_while_replies_are_drawn_lose_none(worker, prompts, world):
    """The engine draws by itself, in a process of its own, and stands still for them. They come through Ray's object
    store, of which that process knows nothing."""
    first = ray.get(worker.run_for.remote(orders(prompts, 8), 0.02), timeout=60)
    ids = prompts[0].token_ids
    probe = WeightCheck(sequences=[ids], logps=[np.zeros(len(ids) - 1, np.float32)])
    file = np.fromfile(world / "base/model.safetensors", np.uint8)
    parcel = WeightUpdate(version=3, size=len(file), whole=True, pieces=(ray.put([file[:1000], file[1000:]]),))
    report = ray.get(worker.update.remote(parcel, None, probe), timeout=60)
    assert report.version == 3
    rest = ray.get(worker.run_for.remote([], 60.0), timeout=80)
    replies = [reply for _, reply in (*first.replies, *rest.replies)]
    assert sorted((r.prompt_id, r.index) for r in replies) == sorted((p.id, i) for p in prompts for i in range(8))
    assert any((r.weight_version, r.newest_version) == (0, 3) for _, r in rest.replies)
    assert max(r.newest_version for _, r in rest.replies) == 3


def test_an_engine_with_a_part_of_a_broadcast_stands_still_until_the_rest_comes(worker, prompts, world):
    file = load_file(world / "base/model.safetensors")
    names = sorted(file)
    tensors = [{name: file[name] for name in names[place::3]} for place in range(3)]
    entries = [[FileEntry.from_tensor(name, tensor) for name, tensor in group.items()] for group in tensors]
    sender = BroadcastSender("127.0.0.1", torch.device("cpu"))
    announced = sender.prepare(entries, 4, whole=True)
    ids = prompts[0].token_ids
    before = worker.__ray_call__.remote(lambda worker: worker._engine.probe([ids]))
    probe = WeightCheck(sequences=[ids], logps=ray.get(before, timeout=60))

    def update(number: int, groups: Iterator) -> tuple[ray.ObjectRef, str | None]:
        call = replace(announced.call, number=number, receivers=("w/0",), timeout_s=10.0)
        return worker.update.remote(replace(announced, call=call), None, probe), sender.send(entries, groups, call)

    def broken() -> Iterator[dict[str, torch.Tensor]]:
        yield tensors[0]
        sender.close()  # the process group, not the store
        yield tensors[1]

    first = ray.get(worker.run_for.remote(orders(prompts, 8), 0.02), timeout=60)
    answer, reason = update(1, broken())
    assert reason == "group 1 is closed"
    with pytest.raises(RayTaskError, match="1 of 3 groups arrived: group 1") as caught:
        ray.get(answer, timeout=60)
    assert isinstance(caught.value.cause, SyncInterrupted)
    answer, reason = update(2, iter(tensors))
    report = ray.get(answer, timeout=60)
    assert (report.version, reason) == (4, None)
    assert report.logprob_diff < 1e-4  # before and after, the engine had the same weights
    rest = ray.get(worker.run_for.remote([], 60.0), timeout=80)
    replies = [reply for _, reply in (*first.replies, *rest.replies)]
    assert sorted((r.prompt_id, r.index) for r in replies) == sorted((p.id, i) for p in prompts for i in range(8))
    assert any((r.weight_version, r.newest_version) == (3, 4) for _, r in rest.replies)
    sender.close()


def test_a_worker_whose_engine_dies_says_so_whatever_it_does(worker, prompts):
    pid = find_identity(worker).pid
    [engine] = [p.pid for p in members(psutil.Process())["engine"]]
    # What the raylet kills when a worker dies is its process group, so that an engine does not outlive its worker.
    group = {os.getpgid(p) for p in (engine, *(c.pid for c in psutil.Process(engine).children(recursive=True)))}
    assert group == {os.getpgid(pid)} == {pid}

    answer = worker.run_for.remote(orders(prompts, 32), 60.0)
    time.sleep(0.3)
    text = stacks_of(worker)
    assert "in run_for" in text, "the worker's own stacks"
    assert ", child: " in text
    os.kill(engine, signal.SIGKILL)
    again = worker.run_for.remote(orders(prompts[:1], 2), 60.0)
    parcel = WeightUpdate(version=1, size=0, whole=True, path=Path("none.safetensors"))
    update = worker.update.remote(parcel, None, WeightCheck(sequences=[], logps=[]))
    for refused in (answer, again, update):
        with pytest.raises(RayTaskError, match=f"w has lost its engine: engine process {engine} ") as caught:
            ray.get(refused, timeout=60)
        assert isinstance(caught.value.cause, ActorUnusable)
