"""Criteo's raw files, read as they are: ``--data criteo:PATH``, for a first look.

PATH is a file (plain, gzip or zstd) or a folder of them. Categories are folded into their tables: row = value modulo
rows of the table. `cachedlrm.prepare` makes files that are smaller and faster, with rows by frequency and a held-out
part.
"""

import importlib.util
import threading
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, make_batch, spans

if TYPE_CHECKING:
    from cachedlrm.data.raw.lines import TextFile
    from cachedlrm.data.raw.samples import Block, Samples

NUM_TABLES, NUM_DENSE = 26, 13
DEFAULT_ROWS = 100_000
"""Rows of each table unless the options say."""
_BLOCK_BYTES = 1 << 20
_KEPT_BLOCKS = 2


@dataclass(frozen=True)
class CriteoFiles:
    """Where the lines of files are. Use `open_criteo`.

    Attributes:
        words: what the user called them, for messages.
        blocks: pieces of whole lines, in order, without their content.
        first_samples: number of each block's first sample, and of all samples.
    """

    words: str
    blocks: tuple["Block", ...]
    first_samples: tuple[int, ...]


def open_criteo(words: str, path: str) -> CriteoFiles:
    """Counts the lines of a file, or of the files of a folder in natural order, in one pass over them.

    Args:
        words: option and value that name it, for messages.
        path: the file or folder.

    Raises:
        UserError: it cannot be read, or holds no line, or the parser's package is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{words} needs the package pyarrow: pip install 'cachedlrm[prepare]'")
    from cachedlrm.data.raw.inputs import find_inputs  # noqa: PLC0415 - needs an optional package
    from cachedlrm.data.raw.lines import read_blocks  # noqa: PLC0415
    from cachedlrm.data.raw.samples import Position  # noqa: PLC0415

    try:
        files = find_inputs([Path(path)])
    except UserError as error:
        raise UserError(f"{words}: {error}") from error
    blocks = [block.with_content(None) for file in files for block in read_blocks(file, Position(), _BLOCK_BYTES)]
    if not blocks:
        raise UserError(f"{words}: no lines in it; name another file")
    counts = [block.end.lines - block.start.lines for block in blocks]
    return CriteoFiles(words, tuple(blocks), tuple(accumulate(counts, initial=0)))


class CriteoSource:
    """A `Source` over the lines of files.

    Reading on is cheap; going back in a compressed file decompresses it from the start.

    Args:
        files: the lines.
        table_rows: rows of the 26 tables.
    """

    max_lookups_per_bag = 1
    num_dense = NUM_DENSE

    def __init__(self, files: CriteoFiles, table_rows: tuple[int, ...]) -> None:
        from cachedlrm.data.raw.criteo import Criteo  # noqa: PLC0415 - needs an optional package

        self.table_rows = table_rows
        self.num_samples = files.first_samples[-1]
        self._files = files
        self._format = Criteo(_BLOCK_BYTES)
        self._lock = threading.Lock()
        self._parsed: dict[int, Samples] = {}  # the last blocks, by number
        self._text: TextFile | None = None
        self._next_block = -1  # that `_text` is at

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``, of several blocks where the range spans them.

        Raises:
            UserError: a line does not parse; names it.
        """
        dense, labels = np.empty((stop - start, NUM_DENSE), np.float32), np.empty(stop - start, np.float32)
        ids = np.empty((stop - start, NUM_TABLES), np.int64)
        with self._lock:
            for number, part, out in spans(self._files.first_samples, start, stop):
                samples = self._samples(number)
                dense[out], labels[out], ids[out] = samples.dense[part], samples.labels[part], samples.keys[:, part].T
        ids %= np.array(self.table_rows)
        rows = ids.ravel()
        return make_batch(dense, rows, np.arange(len(rows) + 1), labels, self.table_rows, self._files.words, start)

    def _samples(self, number: int) -> "Samples":
        if number not in self._parsed:
            parsed, _ = self._format.parse(self._block(number), skip_bad=False)
            if len(self._parsed) == _KEPT_BLOCKS:
                del self._parsed[next(iter(self._parsed))]
            self._parsed[number] = parsed
        return self._parsed[number]

    def _block(self, number: int) -> "Block":
        """A block with its content; going on in the open file where it is the next one."""
        from cachedlrm.data.raw.lines import TextFile, reading  # noqa: PLC0415 - needs an optional package

        block = self._files.blocks[number]
        with reading(block.path):
            if number != self._next_block or block.start.offset == 0:
                if self._text is not None:
                    self._text.close()
                self._text = TextFile(block.path)
                self._text.skip(block.start.offset)
            assert self._text is not None
            size = block.end.offset - block.start.offset
            content = self._text.read(size)
        if len(content) < size:
            raise UserError(f"{self._files.words} has become shorter while it was read; leave the file alone")
        self._next_block = number + 1
        return block.with_content(content)
