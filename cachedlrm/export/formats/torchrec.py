"""A run's parameters as a folder that TorchRec loads, sharded over any number of processes.

``model.safetensors`` is a checkpoint of torch.distributed.checkpoint (its ``HuggingFaceStorageReader`` reads it): every
process reads its part of each table and no other. Names are those of a state dict there:

- ``embedding_bags.emb_l_T.weight`` [rows, dim] of an ``EmbeddingBagCollection``, and with optimizer state
  ``embedding_bags.emb_l_T.momentum1``, as its fused optimizer calls it: [rows] of rwsadagrad, [rows, dim] of adagrad;
- ``dense_arch.model...``, ``inter_arch...`` and ``over_arch.model...`` of the ``DLRM``, ``DLRM_DCN`` or
  ``DLRM_Projection`` of ``torchrec.models.dlrm``, if it can be that model;
- ``bot_l.N...``, ``top_l.N...`` and so on, as in facebookresearch/dlrm and our model files.

``torchrec.json`` has the arguments of the ``EmbeddingBagConfig`` of each table, the name of the model and its arguments
(or null), name and numbers of the tables' optimizer (its weight decay is decoupled), those of the layers' in
torch.optim, and the fingerprint of the rows' vocabulary where it is known.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write, whole_file
from cachedlrm.export.formats.piecewise import PiecewiseTensor
from cachedlrm.export.formats.safetensors_file import TensorSpec, write_tensors
from cachedlrm.export.full_tables import FullTable
from cachedlrm.options.architecture import Architecture
from cachedlrm.options.resolved import Resolved
from cachedlrm.store.records import OPTIMIZERS

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "torchrec.json"

FUSED_OPTIMIZERS = {
    "sgd": "EXACT_SGD",
    "adagrad": "EXACT_ADAGRAD",
    "rwsadagrad": "EXACT_ROWWISE_ADAGRAD",
    "adam": "ADAM",
}
"""Names of fbgemm_gpu's EmbOptimType."""
_MODELS = {"dot": "DLRM", "dcn": "DLRM_DCN", "projection": "DLRM_Projection"}  # of torchrec.models.dlrm
_OF_TORCH = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW"}

Dense = Mapping[str, NDArray[np.generic]]


def check_torchrec(architecture: Architecture, with_optimizer_state: bool) -> None:
    """Makes sure that TorchRec has the counterparts of a model's tables.

    Raises:
        UserError: it has not; names the option.
    """
    options = architecture.options
    for is_used, name in (
        (options.qr_flag, "--qr-flag"),
        (options.md_flag, "--md-flag"),
        (options.weighted_pooling == "learned", "--weighted-pooling learned"),
    ):
        if is_used:
            raise UserError(
                f"the run has {name}, and TorchRec's EmbeddingBagCollection has no counterpart; leave out --format "
                "torchrec to export under facebookresearch/dlrm's names"
            )
    if with_optimizer_state and architecture.layouts[0].optimizer == "adam":
        raise UserError(
            "the run has --optimizer adam, whose lazy moments TorchRec's Adam does not continue; leave out "
            "--with-optimizer-state"
        )


def write_torchrec(
    folder: Path,
    options: Resolved,
    architecture: Architecture,
    tables: Sequence[FullTable],
    dense: Dense,
    *,
    with_optimizer_state: bool,
    vocabulary: str | None = None,
) -> None:
    """Writes the folder, which may not hold anything yet.

    Args:
        folder: to make.
        options: of the run.
        architecture: one that `check_torchrec` took.
        tables: group by group.
        dense: parameters by the reference's names.
        with_optimizer_state: also write the rows' optimizer state.
        vocabulary: fingerprint of what the rows stand for; None: not on record.

    Raises:
        UserError: it cannot be written.
    """
    tensors: dict[str, PiecewiseTensor] = {}
    for table in tables:
        name, layout = f"embedding_bags.{_table_name(table)}", table.layout
        tensors[f"{name}.weight"] = table.tensor(slice(0, layout.dim))
        if with_optimizer_state and layout.state_width:
            by_row = OPTIMIZERS[layout.optimizer].by_row
            tensors[f"{name}.momentum1"] = table.tensor(layout.dim if by_row else slice(layout.dim, 2 * layout.dim))
    all_dense = {**dense, **(dlrm_parameters(architecture, dense) if dlrm_arguments(architecture) else {})}
    specs: dict[str, TensorSpec] = {name: (np.dtype(np.float32), tensor.shape) for name, tensor in tensors.items()}
    specs |= {name: (array.dtype, array.shape) for name, array in all_dense.items()}

    def chunks() -> Iterator[NDArray[np.generic]]:
        for tensor in tensors.values():
            yield from tensor.pieces()
        yield from all_dense.values()

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_tensors(folder / MODEL_FILE, specs, chunks(), {"format": "pt"})
    config = _config(options, architecture, tables) | ({} if vocabulary is None else {"vocabulary": vocabulary})
    with whole_file(folder / CONFIG_FILE) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def _table_name(table: FullTable) -> str:
    return f"emb_l_{_number(table)}"


