"""Dump of a training batch to Parquet, one line per row, to find what made a loss or gradient non-finite."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import InputError
from learner.micro_batches import Item, TrainingPair, TrainingSample

COLUMNS = {"behaviour": "rollout_logprobs"}
"""Columns that are named otherwise than the field of `TrainingSample`."""
ARRAYS = {
    "prompt_ids": np.int32,
    "reply_ids": np.int32,
    "channels": np.int8,
    "allowed": np.int8,
    "behaviour": np.float32,
}
TUPLES = ("advantages", "weights", "kl_weights")
SCHEMA = pa.schema(
    [
        pa.field("item", pa.int64(), nullable=False),
        pa.field("place", pa.int8(), nullable=False),
        pa.field("pair_weight", pa.float64()),
        *(pa.field(name, pa.list_(pa.from_numpy_dtype(kind))) for name, kind in ARRAYS.items()),
        pa.field("features", pa.string()),
        pa.field("anchor_weight", pa.float64(), nullable=False),
        *(pa.field(name, pa.list_(pa.float64()), nullable=False) for name in TUPLES),
    ]
)
"""item: index in the batch. place: 0 for the chosen and 1 for the rejected row of a pair; 0 for a single row, which has
no pair_weight. Other columns: see `learner.micro_batches.TrainingSample`. Non-finite values are stored as they are."""


@dataclass(frozen=True, kw_only=True)
class BatchDump:
    items: list[Item]
    mix: float
    """λ of the step."""
    version: int
    """The weight version that the step would have produced."""
    reason: str
    """What was not finite, such as "gradient"."""


def write_batch(path: Path, batch: BatchDump) -> None:
    """Write the batch aside and rename it, so that a file under this name is complete."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for number, item in enumerate(batch.items):
        for place, row in enumerate(item.rows):
            columns["item"].append(number)
            columns["place"].append(place)
            columns["pair_weight"].append(item.weight if isinstance(item, TrainingPair) else None)
            columns["features"].append(row.features)
            columns["anchor_weight"].append(row.anchor_weight)
            for name, kind in ARRAYS.items():
                values = getattr(row, COLUMNS.get(name, name))
                columns[name].append(None if values is None else np.asarray(values, dtype=kind))
            for name in TUPLES:
                columns[name].append([float(value) for value in getattr(row, name)])
    # from_pandas=False, the default of pa.array, keeps NaN instead of writing null.
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    facts = {"mix": repr(float(batch.mix)), "version": str(batch.version), "reason": batch.reason}
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(facts)), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_batch(path: Path) -> BatchDump:
    """Read what `write_batch` wrote. Raises InputError if the file is missing, damaged or not a batch."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        items = _items(table.to_pylist())
        return BatchDump(items=items, mix=float(facts["mix"]), version=int(facts["version"]), reason=facts["reason"])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a complete batch dump: {' '.join(str(error).split())}") from error


def _items(rows: Sequence[dict]) -> list[Item]:
    items: list[Item] = []
    for line in rows:
        parts: dict[str, Any] = {name: tuple(line[name]) for name in TUPLES}
        for name, kind in ARRAYS.items():
            parts[COLUMNS.get(name, name)] = None if line[name] is None else np.array(line[name], dtype=kind)
        row = TrainingSample(anchor_weight=line["anchor_weight"], features=line["features"], **parts)
        if line["pair_weight"] is None:
            items.append(row)
        elif line["place"] == 0:
            items.append(TrainingPair(chosen=row, rejected=row, weight=line["pair_weight"]))
        else:
            items[-1] = TrainingPair(chosen=items[-1].rows[0], rejected=row, weight=line["pair_weight"])
    return items
