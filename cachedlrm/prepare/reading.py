"""The first stage: raw files, parsed side by side in blocks and in order, into the spool."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow

from cachedlrm.data.raw.keys import fold_keys
from cachedlrm.data.raw.samples import BadLine, Block, Format, Position, Samples, bad_line_words
from cachedlrm.prepare.options import PrepareOptions
from cachedlrm.prepare.progress import Display
from cachedlrm.prepare.spool import SampleSpool
from cachedlrm.prepare.work import Work

_COMMIT_S = 10.0
_SHOWN_BAD_LINES = 5

Parsed = tuple[Block, Samples, list[BadLine]]


def read_files(work: Work, format_: Format, options: PrepareOptions, inputs: Sequence[Path], progress: Display) -> None:
    """Parses the part of the files that is not on record yet.

    Args:
        work: the output's working folder.
        format_: of the files.
        options: of the command.
        inputs: the files, in order.
        progress: the display.

    Raises:
        UserError: a file cannot be read, or a line does not parse and is not to be skipped.
    """
    if work.read.done:
        return
    sizes = [path.stat().st_size for path in inputs]
    columns = len(format_.dense_names), len(format_.table_names)
    with (
        progress.stage("reading", sum(sizes)) as stage,
        SampleSpool(
            work.folder, *columns, format_.key_dtype, work.read.num_samples, list_tables=format_.list_tables
        ) as spool,
        thread_pool(options.num_threads) as pool,
    ):
        read, committed = work.read, time.monotonic()
        while True:
            path, start = inputs[read.file], Position(read.offset, read.lines)
            for block, samples, bad in _parsed(pool, options, format_, path, start):
                if options.max_ind_range > 0:
                    for keys in (samples.keys, *(lists.keys for lists in samples.lists.values())):
                        fold_keys(keys, options.max_ind_range)
                spool.append(samples)
                _report(progress, format_, path, bad, sum(read.skipped))
                read = read.after(block.end, len(samples), len(bad))
                if time.monotonic() - committed > _COMMIT_S:
                    spool.commit()
                    work.record(read)
                    committed = time.monotonic()
                stage.update(sum(sizes[: read.file]) + int(block.share * sizes[read.file]), read.num_samples)
            if read.file + 1 == len(inputs):
                break
            read = read.next_file()
        spool.commit()
    pyarrow.default_memory_pool().release_unused()  # the next stage takes what is free
    work.record(replace(read, done=True))


@contextmanager
def thread_pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for work that leaves the interpreter free; tasks not begun when the block ends are dropped."""
    pool = ThreadPoolExecutor(num_threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _parsed(
    pool: ThreadPoolExecutor, options: PrepareOptions, format_: Format, path: Path, start: Position
) -> Iterator[Parsed]:
    """The blocks of a file, parsed, in order; one more is in memory than there are threads."""

    def parse(block: Block) -> Parsed:
        return (block, *format_.parse(block, options.skip_bad_lines))

    waiting: deque[Future[Parsed]] = deque()
    for block in format_.blocks(path, start):
        waiting.append(pool.submit(parse, block))
        if len(waiting) > options.num_threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _report(progress: Display, format_: Format, path: Path, bad: Sequence[BadLine], before: int) -> None:
    """Names the first lines that are skipped; the others are counted."""
    for number, line in enumerate(bad[: max(0, _SHOWN_BAD_LINES - before)], before + 1):
        progress.say(f"skipped {bad_line_words(format_, path, line)}")
        if number == _SHOWN_BAD_LINES:
            progress.say("further bad lines are skipped silently, and counted")
