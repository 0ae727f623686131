"""The final state of a run, for `python -m cachedlrm.export`: rows and dense parameters.

Rows that were never touched are not written if their initial records can be computed again; those of a loaded model
are, so that the file may change. A safetensors file with, for each group of tables G, ``rows.G`` [n] int64 (global over
the group, in order) and ``records.G`` [n, width] float32 (weight, pooling weight if there is one, optimizer state), or
``records.G`` alone with all rows in order, and the dense parameters under the reference's names with their optimizer's
state, ``optimizer.KEY.NAME``. Records that hold numbers of 16 bits are int32, the words of `cachedlrm.store.packing`.

The header says which it is (``rows``: ``touched`` or ``all``) and what the tensors belong to: the options that decide
their shapes and how untouched rows begin, spelled as in ``config.toml``, and the vocabulary of the rows. It also says
after which step of the run the state is, and how often its parameters were moved.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.table_group import TableGroup
from cachedlrm.data.vocabulary import Vocabulary
from cachedlrm.export.formats.safetensors_file import DTYPES, TensorSpec, write_tensors
from cachedlrm.export.full_tables import chunk_rows, current_records
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.options.architecture import Architecture
from cachedlrm.options.profiles import spell
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import OTHER_RUN_DIR
from cachedlrm.store.environment import VOCABULARY
from cachedlrm.store.host import RecordsBetween
from cachedlrm.store.packing import word_dtype
from cachedlrm.store.records import OPTIONS_BEFORE
from cachedlrm.store.spool import PLACE_BYTES

FILE_NAME = "final.safetensors"
_ROW_BYTES = 8  # of a row's number
_PIECE_ROWS = 1 << 20
_STATE = "optimizer."
_STEP, _UPDATES, _BEGINNINGS, _BASES = "step", "updates", "beginnings", "vocabulary-bases"
_BESIDE_IDENTITY = (_STEP, _UPDATES, _BEGINNINGS, VOCABULARY, _BASES)
"""Names in the header that say nothing of what the tensors belong to."""


@dataclass(frozen=True)
class Beginning:
    """How the tables of a run began, for those who go on from it.

    Attributes:
        sizes: ``--arch-embedding-size``.
        seed: of initial weights.
        init: their kind, ``counter`` or ``reference``; ``saved``: all rows are in the file.
    """

    sizes: tuple[int, ...]
    seed: int
    init: Literal["counter", "reference", "saved"]


DenseState = Mapping[str, Mapping[str, Tensor]]
"""State of the dense parameters' optimizer, by parameter name and torch's key."""


def save_final_state(
    path: Path,
    cache: EmbeddingCache,
    model: Dlrm,
    options: Resolved,
    vocabulary: Vocabulary | None = None,
    *,
    dense_state: DenseState = MappingProxyType({}),
    step: int = 0,
    num_updates: int = 0,
    beginnings: Sequence[Beginning] = (),
    kept_rows: Sequence[Callable[[], NDArray[np.int64]]] | None = None,
) -> None:
    """Writes all trained state of a run that has no batch in flight; it may train on afterwards.

    Args:
        path: file to write.
        cache: tables.
        model: dense part.
        options: of the run, resolved.
        vocabulary: what the rows stand for; None: not on record.
        dense_state: of the dense parameters' optimizer.
        step: steps trained.
        num_updates: how often parameters moved, in the run whose state was loaded too.
        beginnings: of the runs before this one.
        kept_rows: of each group, gives the rows [n] in order that the run before it left; None: there is none.

    Raises:
        UserError: the file could not be written.
    """
    dense = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    for name, entry in dense_state.items():
        dense |= {f"{_STATE}{key}.{name}": value.detach().cpu().numpy() for key, value in entry.items()}
    specs: dict[str, TensorSpec] = {}
    all_rows = _keeps_all_rows(options)
    touched = [] if all_rows else [group.touched() for group in cache.groups]
    if kept_rows is not None:
        touched = [
            _with_kept(group, *one, kept()) for group, one, kept in zip(cache.groups, touched, kept_rows, strict=True)
        ]
    if all_rows:
        for number, group in enumerate(cache.groups):
            specs[f"records.{number}"] = (word_dtype(group.layout), (group.shape.num_rows, group.layout.width))
    else:
        for number, (group, (rows, _)) in enumerate(zip(cache.groups, touched, strict=True)):
            specs[f"rows.{number}"] = (rows.dtype, rows.shape)
            specs[f"records.{number}"] = (word_dtype(group.layout), (len(rows), group.layout.width))
    specs |= {name: (tensor.dtype, tensor.shape) for name, tensor in dense.items()}

    def chunks() -> Iterator[NDArray[np.generic]]:
        if all_rows:
            for group, records in zip(cache.groups, current_records(cache), strict=True):
                step = chunk_rows(group.layout.width)
                for first in range(0, group.shape.num_rows, step):
                    yield records.between(first, min(first + step, group.shape.num_rows))
        else:
            for group, (rows, records_between) in zip(cache.groups, touched, strict=True):
                yield rows
                step = chunk_rows(group.layout.width)
                for first in range(0, len(rows), step):
                    yield records_between(first, min(first + step, len(rows)))
        yield from dense.values()

    about = {**model_identity(options), _STEP: str(step), _UPDATES: str(num_updates)}
    if vocabulary is not None:
        about[VOCABULARY] = vocabulary.fingerprint
        if vocabulary.bases:
            about[_BASES] = msgspec.json.encode(vocabulary.bases).decode()
    if beginnings:
        about[_BEGINNINGS] = msgspec.json.encode(list(beginnings)).decode()
    write_tensors(path, specs, chunks(), about, OTHER_RUN_DIR)


def _with_kept(
    group: TableGroup, rows: NDArray[np.int64], records_between: RecordsBetween, kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], RecordsBetween]:
    """The rows that were touched, and those that the run before had left; both in order, as the result is."""
    is_there = np.zeros(group.shape.num_rows, bool)  # a sort of both would take several times their bytes
    is_there[rows] = is_there[kept] = True
    all_rows = np.flatnonzero(is_there)
    del is_there

    def between(first: int, last: int) -> NDArray[np.float32]:
        part = all_rows[first:last]
        records = np.empty((len(part), group.layout.width), np.float32)
        group.init.fill(part, records)
        if len(part):
            begin, end = np.searchsorted(rows, [part[0], part[-1] + 1])
            records[np.searchsorted(part, rows[begin:end])] = records_between(int(begin), int(end))
        return records

    return all_rows, between


def most_bytes(cache: EmbeddingCache, options: Resolved, num_lookups: int) -> tuple[int, int]:
    """The most bytes that the rows of a run's final state can take, and those of a temporary file beside the store.

    Args:
        cache: before the first step.
        options: of the run, resolved.
        num_lookups: the most that the run can make.
    """
    all_rows = _keeps_all_rows(options)
    is_spooled = options.store.store == "lmdb" and not all_rows
    total = temporary = 0
    for group in cache.groups:
        touched = min(group.store.capacity_rows, num_lookups)
        rows = group.shape.num_rows if all_rows else touched
        total += rows * (group.layout.record_bytes + _ROW_BYTES)
        temporary += rows * (group.layout.record_bytes + PLACE_BYTES) if is_spooled else 0
    return total, temporary


def _keeps_all_rows(options: Resolved) -> bool:
    return options.inference.load_model is not None


def model_identity(options: Resolved) -> dict[str, str]:
    """The options that decide the parameters' shapes and how untouched rows begin, spelled as in ``config.toml``."""
    spelled = spell(options)
    decisive = {
        **spelled["model"],
        "numpy-rand-seed": spelled["batches"]["numpy-rand-seed"],
        "optimizer": spelled["optimisation"].get("optimizer"),
        "row-dtype": options.optimisation.row_dtype,
        "row-state-dtype": options.optimisation.row_state_dtype,
        "init": spelled["store"].get("init"),
        "load-model": spelled["inference"].get("load-model"),
        "start-from": spelled["run"].get("start-from"),
        "rows": "all" if _keeps_all_rows(options) else "touched",
    }
    return {name: str(value) for name, value in decisive.items() if value is not None}


