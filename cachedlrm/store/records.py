"""The record: a row's weight and optimizer state side by side, the unit every tier holds and moves."""

from dataclasses import dataclass
from functools import cached_property

ADAM_BETAS = (0.9, 0.999)  # torch.optim's defaults, as are those of eps below

LEAST_EPS = 1e-30
"""Less is nothing in 32 bits, and a gradient of 0 divided by it not a number."""


@dataclass(frozen=True)
class Optimizer:
    """The state that an optimizer keeps of rows and of dense parameters.

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


ROW_DTYPES = ("fp32", "bf16", "fp16")
"""How parameters may be kept."""
STATE_DTYPES = ("fp32", "bf16")
"""How optimizer state may be kept; squares of gradients are below the least number of fp16."""
DTYPES_BEFORE = {"row-dtype": "fp32", "row-state-dtype": "fp32"}
"""Of what an earlier release wrote, which says nothing of them; by option."""
OPTIONS_BEFORE = {**DTYPES_BEFORE, "pooling": "sum"}
"""The same of all options that decide what rows are and that an earlier release lacked."""


@dataclass(frozen=True)
class RecordLayout:
    """The columns of a record: ``[weight (dim) | pooling weight (0 or 1) | optimizer state]``.

    As numbers, each is a float32 in a column of its own. As it is kept, the record is words of four bytes, which hold
    parameters of 16 bits by twos, and likewise state (`cachedlrm.store.packing`); each begins at a word.

    State moves with its row, so an optimizer is as right under the cache as without it. State starts at zero.
    The state is: nothing for sgd; for rwsadagrad one sum of squares, and one more for a pooling weight; for adagrad a
    sum of squares a parameter column; for adam a first and a second moment a parameter column.

    Attributes:
        dim: embedding dimension.
        optimizer: one of `OPTIMIZERS`.
        weighted: whether the row has a pooling weight, a learned factor of its vector, after its weight.
        row_dtype: how parameters are kept, one of `ROW_DTYPES`.
        state_dtype: how state is kept, one of `STATE_DTYPES`.
    """

    dim: int
    optimizer: str
    weighted: bool = False
    row_dtype: str = "fp32"
    state_dtype: str = "fp32"

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
    def columns(self) -> int:
        """Numbers of a record."""
        return self.parameter_width + self.state_width

    @cached_property
    def parameter_words(self) -> int:
        """Words that parameters are kept in."""
        return _words(self.parameter_width, self.row_dtype)

    @cached_property
    def width(self) -> int:
        """Words of a record."""
        return self.parameter_words + _words(self.state_width, self.state_dtype)

    @cached_property
    def is_packed(self) -> bool:
        """Whether the words of a record are others than its numbers."""
        return self.row_dtype != "fp32" or (self.state_width > 0 and self.state_dtype != "fp32")

    @cached_property
    def record_bytes(self) -> int:
        return 4 * self.width


def _words(columns: int, dtype: str) -> int:
    return columns if dtype == "fp32" else -(-columns // 2)


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
