"""The kinds of raw files, by name."""

from dataclasses import replace

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.avazu import Avazu
from cachedlrm.data.raw.columns import Schema, split_columns
from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.data.raw.csv import Csv, Dialect
from cachedlrm.data.raw.inputs import find_inputs
from cachedlrm.data.raw.lines import TextFormat
from cachedlrm.data.raw.parquet import Parquet, find_lists
from cachedlrm.data.raw.samples import Format
from cachedlrm.prepare.options import Command, DialectOptions, PrepareOptions

_LARGEST_BLOCK, _LEAST_BLOCK = 8 << 20, 1 << 16


def make_format(command: Command) -> Format:
    """The format that a command names.

    Raises:
        UserError: columns that do not make a schema.
    """
    if command.columns is None:
        formats: dict[str, type[TextFormat]] = {"criteo": Criteo, "avazu": Avazu}
        return formats[command.source](_block_bytes(command.options, 96))  # in memory six times its text
    columns = command.columns
    dense = split_columns("--dense", columns.dense) if columns.dense else ()
    sparse = split_columns("--sparse", columns.sparse)
    if columns.label in (*dense, *sparse):
        raise UserError(
            f"--label {columns.label} is also in --dense or --sparse, which would give the answer away; drop it"
        )
    schema = Schema(columns.label, dense, sparse, columns.log_dense)
    if command.dialect is None:
        schema = replace(schema, lists=find_lists(find_inputs(command.paths)[0], sparse))
        return Parquet(schema, _block_bytes(command.options, 16))
    return Csv(schema, _dialect(command.dialect), _block_bytes(command.options, 96))


def _dialect(options: DialectOptions) -> Dialect:
    columns = tuple(name.strip() for name in options.columns.split(",")) if options.columns else None
    return Dialect(options.delimiter, columns, tuple(options.nulls.split(",")) if options.nulls else ())


def _block_bytes(options: PrepareOptions, parts: int) -> int:
    """A part of the memory for each block, of which one more is there than threads."""
    share = options.memory // (parts * (options.num_threads + 1))
    return max(_LEAST_BLOCK, min(share, _LARGEST_BLOCK))
