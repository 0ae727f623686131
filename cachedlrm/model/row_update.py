"""One step of the rows of a batch, for the trainer and for models of other people."""

from torch import Tensor

from cachedlrm.model.bags import add_bags, pool, pool_backward, weigh, weigh_backward
from cachedlrm.model.row_optimizers import row_step
from cachedlrm.store.records import RecordLayout


class RowUpdate:
    """One step of the rows of a group of tables: pooled, their gradient taken, and moved.

    Args:
        layout: columns of a record.
        records: [U, width] float32 of the working set; `step` changes them in place.
        positions: [L] int32, each lookup's place in ``records``.
        offsets: [B * T + 1] int32, bag boundaries in ``positions``.
        transposed: the bags [L] int32 of the lookups sorted by position, and the boundaries of positions in them
            [U + 1] int32; needed on CUDA alone.
    """

    def __init__(
        self,
        layout: RecordLayout,
        records: Tensor,
        positions: Tensor,
        offsets: Tensor,
        transposed: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._layout = layout
        self._records = records
        self._positions = positions
        self._offsets = offsets
        self._transposed = transposed
        parameters = records[:, : layout.parameter_width] if layout.state_width else records
        vectors = weigh(parameters, layout.dim)
        self.pooled = pool(vectors, positions, offsets)  # [B * T, D]

    def step(self, grad: Tensor, learning_rate: float, step: int) -> None:
        """Moves the rows by the gradient of `pooled`, [B * T, D]; ``step`` counts from 1."""
        layout, records = self._layout, self._records
        # On the CPU each lookup's gradient is subtracted in its turn, as torch.optim.SGD does with the sparse gradient
        # of nn.EmbeddingBag: to the last bit, which a sum subtracted once is not.
        if layout.optimizer == "sgd" and not layout.weighted and not records.is_cuda:
            add_bags(records, grad, self._positions, self._offsets, -learning_rate)
            return
        vectors_grad = pool_backward(grad, self._positions, self._offsets, self._transposed, records.shape[0])  # [U, D]
        parameters_grad = weigh_backward(vectors_grad, records[:, : layout.parameter_width], layout.dim)
        row_step(layout, records, parameters_grad, learning_rate, step)
