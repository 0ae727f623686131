"""Criteo's raw files, read as they are: ``--data criteo:PATH``, for a first look.

PATH is a file (plain, gzip or zstd) or a folder of them. Categories are folded into their tables: row = value modulo
rows of the table. `cachedlrm.prepare` makes files that are smaller and faster, with rows by frequency and a held-out
part. Needs the optional package pyarrow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import MOST_ROWS
from cachedlrm.data.files import BlockSource, DecodedBlock, numbered
from cachedlrm.data.raw.criteo import NUM_DENSE, NUM_TABLES, Criteo, lacks_label
from cachedlrm.data.raw.inputs import find_inputs
from cachedlrm.data.raw.lines import TextFile, first_line, reading
from cachedlrm.data.raw.samples import Block, Position
from cachedlrm.data.spec import DataRequest, SourceSpec

_DEFAULT_ROWS = 100_000
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class CriteoSpec(SourceSpec):
    """``criteo:PATH``: where the lines of files are.

    Attributes:
        blocks: pieces of whole lines, in order, without their content.
        max_ind_range: rows of each table if positive, unless the options say.
        has_labels: whether lines begin with a label.
    """

    words: str
    blocks: tuple[Block, ...]
    max_ind_range: int
    has_labels: bool
    columns = NUM_TABLES, NUM_DENSE
    hashes_ids = True

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """Counts the lines of a file, or of the files of a folder in natural order, in one pass over them."""
        try:
            files = find_inputs([Path(argument)])
        except UserError as error:
            raise UserError(f"{words}: {error}") from error
        has_labels = request.needs_labels or not lacks_label(first_line(files[0]))
        format_ = Criteo(_BLOCK_BYTES, has_labels)
        holding = [file for file in files if format_.check(file)]
        blocks = [block.with_content(None) for file in holding for block in format_.blocks(file, Position())]
        if not blocks:
            raise UserError(f"{words}: no lines in it; name another file")
        return cls(words, tuple(blocks), request.max_ind_range, has_labels)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Criteo's own."""
        return Criteo.table_names

    def table_rows(self) -> tuple[int, ...]:
        """As many of each table as ids are folded by."""
        rows = (self.max_ind_range if self.max_ind_range > 0 else _DEFAULT_ROWS,) * NUM_TABLES
        if sum(rows) > MOST_ROWS:
            raise UserError(
                f"--max-ind-range {self.max_ind_range} makes {sum(rows)} rows of {self.words}, of which there can be "
                f"{MOST_ROWS}; lower it to {MOST_ROWS // NUM_TABLES}"
            )
        return rows

    @property
    def files(self) -> tuple[Path, ...]:
        """See `SourceSpec`; those with lines."""
        return tuple(dict.fromkeys(block.path for block in self.blocks))

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "CriteoSource":
        """See `SourceSpec`."""
        return CriteoSource(self, table_rows)


def _pieces(blocks: Sequence[Block], first_samples: Sequence[int]) -> Iterator[int]:
    """First samples of what is read whole: blocks of plain files, and compressed files."""
    path, is_compressed = None, False
    for block, first in zip(blocks, first_samples, strict=False):
        is_first = block.path != path
        if is_first:
            path = block.path
            with reading(path), TextFile(path) as file:
                is_compressed = file.is_compressed
        if is_first or not is_compressed:
            yield first


class CriteoSource(BlockSource):
    """Reading on is cheap; going back in a compressed file decompresses it from the start.

    Args:
        spec: of the lines.
        table_rows: rows of the 26 tables.
    """

    def __init__(self, spec: CriteoSpec, table_rows: tuple[int, ...]) -> None:
        first_samples = numbered(block.end.lines - block.start.lines for block in spec.blocks)
        super().__init__(spec.words, first_samples, table_rows, NUM_DENSE, spec.has_labels)
        self.pieces = (*_pieces(spec.blocks, first_samples), first_samples[-1])
        self._blocks = spec.blocks
        self._format = Criteo(_BLOCK_BYTES, spec.has_labels)
        self._text: TextFile | None = None
        self._next_block = -1  # that `_text` is at

    def _decode(self, number: int) -> DecodedBlock:
        samples, _ = self._format.parse(self._read_block(number), skip_bad=False)
        ids = samples.keys % np.array(self.table_rows, np.uint32)[:, None]
        return DecodedBlock(samples.dense, list(ids), samples.labels)

    def _read_block(self, number: int) -> Block:
        """A block with its content; going on in the open file where it is the next one."""
        block = self._blocks[number]
        with reading(block.path):
            if number != self._next_block or block.path != self._blocks[number - 1].path:
                if self._text is not None:
                    self._text.close()
                self._text = TextFile(block.path)
                self._text.skip(block.start.offset)
            assert self._text is not None
            size = block.end.offset - block.start.offset
            content = self._text.read(size)
        if len(content) < size:
            raise UserError(f"{self._words} has become shorter while it was read; leave the file alone")
        self._next_block = number + 1
        return block.with_content(content)