@dataclass(frozen=True)
class SavedGroup:
    """A group of tables in a finished run.

    Attributes:
        rows: [n] int64, those that were touched, in order; None: all.
        records: [n, width] words, or what gives such arrays for slices of rows, read from the file when asked.
    """

    rows: NDArray[np.int64] | None
    records: Any

    def between(self, first: int, last: int) -> NDArray[np.float32]:
        """Records of ``rows[first]`` to ``rows[last - 1]``, [last - first, width]."""
        records: NDArray[np.float32] = self.records[first:last].view(np.float32)
        return records


@dataclass(frozen=True)
class FinalState:
    """A finished run's state.

    Attributes:
        groups: of tables.
        dense: parameters by name.
        vocabulary: what the rows stand for, without its bases in files of earlier versions; None: not on record.
        dense_state: of the parameters' optimizer, by parameter name and torch's key; empty in files of earlier
            versions.
        num_updates: how often parameters moved; 0 in files of earlier versions.
        beginnings: of the runs that this one went on from.
    """

    groups: tuple[SavedGroup, ...]
    dense: dict[str, NDArray[np.float32]]
    vocabulary: Vocabulary | None
    dense_state: dict[str, dict[str, NDArray[np.float32]]]
    num_updates: int
    beginnings: tuple[Beginning, ...]


