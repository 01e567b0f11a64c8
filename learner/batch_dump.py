"""A batch kept on disk, to look at what made a loss or a gradient other than finite. Parquet, a line a row."""

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
"""item: which one of the batch, from 0. place: of a row in its pair, 0 the chosen and 1 the rejected; 0 for a row by
itself, which has no pair_weight. The others: `learner.micro_batches.TrainingSample`; values that are not finite stay
as they are."""


@dataclass(frozen=True, kw_only=True)
class BatchDump:
    items: list[Item]
    mix: float
    """λ of the step."""
    version: int
    """The weight version that the step was to make."""
    reason: str
    """What was not finite."""


def write_batch(path: Path, batch: BatchDump) -> None:
    """Written aside and renamed, so that a file under this name is whole."""
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    for number, item in enumerate(batch.items):
        for place, row in enumerate(item.rows):
            columns["item"].append(number)
            columns["place"].append(place)
            columns["pair_weight"].append(item.weight if isinstance(item, TrainingPair) else None)
            columns["features"].append(row.features)
            columns["anchor_weight"].append(row.anchor_weight)
            for name, kind in ARRAYS.items():
                values = getattr(row, name)
                columns[name].append(None if values is None else np.asarray(values, dtype=kind))
            for name in TUPLES:
                columns[name].append([float(value) for value in getattr(row, name)])
    # from_pandas=False, the default of pa.array: NaN stays NaN, it is what is looked for.
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    facts = {"mix": repr(float(batch.mix)), "version": str(batch.version), "reason": batch.reason}
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(facts)), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_batch(path: Path) -> BatchDump:
    """What `write_batch` wrote. Raises InputError when the file is missing, damaged or another."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        items = _items(table.to_pylist())
        return BatchDump(items=items, mix=float(facts["mix"]), version=int(facts["version"]), reason=facts["reason"])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a whole file of a batch: {' '.join(str(error).split())}") from error


def _items(rows: Sequence[dict]) -> list[Item]:
    items: list[Item] = []
    for line in rows:
        parts: dict[str, Any] = {name: tuple(line[name]) for name in TUPLES}
        parts |= {n: None if line[n] is None else np.array(line[n], dtype=kind) for n, kind in ARRAYS.items()}
        row = TrainingSample(anchor_weight=line["anchor_weight"], features=line["features"], **parts)
        if line["pair_weight"] is None:
            items.append(row)
        elif line["place"] == 0:
            items.append(TrainingPair(chosen=row, rejected=row, weight=line["pair_weight"]))
        else:
            items[-1] = TrainingPair(chosen=items[-1].rows[0], rejected=row, weight=line["pair_weight"])
    return items
