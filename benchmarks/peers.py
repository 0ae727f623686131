"""FBGEMM's embeddings on the CPU, every row resident, for benchmarks that set them beside ours; and TorchRec's models.

They are loaded if they are there: pip install --target DIR --no-deps fbgemm-gpu-cpu==1.8.0; PYTHONPATH=DIR. For
TorchRec add torchrec==1.8.0 and what it needs: tensordict, torchmetrics, lightning-utilities, pyre-extensions,
typing-inspect, iopath, portalocker, pyvers, orjson, importlib_metadata and tqdm, all with --no-deps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cachedlrm.data.batch import Batch
from cachedlrm.export.formats.torchrec import dlrm_arguments, dlrm_parameters, model_name
from cachedlrm.options.architecture import Architecture

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
except (ImportError, OSError):
    SplitTableBatchedEmbeddingBagsCodegen = None
try:
    import torchrec
    from torchrec.models import dlrm as torchrec_models
except (ImportError, OSError):
    torchrec = None


def fbgemm_operator(
    table_rows: tuple[int, ...], dim: int, optimizer: str, learning_rate: float, eps: float = 1e-10
) -> torch.nn.Module | None:
    """FBGEMM's table-batched operator, whose backward pass moves the rows.

    From ids and offsets, both table-major (`table_major`), it gives [B, T * dim]. None if it cannot be loaded, or does
    not have the optimizer: there is no Adam on the CPU.
    """
    if SplitTableBatchedEmbeddingBagsCodegen is None or optimizer == "adam":
        return None
    kinds = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rwsadagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in table_rows],
        optimizer=kinds[optimizer], learning_rate=learning_rate, eps=eps, pooling_mode=PoolingMode.SUM, device="cpu",
    )  # fmt: skip


def table_major(batch: Batch, first_rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch's ids as FBGEMM has them: local to their tables, table after table [L] int64; and where each bag begins.

    Args:
        batch: B samples.
        first_rows: [T] int64, of each table among all rows.

    Returns:
        Ids [L] and boundaries of the T * B bags in them, [T * B + 1], both int64.
    """
    lengths = np.diff(batch.offsets).reshape(-1, len(first_rows))  # [B, T]
    tables = np.repeat(np.tile(np.arange(len(first_rows)), len(lengths)), lengths.ravel())
    ids = (batch.rows - first_rows[tables])[np.argsort(tables, kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(lengths.T.ravel())])
    return torch.from_numpy(ids), torch.from_numpy(offsets)


def torchrec_model(
    architecture: Architecture, operator: torch.nn.Module, dense: Mapping[str, np.ndarray]
) -> tuple[torch.nn.Module, Callable[[torch.Tensor, torch.Tensor], Any]] | None:
    """TorchRec's DLRM of a model, and its form of lookups; None if it cannot be loaded.

    Args:
        architecture: of the model.
        operator: FBGEMM's, in the place of the tables of an ``EmbeddingBagCollection``, as sharded modules have it.
        dense: initial parameters by our names.

    Returns:
        The model, and a function from ids and boundaries (see `table_major`) to what it takes.
    """
    if torchrec is None:
        return None
    dim, tables = architecture.mlp_bot[-1], architecture.groups[0]
    names = [table.name for table in tables]
    configs = [
        torchrec.EmbeddingBagConfig(
            num_embeddings=t.num_rows, embedding_dim=dim, name=t.name.replace(".", "_"), feature_names=[t.name]
        )
        for t in tables
    ]

    class Collection(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.operator = operator

        def forward(self, features: Any) -> Any:
            pooled = self.operator(features.values(), features.offsets())
            return torchrec.KeyedTensor(names, [dim] * len(names), pooled)

    collection = torchrec.EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    model = getattr(torchrec_models, model_name(architecture))(collection, **dlrm_arguments(architecture))
    model.sparse_arch.embedding_bag_collection = Collection()
    parameters = {name: torch.from_numpy(values) for name, values in dlrm_parameters(architecture, dense).items()}
    missing, unexpected = model.load_state_dict(parameters, strict=False)
    assert not unexpected
    assert all(name.startswith("sparse_arch") for name in missing)

    def features(ids: torch.Tensor, offsets: torch.Tensor) -> Any:
        return torchrec.KeyedJaggedTensor(names, ids, lengths=offsets.diff(), offsets=offsets)

    return model, features
