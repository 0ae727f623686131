"""The state of cached tables in a file, and their weights as TorchRec reads them; both are out of core.

A state is a safetensors file. Each group G of tables has ``records.G`` [n, width] (weight and optimizer state of a row,
in words of 32 bits as they are kept) and ``rows.G`` [n] int64, in order, which rows these are: those that were touched.
A group some of whose initial weights were given has all its rows. The header says what the state is of.
``checksum`` [1] is the CRC-32 of that and of all the numbers before it.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write, whole_file
from cachedlrm.export.formats.piecewise import PiecewiseTensor
from cachedlrm.export.formats.safetensors_file import TensorSpec, write_tensors
from cachedlrm.export.formats.torchrec import CONFIG_FILE, FUSED_OPTIMIZERS, MODEL_FILE
from cachedlrm.export.full_tables import FullTable, Records, TouchedRecords, chunk_rows
from cachedlrm.library.engine import Engine, SavedGroup
from cachedlrm.store.records import OPTIMIZERS

_FORMAT = "2"
"""Version of the file; one of another version is refused."""

_DAMAGED = "use another copy of the file"


def save_tables(engine: Engine, path: Path, counts: Mapping[str, int]) -> None:
    """Writes the state of tables of which no batch is being prepared.

    Args:
        engine: their cache.
        path: file to write.
        counts: numbers to keep beside it.

    Raises:
        UserError: it cannot be written.
    """
    groups = saved_groups(engine)
    specs: dict[str, TensorSpec] = {}
    for number, (rows, _) in enumerate(groups):
        specs[f"rows.{number}"] = (np.dtype(np.int64), (len(rows),))
        specs[f"records.{number}"] = (np.dtype(np.float32), (len(rows), engine.layouts[number].width))
    specs["checksum"] = (np.dtype(np.int64), (1,))
    metadata = {**identity(engine), "seed": str(engine.seed), "counts": json.dumps(dict(counts))}

    def chunks() -> Iterator[NDArray[np.generic]]:
        for (rows, records), layout in zip(groups, engine.layouts, strict=True):
            yield rows
            step = chunk_rows(layout.width)
            for first in range(0, len(rows), step):
                yield records(first, min(first + step, len(rows)))

    def summed() -> Iterator[NDArray[np.generic]]:
        checksum = _header_checksum(metadata)
        for chunk in map(np.ascontiguousarray, chunks()):
            checksum = zlib.crc32(chunk.data, checksum)
            yield chunk
        yield np.array([checksum])

    write_tensors(path, specs, summed(), metadata)


def _header_checksum(metadata: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def saved_groups(engine: Engine) -> list[SavedGroup]:
    """The rows of each group that make its state, in order, and their records."""
    groups = []
    for number, (of, saved) in enumerate(zip(engine.tables.groups, engine.touched(), strict=True)):
        if engine.given.isdisjoint(of.tables):
            groups.append(saved)
        else:
            all_records = TouchedRecords(engine.cache.groups[number].init, *saved, engine.layouts[number].width)
            groups.append((np.arange(engine.shapes[number].num_rows), all_records.between))
    return groups


def identity(engine: Engine) -> dict[str, str]:
    """The header of a state, which must agree with that of these tables."""
    return {
        "cachedlrm": "tables",
        "format": _FORMAT,
        "tables": json.dumps(engine.tables.identity()),
        "optimizer": engine.layouts[0].optimizer,
        "row_dtype": engine.layouts[0].row_dtype,
        "row_state_dtype": engine.layouts[0].state_dtype,
    }


def load_tables(engine: Engine, path: Path) -> dict[str, int]:
    """Takes over a state.

    Args:
        engine: the cache.
        path: what `save_tables` wrote.

    Returns:
        The numbers that were kept beside it.

    Raises:
        UserError: there is none, it is damaged, or of other tables.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; name what save wrote")
    try:
        file: Any = safe_open(str(path), framework="numpy")  # stays open for the slices
        metadata = file.metadata() or {}
        _check_identity(path, metadata, identity(engine))
        counts = json.loads(metadata["counts"])
        seed = int(metadata["seed"])
        steps, loops = int(counts["steps"]), int(counts["loops"])
        groups = []
        for number, (shape, of) in enumerate(zip(engine.shapes, engine.cache.groups, strict=True)):
            rows, records = (file.get_slice(f"{name}.{number}") for name in ("rows", "records"))
            found = [(part.get_dtype(), list(part.get_shape())) for part in (rows, records)]
            num_rows = found[0][1][0]
            if found != [("I64", [num_rows]), ("F32", [num_rows, shape.layout.width])]:
                raise ValueError(f"group {number} has {found}")
            _check_rows(rows, num_rows, shape.num_rows)
            if num_rows > of.store.capacity_rows:
                raise UserError(
                    f"{path} has {num_rows:,} rows of {shape.layout.record_bytes} bytes and host memory may hold "
                    f"{of.store.capacity_rows:,}; raise host_bytes or host_budget, or keep rows on disk with "
                    "store='lmdb'"
                )
            groups.append((rows, records, num_rows, chunk_rows(shape.layout.width)))
        checksum = _header_checksum(metadata)
        for rows, records, num_rows, step in groups:
            for of_tensor in (rows, records):
                for first in range(0, num_rows, step):
                    checksum = zlib.crc32(of_tensor[first : min(first + step, num_rows)].data, checksum)
        if file.get_tensor("checksum").tolist() != [checksum]:
            raise ValueError("its checksum is not that of its numbers")
        with engine.whole_or_broken():
            engine.seed = seed
            engine.take_weights({})
            engine.open()
            for number, (rows, records, num_rows, step) in enumerate(groups):
                bounds = [(first, min(first + step, num_rows)) for first in range(0, num_rows, step)]
                engine.put(number, ((rows[first:last], records[first:last]) for first, last in bounds))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is damaged or not what save wrote: {error}; {_DAMAGED}") from error
    return {"steps": steps, "loops": loops}


