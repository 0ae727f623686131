"""Model files in facebookresearch/dlrm's format, both ways.

``torch.save`` of a dictionary: ``state_dict`` with the parameters, ``opt_state_dict`` with the optimizer's state by the
parameters' numbers in that order, and where training stood: ``nepochs``, ``nbatches``, ``nbatches_test``, ``epoch``,
``iter``, ``train_loss``, ``total_loss``, ``test_acc``. ``vocabulary`` is ours: the fingerprint of what its rows stand
for (`cachedlrm.data.vocabulary`), where that is known, and ``vocabulary_bases`` those of the vocabularies that it
extends. Where layers have an optimizer of their own, ``param_groups`` has one entry for rows and one for layers; the
reference has no optimizer that takes such a file.
"""

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.data.vocabulary import Vocabulary, common_vocabulary
from cachedlrm.export.formats.piecewise import piecewise
from cachedlrm.export.formats.torch_file import write_torch_file
from cachedlrm.export.full_tables import FullTable
from cachedlrm.model.dense_settings import DenseSettings, counterpart
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.options.architecture import Architecture
from cachedlrm.options.optimisation import ResolvedOptimisation
from cachedlrm.store.records import OPTIMIZERS, RecordLayout

State = dict[str, dict[str, Any]]
"""Optimizer state by parameter name and torch's key."""


