"""``--start-from``: where a run begins that goes on from a finished one, and how rows begin that nobody touched.

A finished run's rows that it never touched are stored nowhere; they are a function of seed, table and row. If another
run goes on from it with larger tables, that function is another one, so a final state says how the tables began: the
sizes, the seed and the kind of initial weights of each run that it goes on from, the first one first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.vocabulary import Vocabulary, common_vocabulary
from cachedlrm.export.final_state import Beginning, FinalState, SavedGroup, load_final_state
from cachedlrm.export.initial import InitialParameters, initial_parameters
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.profiles import load_resolved, toml_value
from cachedlrm.options.resolved import Resolved
from cachedlrm.store.grown import GrownInit, RoundedInit, RowPlaces, SavedInit
from cachedlrm.store.init import RowInit
from cachedlrm.store.packing import numbers_of, packings
from cachedlrm.store.records import RecordLayout

_MAY_DIFFER = {"arch_embedding_size", "loss_function", "loss_weights", "loss_threshold", "round_targets"}
"""Options of the model in which a run may differ from the one that it goes on from."""


@dataclass(frozen=True)
class Started:
    """Where a run begins that goes on from a finished one.

    Attributes:
        parameters: rows, layers and the state of their optimizer.
        beginnings: of the runs before this one.
        kept_rows: of each group of tables, gives the rows that the finished run left, [n] int64 in order.
    """

    parameters: InitialParameters
    beginnings: tuple[Beginning, ...]
    kept_rows: tuple[Callable[[], NDArray[np.int64]], ...]


def start_from(
    run_dir: Path, options: Resolved, architecture: Architecture, device: torch.device, vocabulary: Vocabulary | None
) -> Started:
    """What a finished run left, for the tables of another one.

    Args:
        run_dir: of the finished run.
        options: of the run that goes on, resolved.
        architecture: of these options.
        device: of the slabs.
        vocabulary: of the data to go on with; None: not on record.

    Raises:
        UserError: it is no finished run, or of another model or vocabulary; names what differs.
    """
    words = f"--start-from {run_dir}"
    before = load_resolved(run_dir / "config.toml")
    old = build_architecture(before.model, before.optimisation)
    state = load_final_state(run_dir, before, old)
    _check_model(words, before, options)
    _check_tables(words, old, architecture)
    data_words = f"--data {options.data.data}"
    common, note = common_vocabulary(vocabulary, data_words, state.vocabulary, words)
    takes_state = before.optimisation.optimizer == options.optimisation.optimizer
    _check_dtypes(words, before, options, takes_state)
    theirs, ours = before.optimisation.dense, options.optimisation.dense
    takes_layers = (theirs.name, theirs.state_keys) == (ours.name, ours.state_keys)
    drawn = initial_parameters(options, architecture, device)
    groups = zip(saved_rows(before, state, old, device), old.shapes, drawn.rows, architecture.shapes, strict=True)
    rows = tuple(GrownInit(left, shape, new, now) for left, shape, new, now in groups)
    return Started(
        InitialParameters(
            rows,
            state.dense,
            state.dense_state if takes_layers else {},
            "\n".join(filter(None, [_note(words, before, state, takes_state, takes_layers), note])),
            state.num_updates if takes_state else 0,
            common,
        ),
        (*state.beginnings, own_beginning(before)),
        tuple(partial(_kept_rows, *one) for one in zip(rows, state.groups, strict=True)),
    )


def _kept_rows(grown: GrownInit, saved: SavedGroup) -> NDArray[np.int64]:
    return grown.new_numbers(np.arange(len(saved.records)) if saved.rows is None else np.asarray(saved.rows))


def _note(words: str, before: Resolved, state: FinalState, takes_state: bool, takes_layers: bool) -> str:
    optimisation = before.optimisation
    rows = "rows, their optimizer's state" if takes_state else "rows, without their optimizer's state"
    lost = "" if takes_state else f"; that run's rows have {optimisation.optimizer}"
    if not takes_layers:
        return f"{rows} and layers of {words}{lost}; the state of the layers' optimizer starts at zero"
    if optimisation.dense.state_keys and not state.dense_state:
        return (
            f"{rows} and layers of {words}{lost}; the state of the layers' optimizer starts at zero, for an earlier "
            "version left none"
        )
    return f"{rows} and layers with theirs of {words}{lost}"


def own_beginning(options: Resolved) -> Beginning:
    """How the tables of a run begin that goes on from none."""
    init = "saved" if options.inference.load_model is not None else options.store.init
    return Beginning(options.model.arch_embedding_size, options.batches.numpy_rand_seed, init)


def saved_rows(
    options: Resolved, state: FinalState, architecture: Architecture, device: torch.device
) -> tuple[RowInit, ...]:
    """All rows of each group of a finished run, as numbers: those it left, and initial ones of those it never touched.

    Args:
        options: of its ``config.toml``.
        state: of its final state, which stays where it is and is read when it is asked for.
        architecture: of these options.
        device: where initial numbers may be computed.
    """
    return tuple(
        SavedInit(
            None if saved.rows is None else RowPlaces(saved.rows, shape.num_rows),
            partial(_read, saved.records, shape.layout),
            init,
        )
        for saved, shape, init in zip(
            state.groups, architecture.shapes, untouched_rows(options, state.beginnings, device), strict=True
        )
    )


def _read(records: Any, layout: RecordLayout, places: NDArray[np.int64]) -> NDArray[np.float32]:
    return numbers_of(layout, np.asarray(records[places]))


def untouched_rows(
    options: Resolved, beginnings: tuple[Beginning, ...], device: torch.device
) -> tuple[RowInit | None, ...]:
    """How rows begin that neither a run nor those before it touched, of each group; None: there are none.

    Args:
        options: of the run.
        beginnings: of the runs before it.
        device: where numbers may be computed.
    """
    inits: tuple[RowInit | None, ...] = ()
    before: Architecture | None = None
    for beginning in (*beginnings, own_beginning(options)):
        if before is not None and beginning.sizes == before.options.arch_embedding_size:
            continue  # no row is new
        begun = replace(
            options,
            model=replace(options.model, arch_embedding_size=beginning.sizes),
            batches=replace(options.batches, numpy_rand_seed=beginning.seed),
            inference=replace(options.inference, load_model=None),
        )
        here = build_architecture(begun.model, begun.optimisation)
        drawn: tuple[RowInit | None, ...] = (None,) * len(here.groups)
        if beginning.init != "saved":
            store = replace(begun.store, init="reference" if beginning.init == "reference" else "counter")
            numbers = initial_parameters(replace(begun, store=store), here, device).rows
            packing = packings(here.shapes, beginning.seed)
            drawn = tuple(RoundedInit(one, init) for one, init in zip(packing, numbers, strict=True))
        if before is not None:
            drawn = tuple(
                GrownInit(old, shape, new, now)
                for old, shape, new, now in zip(inits, before.shapes, drawn, here.shapes, strict=True)
            )
        inits, before = drawn, here
    return inits


def _check_model(words: str, before: Resolved, now: Resolved) -> None:
    for name, theirs in vars(before.model).items():
        ours = getattr(now.model, name)
        if name not in _MAY_DIFFER and theirs != ours:
            option = f"--{name.replace('_', '-')}"
            said = [f"no {option}" if value is None else f"{option} {toml_value(value)}" for value in (ours, theirs)]
            raise UserError(f"{said[0]}: {words} is of a run with {said[1]}; drop the option to go on with that")


def _check_dtypes(words: str, before: Resolved, now: Resolved, takes_state: bool) -> None:
    """Rows that nobody touched begin in the dtype of the run that had them first: all runs of a chain have one."""
    for name in ("row_dtype", "row_state_dtype") if takes_state else ("row_dtype",):
        theirs, ours = getattr(before.optimisation, name), getattr(now.optimisation, name)
        if theirs != ours:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {ours}: {words} is of a run with {option} {theirs}; keep {option} {theirs}")


def _check_tables(words: str, old: Architecture, now: Architecture) -> None:
    """Tables may have grown, and nothing else."""
    theirs, ours = old.options.arch_embedding_size, now.options.arch_embedding_size
    if len(theirs) != len(ours):
        raise UserError(f"{words} has {len(theirs)} tables and the data has {len(ours)}; name data with {len(theirs)}")
    for table, (least, rows) in enumerate(zip(theirs, ours, strict=True)):
        if rows < least:
            raise UserError(
                f"--arch-embedding-size gives table {table} {rows} rows and it has {least} in {words}; give {least} or "
                "more, or drop the option"
            )
    tables = [
        [[(table.name, table.dim) for table in group] for group in architecture.groups] for architecture in (old, now)
    ]
    if tables[0] != tables[1]:
        raise UserError(
            f"{words}: as its tables grow, --qr-threshold or the --md options split them in another way; keep their "
            "sizes, or start a run of its own"
        )
