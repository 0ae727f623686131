"""One step of the rows of a batch, for the trainer and for other people's models."""

from torch import Tensor

from cachedlrm.model.bags import add_bags, bag_sizes, pool, pool_backward, weigh, weigh_backward
from cachedlrm.model.row_optimizers import RowStep, decay_rows, move_rows
from cachedlrm.store.records import RecordLayout


class RowUpdate:
    """One step of the rows of a group of tables: pooled, their gradient taken, and moved.

    Args:
        layout: columns of a record.
        records: [U, columns] float32, the numbers of the working set's records.
        positions: [L] int32, each lookup's place in ``records``.
        offsets: [B * T + 1] int32, bag boundaries in ``positions``.
        transposed: the bags [L] int32 of the lookups sorted by position, and the boundaries of positions in them
            [U + 1] int32; needed on CUDA alone.
        averages: whether a bag's vector is the mean of its rows, 0 of an empty bag.

    Attributes:
        records: [U, columns]; `step` changes them in place.
        step_number: of the step that moved them; 0: none did.
        pooled: [B * T, D], the sums or means of the bags' rows.
    """

    def __init__(
        self,
        layout: RecordLayout,
        records: Tensor,
        positions: Tensor,
        offsets: Tensor,
        transposed: tuple[Tensor, Tensor] | None,
        *,
        averages: bool = False,
    ) -> None:
        self._layout = layout
        self.records = records
        self._positions = positions
        self._offsets = offsets
        self._transposed = transposed
        self.step_number = 0
        parameters = records[:, : layout.parameter_width] if layout.state_width else records
        vectors = weigh(parameters, layout.dim)
        self.pooled = pool(vectors, positions, offsets)
        self._sizes = bag_sizes(offsets) if averages else None
        if self._sizes is not None:
            self.pooled.div_(self._sizes)

    def step(self, gradient: Tensor, step: RowStep) -> None:
        """Moves the rows by the ``gradient`` of `pooled`, [B * T, D], which is overwritten where that is of means."""
        layout, records = self._layout, self.records
        # On the CPU each lookup's gradient is subtracted in its turn, as torch.optim.SGD does with the sparse gradient
        # of nn.EmbeddingBag: to the last bit, which a sum subtracted once is not.
        if layout.optimizer == "sgd" and not layout.weighted and not records.is_cuda:
            self.step_number = step.number
            decay_rows(layout, records, step)
            add_bags(records, self._of_sums(gradient), self._positions, self._offsets, -step.learning_rate)
            return
        self.move(self.sum_by_row(gradient), step)

    def sum_by_row(self, gradient: Tensor) -> Tensor:
        """The gradient of the rows' parameters, [U, parameter_width], from that of `pooled`, as in `step`."""
        layout, records, sums = self._layout, self.records, self._of_sums(gradient)
        of_vectors = pool_backward(sums, self._positions, self._offsets, self._transposed, records.shape[0])  # [U, D]
        return weigh_backward(of_vectors, records[:, : layout.parameter_width], layout.dim)

    def move(self, gradient: Tensor, step: RowStep) -> None:
        """Moves the rows by the ``gradient`` that `sum_by_row` gave, which is overwritten."""
        self.step_number = step.number
        move_rows(self._layout, self.records, gradient, step)

    def _of_sums(self, gradient: Tensor) -> Tensor:
        """The gradient of the bags' sums from that of `pooled`, in its place."""
        return gradient if self._sizes is None else gradient.mul_(self._sizes.reciprocal_())
