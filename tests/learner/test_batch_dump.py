import numpy as np
import pytest

from common.errors import InputError
from learner.batch_dump import BatchDump, read_batch, write_batch
from learner.micro_batches import Item, TrainingPair, TrainingSample


def row(**changes) -> TrainingSample:
    fields = {
        "prompt_ids": np.array([1, 2, 3], dtype=np.int32),
        "reply_ids": np.array([7, 8], dtype=np.int32),
        "channels": np.array([0, 2], dtype=np.int8),
    }
    return TrainingSample(**(fields | changes))


ITEMS: list[Item] = [
    row(
        allowed=np.array([1, 31], dtype=np.int8),
        rollout_logprobs=np.array([np.nan, -np.inf], dtype=np.float32),
        advantages=(0.1, float("inf")),
        weights=(1 / 3, 1e-30),
        kl_weights=(0.2, 0.3),
    ),
    TrainingPair(chosen=row(), rejected=row(reply_ids=np.array([9], dtype=np.int32)), weight=0.25),
    row(anchor_weight=1 / 7),
]


def test_a_batch_comes_back_as_it_was(tmp_path):
    path = tmp_path / "step.parquet"
    write_batch(path, BatchDump(items=ITEMS, mix=1 / 3, version=12, reason="loss of learner-1"))
    found = read_batch(path)
    assert (found.mix, found.version, found.reason) == (1 / 3, 12, "loss of learner-1")
    assert [type(item) for item in found.items] == [type(item) for item in ITEMS]
    assert found.items[1].weight == 0.25
    for one, other in zip(ITEMS, found.items, strict=True):
        for before, after in zip(one.rows, other.rows, strict=True):
            for name, value in vars(before).items():
                if isinstance(value, np.ndarray):
                    assert getattr(after, name).dtype == value.dtype
                    np.testing.assert_array_equal(getattr(after, name), value)
                else:
                    assert getattr(after, name) == value, name
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_a_batch_is_rejected_by_name(tmp_path):
    path = tmp_path / "step.parquet"
    with pytest.raises(InputError, match=r"step\.parquet"):
        read_batch(path)
    write_batch(path, BatchDump(items=ITEMS, mix=0.0, version=1, reason=""))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"step\.parquet"):
        read_batch(path)