def load_final_state(run_dir: Path, options: Resolved, architecture: Architecture) -> FinalState:
    """Opens what `save_final_state` wrote.

    Args:
        run_dir: of the run.
        options: of its ``config.toml``.
        architecture: of these options.

    Raises:
        UserError: no such file (the run did not end), it is damaged, or it is of another run than ``config.toml``.
    """
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise UserError(f"{run_dir} holds no finished run ({FILE_NAME} is missing); let the run end first")
    try:
        file: Any = safe_open(str(path), framework="numpy")  # stays open for the slices
        about = file.metadata() or {}
        _check_header(run_dir, about, model_identity(options))
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        expected = _expected_tensors(options, architecture, found)
        state_names = [name for name in found if name.startswith(_STATE)]
        for name in sorted((found.keys() | expected.keys()) - set(state_names)):
            if name not in expected:
                raise _damaged(path, f"{name} does not belong there")
            if found.get(name) != expected[name]:
                raise _damaged(path, f"{name} is {_words(found.get(name))}, not {_words(expected[name])}")
        groups = []
        for number, tables in enumerate(architecture.groups):
            if f"rows.{number}" in slices:
                rows = _mapped(path, f"rows.{number}", "<i8")
                _check_rows(path, number, rows, sum(table.num_rows for table in tables))
                groups.append(SavedGroup(rows, _mapped(path, f"records.{number}", "<f4")))
            else:
                groups.append(SavedGroup(None, _mapped(path, f"records.{number}", "<f4")))
        dense = {name: file.get_tensor(name) for name in _dense_tensors(architecture)}
        dense_state: dict[str, dict[str, NDArray[np.float32]]] = {}
        for full_name in state_names:
            key, _, name = full_name.removeprefix(_STATE).partition(".")
            if name not in dense or found[full_name] not in (("F32", dense[name].shape), ("F32", ())):
                raise _damaged(path, f"{full_name} does not belong there")
            dense_state.setdefault(name, {})[key] = file.get_tensor(full_name)
        num_updates = int(about.get(_UPDATES, "0"))
        beginnings = msgspec.json.decode(about.get(_BEGINNINGS, "[]"), type=tuple[Beginning, ...])
        bases = msgspec.json.decode(about.get(_BASES, "[]"), type=tuple[str, ...])
    except (SafetensorError, OSError, ValueError) as error:  # msgspec's errors are ValueErrors, too
        raise _damaged(path, str(error)) from error
    vocabulary = Vocabulary(about[VOCABULARY], bases) if VOCABULARY in about else None
    return FinalState(tuple(groups), dense, vocabulary, dense_state, num_updates, beginnings)


def saved_step(path: Path) -> int | None:
    """The step after which the state in a file is; None if there is no such file or it does not say."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return int((file.metadata() or {})[_STEP])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def _mapped(path: Path, name: str, dtype: str) -> NDArray[Any]:
    """The words of a tensor of a checked file, in their place: the library would read all of them into memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    if 0 in entry["shape"]:
        return np.empty(tuple(entry["shape"]), dtype)
    start = 8 + length + entry["data_offsets"][0]
    mapped: NDArray[Any] = np.memmap(path, dtype, "r", start, tuple(entry["shape"]))
    return mapped


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or not a final state: {why}; run the training again")


def _check_header(run_dir: Path, saved: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Whether the file belongs to ``config.toml``."""
    if not saved:
        raise _damaged(run_dir / FILE_NAME, "it does not say which run it is of")
    saved = {**OPTIONS_BEFORE, **saved}
    for name in sorted((saved.keys() | expected.keys()) - set(_BESIDE_IDENTITY)):
        if saved.get(name) != expected.get(name):
            theirs, ours = (
                f"--{name} {options[name]}" if name in options else f"no --{name}" for options in (saved, expected)
            )
            raise UserError(
                f"{run_dir / FILE_NAME} is of a run with {theirs} but {run_dir / 'config.toml'} has {ours}; "
                "put back the config.toml that the run wrote"
            )


def _dense_tensors(architecture: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of the dense parameters, by name."""
    state = architecture.dlrm(seed=0).state_dict()
    return {name: (DTYPES[tensor.numpy().dtype], tuple(tensor.shape)) for name, tensor in state.items()}


def _expected_tensors(
    options: Resolved, architecture: Architecture, found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor, by name; as many touched rows as there are."""
    expected = _dense_tensors(architecture)
    for number, (tables, layout) in enumerate(zip(architecture.groups, architecture.layouts, strict=True)):
        num_rows = sum(table.num_rows for table in tables)
        if not _keeps_all_rows(options):
            rows, records = found.get(f"rows.{number}"), found.get(f"records.{number}")
            num_rows = math.prod(rows[1] if rows else records[1][:1] if records else (0,))
            expected[f"rows.{number}"] = ("I64", (num_rows,))
        expected[f"records.{number}"] = (DTYPES[word_dtype(layout)], (num_rows, layout.width))
    return expected


def _check_rows(path: Path, group: int, rows: NDArray[np.int64], num_rows: int) -> None:
    before = -1
    for first in range(0, len(rows), _PIECE_ROWS):
        part = np.asarray(rows[first : first + _PIECE_ROWS])
        if part.min() < 0 or part.max() >= num_rows:
            wrong = part.min() if part.min() < 0 else part.max()
            raise _damaged(path, f"rows.{group} holds row {wrong} of {num_rows}")
        if part[0] <= before or (part[1:] <= part[:-1]).any():
            raise _damaged(path, f"rows.{group} are not in order, each once")
        before = int(part[-1])


def _words(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if tensor is None else f"{tensor[0]} [{', '.join(map(str, tensor[1]))}]"
