"""Initial parameters of a run: how untouched rows begin, and what replaces the drawn dense parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cachedlrm.data.vocabulary import Vocabulary
from cachedlrm.export.formats.model_file import load_model, record_parts
from cachedlrm.model.dense_settings import counterpart
from cachedlrm.model.reference_init import reference_parameters
from cachedlrm.options.architecture import Architecture, pooling_name, split_parameters
from cachedlrm.options.resolved import Resolved
from cachedlrm.store.grown import GrownInit
from cachedlrm.store.init import ArrayInit, CounterInit, RowInit
from cachedlrm.store.records import OPTIMIZERS


@dataclass(frozen=True)
class InitialParameters:
    """Where training begins.

    Attributes:
        rows: initial records of each group of tables.
        dense: dense parameters by name; empty: those that the model draws itself.
        dense_state: state of their optimizer, by name and torch's key; empty: as it starts.
        note: what a user should know of a loaded model; else None.
        steps: that the rows' optimizer has made before.
        vocabulary: what the rows stand for: that of the data, or of a model which extends it; None: not on record.
    """

    rows: tuple[RowInit, ...]
    dense: dict[str, NDArray[np.float32]]
    dense_state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str | None = None
    steps: int = 0
    vocabulary: Vocabulary | None = None


def initial_parameters(
    options: Resolved, architecture: Architecture, device: torch.device, vocabulary: Vocabulary | None = None
) -> InitialParameters:
    """The parameters of ``--load-model``, or else those of ``--init``.

    Args:
        options: resolved.
        architecture: of the model.
        device: of the slabs.
        vocabulary: of the data; None: not on record.

    Raises:
        UserError: the model file cannot be read, or is of another model or vocabulary.
    """
    if options.inference.load_model is not None:
        drawn = replace(options, inference=replace(options.inference, load_model=None))
        new_rows = initial_parameters(drawn, architecture, device).rows
        return _loaded_parameters(options, architecture, options.inference.load_model, vocabulary, new_rows)
    seed = options.batches.numpy_rand_seed
    if options.store.init == "reference":
        bot, top = architecture.mlp_bot, architecture.mlp_top
        parameters = reference_parameters(seed, architecture.embeddings, bot[-1], bot, top)
        tables, dense = split_parameters(architecture, parameters)
        rows = tuple(ArrayInit([[table] for table in group]) for group in tables)
        return InitialParameters(rows, dense, vocabulary=vocabulary)
    inits, first_element = [], 0
    for group in architecture.shapes:
        inits.append(CounterInit(seed, group.table_rows, group.layout, device, first_element))
        first_element += group.num_rows * group.layout.dim
    return InitialParameters(tuple(inits), {}, vocabulary=vocabulary)


def _loaded_parameters(
    options: Resolved,
    architecture: Architecture,
    path: Path,
    vocabulary: Vocabulary | None,
    new_rows: Sequence[RowInit],
) -> InitialParameters:
    """Those of a model file, which is mapped into memory and not read; of each group also rows that it lacks."""
    layers = options.optimisation.dense
    model = load_model(path, architecture, layers, vocabulary, f"--data {options.data.data}")
    optimizer = architecture.layouts[0].optimizer
    both = optimizer if layers.name == counterpart(optimizer) else f"{optimizer} and {layers.name}"
    steps = 0
    dense = dict(model.parameters)
    inits: list[RowInit] = []
    for group, shape, new in zip(architecture.groups, architecture.shapes, new_rows, strict=True):
        tables = []
        for table in group:
            arrays = []
            for name, key, _ in record_parts(shape.layout, table.name, pooling_name(table)):
                if key is None:
                    arrays.append(dense.pop(name))
                elif model.state is not None:
                    arrays.append(model.state[name][key])
                    steps = int(model.state[name]["step"])
            tables.append(arrays)
        in_file = replace(shape, table_rows=tuple(len(arrays[0]) for arrays in tables))
        init = ArrayInit(tables)
        inits.append(init if in_file == shape else GrownInit(init, in_file, new, shape))
    if not OPTIMIZERS[optimizer].state_keys and not layers.state_keys:
        note = f"parameters of {path}"
    elif model.state is None:
        note = f"parameters of {path}; the state of {both} starts at zero, for the file holds none"
    else:
        note = f"parameters and the state of {both} of {path}"
    if model.note is not None:
        note += f"\n{model.note}"
    state = {name: entry for name, entry in (model.state or {}).items() if name in dense}
    return InitialParameters(tuple(inits), dense, state, note, steps, model.vocabulary)
