"""FBGEMM's embeddings on the CPU, every row resident, for benchmarks that set them beside ours.

It is loaded if it is there: pip install --target DIR --no-deps fbgemm-gpu-cpu==1.8.0; PYTHONPATH=DIR.
"""

import numpy as np
import torch

from cachedlrm.data.batch import Batch

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
except (ImportError, OSError):
    SplitTableBatchedEmbeddingBagsCodegen = None


def fbgemm_operator(
    table_rows: tuple[int, ...], dim: int, optimizer: str, learning_rate: float
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
        optimizer=kinds[optimizer], learning_rate=learning_rate, eps=1e-10, pooling_mode=PoolingMode.SUM, device="cpu",
    )  # fmt: skip


def table_major(batch: Batch, first_rows: np.ndarray) -> torch.Tensor:
    """A one-hot batch's ids as FBGEMM has them: [T * B] int64, local to their tables, table after table.

    Args:
        batch: one lookup in each bag.
        first_rows: [T] int64, of each table among all rows.
    """
    return torch.from_numpy(np.ascontiguousarray((batch.rows.reshape(-1, len(first_rows)) - first_rows).T).ravel())
