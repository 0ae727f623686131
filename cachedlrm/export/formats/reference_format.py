"""How facebookresearch/dlrm's model files name and order what a model and its optimizer consist of."""

from collections.abc import Iterator

from cachedlrm.options.architecture import Architecture
from cachedlrm.store.records import OPTIMIZERS, RecordLayout


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
    """What a record's columns hold, in order: parameter, key of its state (None: the parameter), columns.

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


def state_keys(optimizer: str, name: str) -> tuple[str, ...]:
    """Keys of a parameter's state."""
    is_table = name.startswith("emb_l.") and not name.endswith(".proj.weight")
    return OPTIMIZERS[optimizer].table_state_keys if is_table else OPTIMIZERS[optimizer].state_keys
