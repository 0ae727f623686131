"""The record: a row's weight and optimizer state side by side, the unit every tier holds and moves."""

from dataclasses import dataclass
from functools import cached_property

ADAM_BETAS = (0.9, 0.999)  # torch.optim's defaults, as are those of eps below


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps, of rows and of dense parameters.

    Attributes:
        state_keys: torch.optim's names of the state of a dense parameter, one tensor of its size each.
        temporaries: tensors of the size of the parameters, beside their gradient, while these move.
        eps: added to the root that a gradient is divided by, unless an option says otherwise; 0: it has none.
        by_row: whether the state of a table is one column for each row instead of one for each column.
    """

    state_keys: tuple[str, ...]
    temporaries: int
    eps: float
    by_row: bool = False

    @property
    def table_state_keys(self) -> tuple[str, ...]:
        """Names of the state of a table; by rows as facebookresearch/dlrm has it."""
        return ("momentum",) if self.by_row else self.state_keys


OPTIMIZERS = {
    "sgd": Optimizer((), 0, 0.0),
    "adagrad": Optimizer(("sum",), 1, 1e-10),
    "rwsadagrad": Optimizer(("sum",), 1, 1e-10, by_row=True),
    "adam": Optimizer(("exp_avg", "exp_avg_sq"), 2, 1e-8),
}


@dataclass(frozen=True)
class RecordLayout:
    """Columns of a record: ``[weight (dim) | pooling weight (0 or 1) | optimizer state]``, all float32.

    State moves with its row, so an optimizer is as right under the cache as without it. State starts at zero.
    The state is: nothing for sgd; for rwsadagrad one sum of squares, and one more for a pooling weight; for adagrad a
    sum of squares a parameter column; for adam a first and a second moment a parameter column.

    Attributes:
        dim: embedding dimension.
        optimizer: one of `OPTIMIZERS`.
        weighted: whether the row has a pooling weight, a learned factor of its vector, after its weight.
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
        optimizer = OPTIMIZERS[self.optimizer]
        return len(optimizer.state_keys) * (1 + self.weighted if optimizer.by_row else self.parameter_width)

    @cached_property
    def width(self) -> int:
        """Columns of a record."""
        return self.parameter_width + self.state_width

    @cached_property
    def record_bytes(self) -> int:
        return 4 * self.width


@dataclass(frozen=True)
class GroupShape:
    """Tables whose records have the same columns, so that their rows share slots.

    Attributes:
        table_rows: rows of each.
        layout: columns of a record.
        bags_per_sample: where that is not one for each table: several features may look up one.
    """

    table_rows: tuple[int, ...]
    layout: RecordLayout
    bags_per_sample: int | None = None

    @property
    def num_rows(self) -> int:
        return sum(self.table_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of all records, those of untouched rows included."""
        return self.num_rows * self.layout.record_bytes
