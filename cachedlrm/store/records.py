"""The record: a row's weight and optimizer state side by side, the unit every tier holds and moves."""

from dataclasses import dataclass
from functools import cached_property

# Optimizer state behind the parameters, as columns per parameter column and per row of each parameter.
_STATE_COLUMNS = {"sgd": (0, 0), "rwsadagrad": (0, 1), "adagrad": (1, 0), "adam": (2, 0)}

OPTIMIZERS = tuple(_STATE_COLUMNS)


@dataclass(frozen=True)
class RecordLayout:
    """Columns of a record: ``[weight (dim) | pooling weight (0 or 1) | optimizer state]``, all float32.

    State moves with its row, so an optimizer is as right under the cache as without it. State starts at zero.
    The state is: nothing for sgd; for rwsadagrad one sum of squares, and one more for a pooling weight; for adagrad a
    sum of squares a parameter column; for adam a first and a second moment a parameter column.

    Attributes:
        dim: embedding dimension.
        optimizer: one of `OPTIMIZERS`.
        weighted: whether the row has a pooling weight, a learned factor of its vector, behind its weight.
    """

    dim: int
    optimizer: str
    weighted: bool = False

    @cached_property
    def parameter_width(self) -> int:
        """Columns that are trained."""
        return self.dim + self.weighted

    @cached_property
    def state_width(self) -> int:
        """Columns of optimizer state."""
        per_column, per_row = _STATE_COLUMNS[self.optimizer]
        return per_column * self.parameter_width + per_row * (1 + self.weighted)

    @cached_property
    def width(self) -> int:
        """Columns of a record."""
        return self.parameter_width + self.state_width

    @cached_property
    def record_bytes(self) -> int:
        return 4 * self.width
