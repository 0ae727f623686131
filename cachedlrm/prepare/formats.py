"""The kinds of raw files, by name."""

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.avazu import Avazu
from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.data.raw.lines import TextFormat
from cachedlrm.data.raw.parquet import Parquet, split_columns
from cachedlrm.data.raw.samples import Format
from cachedlrm.prepare.options import Command

_LARGEST_BLOCK, _LEAST_BLOCK = 8 << 20, 1 << 16


def make_format(command: Command) -> Format:
    """The format that a command names.

    Raises:
        UserError: columns of Parquet files that do not make a schema.
    """
    if command.columns is None:
        # A block in memory takes about six times its text, and one more is there than threads.
        share = command.options.memory // (96 * (command.options.num_threads + 1))
        block_bytes = max(_LEAST_BLOCK, min(share, _LARGEST_BLOCK))
        formats: dict[str, type[TextFormat]] = {"criteo": Criteo, "avazu": Avazu}
        return formats[command.source](block_bytes)
    columns = command.columns
    dense, sparse = split_columns("--dense", columns.dense), split_columns("--sparse", columns.sparse)
    if columns.label in (*dense, *sparse):
        raise UserError(
            f"--label {columns.label} is also in --dense or --sparse, which would give the answer away; drop it"
        )
    return Parquet(columns.label, dense, sparse, columns.log_dense)