def _number(table: FullTable) -> int:
    return int(table.name.split(".")[1])


def _config(options: Resolved, architecture: Architecture, tables: Sequence[FullTable]) -> dict[str, Any]:
    optimisation = options.optimisation
    layers = optimisation.dense
    numbers = {"weight_decay": layers.weight_decay}
    numbers |= {"momentum": layers.momentum} if layers.name == "sgd" else {"eps": layers.definite_eps}
    return {
        "tables": [
            {
                "name": _table_name(table),
                "num_embeddings": table.num_rows,
                "embedding_dim": table.layout.dim,
                "feature_names": [f"feature_{_number(table)}"],
                **({"pooling": "MEAN"} if options.model.pooling == "mean" else {}),
            }
            for table in sorted(tables, key=_number)
        ],
        "model": model_name(architecture),
        "dlrm": dlrm_arguments(architecture),
        "optimizer": FUSED_OPTIMIZERS[optimisation.optimizer],
        "learning_rate": optimisation.learning_rate,
        "eps": optimisation.eps or OPTIMIZERS[optimisation.optimizer].eps,
        "weight_decay": optimisation.weight_decay,
        "dense_optimizer": _OF_TORCH[layers.name],
        "dense_settings": {"lr": optimisation.dense_rate.base, **numbers},
    }


def model_name(architecture: Architecture) -> str | None:
    """The class in torchrec.models.dlrm with this interaction."""
    return _MODELS.get(architecture.interaction.op)


def dlrm_arguments(architecture: Architecture) -> dict[str, Any] | None:
    """Of the model of torchrec.models.dlrm; None if none can be this one."""
    options, bot, top = architecture.options, architecture.mlp_bot, architecture.mlp_top[1:]
    kind = architecture.interaction
    if kind.op not in _MODELS or kind.itself or options.activation_function != "relu" or len(top) < 2:
        return None
    arguments = {"dense_in_features": bot[0], "dense_arch_layer_sizes": bot[1:], "over_arch_layer_sizes": top}
    if kind.op == "dcn":
        arguments |= {"dcn_num_layers": kind.cross_layers, "dcn_low_rank_dim": kind.cross_rank}
    for number, sizes in enumerate(kind.branches, 1):
        arguments[f"interaction_branch{number}_layer_sizes"] = sizes
    return arguments


def dlrm_parameters(architecture: Architecture, dense: Dense) -> dict[str, NDArray[np.generic]]:
    """The dense parameters by TorchRec's names."""
    num_top = len(architecture.mlp_top) - 1
    layers = {
        f"bot_l.{2 * layer}": f"dense_arch.model._mlp.{layer}._linear" for layer in range(len(architecture.mlp_bot) - 1)
    }
    for number, sizes in enumerate(architecture.interaction.branches, 1):
        theirs = f"inter_arch.interaction_branch{number}.model._mlp"
        layers |= {f"branch{number}_l.{2 * layer}": f"{theirs}.{layer}._linear" for layer in range(len(sizes))}
    layers |= {f"top_l.{2 * layer}": f"over_arch.model.0._mlp.{layer}._linear" for layer in range(num_top - 1)}
    layers[f"top_l.{2 * (num_top - 1)}"] = "over_arch.model.1"
    parameters = {
        f"{theirs}.{part}": dense[f"{ours}.{part}"] for ours, theirs in layers.items() for part in ("weight", "bias")
    }
    parameters |= {f"inter_arch.{name}": array for name, array in dense.items() if name.startswith("crossnet.")}
    if architecture.interaction.op == "dot":
        first = "over_arch.model.0._mlp.0._linear.weight"
        columns = _interaction_columns(len(architecture.embeddings), architecture.mlp_bot[-1])
        parameters[first] = np.ascontiguousarray(parameters[first][:, columns])
    return parameters


def _interaction_columns(num_features: int, dim: int) -> NDArray[np.int64]:
    """For each input of TorchRec's over arch the input of our top MLP that is the same number.

    Both have the dense vector first and then the products of pairs: there in the order of the upper triangle's rows,
    (0, 1), (0, 2), ...; here of the lower one's, (1, 0), (2, 0), (2, 1), ...
    """
    low, high = np.triu_indices(num_features + 1, k=1)
    return np.concatenate([np.arange(dim), dim + high * (high - 1) // 2 + low])
