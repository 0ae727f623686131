"""The record: a row's weight and optimizer state side by side, the unit every tier holds and moves."""

from dataclasses import dataclass

# Extra float32 columns behind the weight, as multiples of the embedding dimension and as single columns.
_STATE_COLUMNS = {"sgd": (0, 0), "rwsadagrad": (0, 1), "adagrad": (1, 0), "adam": (2, 0)}

OPTIMIZERS = tuple(_STATE_COLUMNS)


@dataclass(frozen=True)
class RecordLayout:
    """Columns of a record: ``[weight (dim) | optimizer state]``, all float32.

    State moves with its row, so an optimizer is as right under the cache as without it. State starts at zero.
    The state is: nothing for sgd; one sum of squares for rwsadagrad; ``dim`` sums of squares for adagrad; ``dim``
    first and ``dim`` second moments for adam.

    Attributes:
        dim: embedding dimension.
        optimizer: one of `OPTIMIZERS`.
    """

    dim: int
    optimizer: str

    @property
    def state_width(self) -> int:
        """Columns of optimizer state."""
        per_dim, single = _STATE_COLUMNS[self.optimizer]
        return per_dim * self.dim + single

    @property
    def width(self) -> int:
        """Columns of a record."""
        return self.dim + self.state_width

    @property
    def record_bytes(self) -> int:
        return 4 * self.width