def _check_identity(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    if found.get("cachedlrm") != expected["cachedlrm"]:
        raise UserError(f"{path} is not what save of a collection wrote; name another file")
    for name, value in expected.items():
        if found.get(name) != value:
            raise UserError(f"{path} is of {name} {found.get(name)}, these tables of {value}; name another file")


def _check_rows(rows: Any, num_saved: int, num_rows: int) -> None:
    """Whether rows are those of a group, in order."""
    before = -1
    for first in range(0, num_saved, 1 << 20):
        part = rows[first : min(first + (1 << 20), num_saved)]
        if part[0] <= before or (np.diff(part) <= 0).any() or part[-1] >= num_rows:
            raise ValueError("rows are not in order, each once")
        before = int(part[-1])


def full_records(engine: Engine) -> list[Records]:
    """The records of all rows of each group, those never touched included."""
    return [
        TouchedRecords(group.init, *saved, group.layout.width)
        for group, saved in zip(engine.cache.groups, engine.touched(), strict=True)
    ]


def export_tables(engine: Engine, folder: Path, learning_rate: float) -> None:
    """Writes a folder as `cachedlrm.export.formats.torchrec` does, for tables alone.

    Raises:
        UserError: it cannot be written, or is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there; name a folder to make")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    optimizer = engine.layouts[0].optimizer
    tensors: dict[str, PiecewiseTensor] = {}
    records = full_records(engine)
    for number, table in enumerate(engine.tables.tables):
        group = engine.tables.group_of(number)
        layout, dim = engine.layouts[group], table.embedding_dim
        name = f"{prefix(engine)}.{table.name}"
        first_row = engine.tables.first_rows[number]
        full = FullTable(f"{name}.weight", "", first_row, table.num_embeddings, layout, records[group])
        tensors[full.name] = full.tensor(slice(0, dim))
        if layout.state_width and optimizer != "adam":  # whose lazy moments TorchRec's Adam does not continue
            columns = dim if OPTIMIZERS[optimizer].by_row else slice(dim, 2 * dim)
            tensors[f"{name}.momentum1"] = full.tensor(columns)
    specs: dict[str, TensorSpec] = {name: (np.dtype(np.float32), tensor.shape) for name, tensor in tensors.items()}
    pieces = (piece for tensor in tensors.values() for piece in tensor.pieces())
    write_tensors(folder / MODEL_FILE, specs, pieces, {"format": "pt"})
    config = {
        "tables": [
            {
                **of,
                "feature_names": list(table.feature_names),
                **({"pooling": "MEAN"} if table.pooling == "mean" else {}),
            }
            for of, table in zip(engine.tables.identity(), engine.tables.tables, strict=True)
        ],
        "model": None,
        "dlrm": None,
        "optimizer": FUSED_OPTIMIZERS[optimizer],
        "learning_rate": learning_rate,
    }
    with whole_file(folder / CONFIG_FILE) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def prefix(engine: Engine) -> str:
    """Of the names of weights in TorchRec's state dicts."""
    return "embedding_bags" if engine.tables.pools else "embeddings"