def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name, in the reference's order."""
    dense = {name: tuple(tensor.shape) for name, tensor in architecture.dlrm(seed=0).state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for embedding in architecture.embeddings:
        shapes |= {table.name: (table.num_rows, table.dim) for table in embedding.tables}
        projection = f"emb_l.{embedding.number}.proj.weight"
        if projection in dense:
            shapes[projection] = dense.pop(projection)
    if architecture.options.weighted_pooling == "learned":
        shapes |= {f"v_W_l.{embedding.number}": (embedding.num_ids,) for embedding in architecture.embeddings}
    return shapes | dense


def record_parts(layout: RecordLayout, weight: str, pooling: str) -> Iterator[tuple[str, str | None, slice | int]]:
    """The columns of a record, in order: parameter, key of its state (None: the parameter), columns.

    Args:
        layout: of the records.
        weight: name of the table's weight.
        pooling: name of its pooling weights, if the layout has them.
    """
    column = 0
    optimizer = OPTIMIZERS[layout.optimizer]
    keys = [(None, None), *zip(optimizer.table_state_keys, optimizer.state_keys, strict=True)]
    for weight_key, pooling_key in keys:
        is_column = optimizer.by_row and weight_key is not None
        width = 1 if is_column else layout.dim
        yield weight, weight_key, column if is_column else slice(column, column + width)
        column += width
        if layout.weighted:
            yield pooling, pooling_key, column
            column += 1


def _is_of_rows(name: str) -> bool:
    """Whether a parameter is a table or its pooling weights."""
    return name.startswith(("emb_l.", "v_W_l.")) and not name.endswith(".proj.weight")


def _state_keys(optimizer: str, dense: DenseSettings, name: str) -> tuple[str, ...]:
    """Keys of a parameter's state, without the number of steps."""
    if not _is_of_rows(name):
        return dense.state_keys
    kind = OPTIMIZERS[optimizer]
    return kind.table_state_keys if name.startswith("emb_l.") else kind.state_keys


@dataclass(frozen=True)
class LoadedModel:
    """A model file's content.

    Attributes:
        parameters: by name, float32; mapped into memory from the file, not read.
        state: of the optimizers, if the file's are the chosen ones': arrays, and ``step`` as a number.
        note: on its vocabulary, where that could not be checked; else None.
        vocabulary: what its rows stand for, or those of the data where these extend them; None: not on record.
    """

    parameters: dict[str, NDArray[np.float32]]
    state: State | None
    note: str | None = None
    vocabulary: Vocabulary | None = None


def load_model(
    path: Path,
    architecture: Architecture,
    dense: DenseSettings,
    vocabulary: Vocabulary | None = None,
    data_words: str = "the data",
) -> LoadedModel:
    """Reads a model file. Tables may have fewer rows than the model, if the data's vocabulary extends the file's.

    Args:
        path: the file.
        architecture: what its parameters must fit; its layouts name the rows' optimizer.
        dense: the layers' optimizer.
        vocabulary: of the data that the model is for; None: not on record.
        data_words: what that data is, for messages.

    Raises:
        UserError: no such file, not a model file, one whose rows stand for other values (names both vocabularies), or
            one of another model (names the parameter and both shapes).
    """
    content = _load(path)
    parameters = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(parameters, Mapping):
        raise UserError(f"{path} holds no model: it lacks state_dict; check --load-model")
    trained = _vocabulary(content)
    common, note = common_vocabulary(vocabulary, data_words, trained, f"--load-model {path}")
    grows = vocabulary is not None and vocabulary.extends(trained)
    shapes = parameter_shapes(architecture)
    for name, shape in shapes.items():
        if name not in parameters:
            raise UserError(f"{path} lacks parameter {name}, {_text(shape)} in this model; {_advice(name)}")
    for name in parameters:
        if name not in shapes:
            line = " ".join(str(name).split())
            raise UserError(f"{path} has parameter {line}, which this model lacks; {_advice(line)}")
    if grows:
        shapes = {name: _shape_before(parameters[name], name, shape) for name, shape in shapes.items()}
    if trained is None and vocabulary is not None and vocabulary.bases:
        _check_that_none_grew(path, parameters, shapes)
    arrays = {name: _array(path, name, parameters[name], shape) for name, shape in shapes.items()}
    optimizer = architecture.layouts[0].optimizer
    keys = {name: _state_keys(optimizer, dense, name) for name in shapes}
    state = _load_state(path, content.get("opt_state_dict"), shapes, keys)
    return LoadedModel(arrays, state, note, common)


def _vocabulary(content: Mapping[str, Any]) -> Vocabulary | None:
    """What a file's rows stand for; None: it does not say, as those of the reference."""
    fingerprint, bases = content.get("vocabulary"), content.get("vocabulary_bases", ())
    if not isinstance(fingerprint, str):
        return None
    bases = bases if isinstance(bases, list) else ()
    return Vocabulary(fingerprint, tuple(base for base in bases if isinstance(base, str)))


def _shape_before(tensor: Any, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a parameter in a file, where its table has grown since; else ``shape``."""
    if not _is_of_rows(name) or not isinstance(tensor, Tensor) or not 0 < tensor.ndim == len(shape):
        return shape
    return (min(shape[0], len(tensor)), *shape[1:])


def _check_that_none_grew(path: Path, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a file that does not say what its rows stand for, where tables have more rows than in the file."""
    for name, shape in shapes.items():
        before = _shape_before(parameters[name], name, shape)
        if before != shape:
            raise UserError(
                f"{path}: {name} is {_text(before)} in the file and {_text(shape)} in this model, and the file does "
                "not say its vocabulary, from which tables could grow; load it once with the data that it was trained "
                "on, with --steps 0 and --save-model, and go on from that file"
            )


def _load(path: Path) -> Any:
    """The contents of the file, of which only tensors and numbers are read, whatever else it holds."""
    scalar = np.float32(0).__reduce__()[0]
    allowed: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # numpy 1 and 2
    allowed += [np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType, np.dtypes.Int64DType]
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"  # torch maps no files in its format before 1.6
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check --load-model") from error
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what looks odd in a file, which the error tells as well
            return torch.load(path, map_location="cpu", mmap=is_archive, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no model file: it is damaged, or holds more than tensors and numbers; check --load-model"
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or no model file ({reason}); check --load-model") from error


def _load_state(
    path: Path, content: Any, shapes: Mapping[str, tuple[int, ...]], keys: Mapping[str, tuple[str, ...]]
) -> State | None:
    """The optimizers' state if it is the chosen ones'.

    Args:
        path: the file.
        content: of ``opt_state_dict``.
        shapes: of the parameters.
        keys: of their state.
    """
    state: State = {}
    try:
        numbers = sorted(number for group in content["param_groups"] for number in group["params"])
        for name, number in zip(shapes, numbers, strict=True):
            if keys[name]:
                entry = content["state"][number]
                step = {} if "momentum_buffer" in keys[name] else {"step": float(entry["step"])}
                state[name] = {**step, **{key: entry[key] for key in keys[name]}}
    except (LookupError, TypeError, ValueError):  # of other optimizers or parameters, or none
        return None
    for name, entry in state.items():
        for key in keys[name]:
            shape = shapes[name][:1] if key == "momentum" else shapes[name]
            entry[key] = _array(path, f"{key} of {name}", entry[key], shape)
    return state


def _array(path: Path, name: str, tensor: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A checked tensor as an array that shares its memory."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype != torch.float32:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{path}: {name} is {found}, not a float32 tensor; check --load-model")
    in_file, parameter = tuple(tensor.shape), name.rsplit(maxsplit=1)[-1]
    if in_file != shape:
        advice = _advice(parameter)
        if parameter.startswith("emb_l.") and in_file[1:] == shape[1:]:
            advice = _OTHER_DATA
        raise UserError(f"{path}: {name} is {_text(in_file)} in the file and {_text(shape)} in this model; {advice}")
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array


_OTHER_DATA = (
    "a table has its rows from the data: prepare this data with --vocabulary DIR, where DIR is the prepared data of "
    "the file's model; only where ids are rows as they are, or the file's vocabulary extends that of the data, set "
    "--arch-embedding-size to the file's"
)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _advice(name: str) -> str:
    """Which options decide a parameter."""
    places = {
        ".proj.": "--md-flag and the other --md options",
        ".embs.": "--md-flag and the other --md options",
        ".weight_": "--qr-flag and the other --qr options",
        "emb_l.": "--arch-embedding-size, --arch-sparse-feature-size, --qr-flag and --md-flag",
        "v_W_l.": "--weighted-pooling and --arch-embedding-size",
        "bot_l.": "--arch-mlp-bot",
        "crossnet.": "--arch-interaction-op, --dcn-num-layers and --dcn-low-rank-dim",
        "branch1_l.": "--arch-interaction-op and --interaction-branch1-layer-sizes",
        "branch2_l.": "--arch-interaction-op and --interaction-branch2-layer-sizes",
        "top_l.": "--arch-mlp-top and --arch-interaction-op",
    }
    options = next((options for place, options in places.items() if place in name), "the --arch options")
    return f"set {options} to the file's, or check --load-model"


@dataclass(frozen=True)
class Training:
    """Where training stands when its model is written; the attributes are the reference's keys.

    Attributes:
        nepochs: epochs of the run.
        nbatches: steps of an epoch.
        nbatches_test: steps of an evaluation.
        epoch: of the last step, from 0.
        iter: steps of that epoch.
        train_loss: mean.
        total_loss: of steps since the last mean.
        test_acc: accuracy of the last evaluation, 0 without one.
    """

    nepochs: int
    nbatches: int
    nbatches_test: int
    epoch: int
    iter: int
    train_loss: float
    total_loss: float
    test_acc: float


def save_model(
    path: Path,
    architecture: Architecture,
    optimisation: ResolvedOptimisation,
    *,
    tables: Sequence[FullTable],
    dense: Mapping[str, Tensor],
    dense_state: Mapping[str, Mapping[str, Tensor]],
    steps: int,
    next_step: int,
    training: Training,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Writes a model file; it appears only when complete. Tables are never in memory as a whole.

    Args:
        path: the file.
        architecture: of the model.
        optimisation: its optimizers.
        tables: all of them.
        dense: dense parameters by name.
        dense_state: state of their optimizer, by name and torch's key.
        steps: times that parameters have moved, in this run and in those whose state it went on with.
        next_step: of this run, from 1.
        training: where it stands.
        vocabulary: what the rows stand for; None: not on record.

    Raises:
        UserError: the file could not be written.
    """
    optimizer = optimisation.optimizer
    parameters = {name: piecewise(tensor) for name, tensor in dense.items()}
    state: dict[str, dict[str, object]] = {
        name: {key: _step(value, optimizer) if key == "step" else piecewise(value) for key, value in entry.items()}
        for name, entry in dense_state.items()
    }
    has_state = steps or optimizer != "adam"  # which torch makes in the first step
    for table in tables:
        for name, key, columns in record_parts(table.layout, table.name, table.pooling_name):
            if key is None:
                parameters[name] = table.tensor(columns)
            elif has_state:
                entry = state.setdefault(name, {"step": _step(torch.tensor(float(steps)), optimizer)})
                entry[key] = table.tensor(columns)
    names = list(parameter_shapes(architecture))
    said = {} if vocabulary is None else {"vocabulary": vocabulary.fingerprint}
    content = {
        **vars(training),
        **said,
        **({"vocabulary_bases": list(vocabulary.bases)} if vocabulary is not None and vocabulary.bases else {}),
        "state_dict": {name: parameters[name] for name in names},
        "opt_state_dict": {
            "state": {number: state[name] for number, name in enumerate(names) if name in state},
            "param_groups": _param_groups(optimisation, names, next_step),
        },
    }
    write_torch_file(path, content)


def _step(value: Tensor, optimizer: str) -> object:
    """The number of steps: a tensor in torch's optimizers, a number in the reference's."""
    return int(value) if optimizer == "rwsadagrad" else piecewise(value)


_REFERENCE_GROUP = ("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value", "initial_lr")
"""Settings of the reference's own optimizer, RWSAdagrad, and of its schedule."""


def _param_groups(optimisation: ResolvedOptimisation, names: Sequence[str], next_step: int) -> list[dict[str, object]]:
    """Settings of the optimizers and the numbers of their parameters; one entry where there is one optimizer.

    Args:
        optimisation: the optimizers.
        names: of all parameters.
        next_step: of which the rate is written.
    """
    optimizer, layers = optimisation.optimizer, optimisation.dense
    of_rows = DenseSettings(counterpart(optimizer), optimisation.eps, weight_decay=optimisation.weight_decay)
    rows = _group(of_rows, optimisation.row_rate, next_step)
    if optimizer == "rwsadagrad":
        rows = {name: rows[name] for name in _REFERENCE_GROUP}
    if of_rows == layers and not layers.weight_decay and optimisation.row_rate == optimisation.dense_rate:
        return [{**rows, "params": list(range(len(names)))}]
    if optimisation.weight_decay:
        rows["decoupled_weight_decay"] = True
    numbers: dict[bool, list[int]] = {True: [], False: []}
    for number, name in enumerate(names):
        numbers[_is_of_rows(name)].append(number)
    dense = _group(layers, optimisation.dense_rate, next_step)
    return [{**rows, "params": numbers[True]}, {**dense, "params": numbers[False]}]


_OF_TORCH = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def _group(settings: DenseSettings, rate: LearningRate, next_step: int) -> dict[str, object]:
    """torch's settings of an optimizer."""
    of_torch: torch.optim.Optimizer = _OF_TORCH[settings.name]([torch.nn.Parameter(torch.empty(0))])
    group: dict[str, object] = of_torch.state_dict()["param_groups"][0]
    numbers = {"eps": settings.definite_eps, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    known = {name: number for name, number in numbers.items() if name in group}
    return {**group, **known, "lr": rate(next_step), "initial_lr": rate.base}
