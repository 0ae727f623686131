"""From raw files to the triples that training reads: read, number the categories, write. Every stage is out of core."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.inputs import find_inputs
from cachedlrm.data.raw.keys import RULES
from cachedlrm.data.raw.samples import Format
from cachedlrm.data.vocabulary import PREPARED_FILE, Vocabulary, make_fingerprint
from cachedlrm.prepare.assemble import TEST, TRAIN, most_listed, output_names, write_rows, write_triple
from cachedlrm.prepare.base import Base, read_base
from cachedlrm.prepare.options import MOST_ROWS, PrepareOptions
from cachedlrm.prepare.progress import Display, Stage
from cachedlrm.prepare.reading import read_files, thread_pool
from cachedlrm.prepare.tables import FinishedTable, TableBuilder
from cachedlrm.prepare.vocabulary import SLOT_BYTES
from cachedlrm.prepare.work import Work, open_work, write_json

_RESERVE_BYTES = 96 << 20  # compiled kernels, the display, and freed memory that the C library keeps
_THREAD_BYTES = 32 << 20  # pieces of columns
_LEAST_TABLE_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20


def prepare(format_: Format, paths: Sequence[Path], options: PrepareOptions, progress: Display) -> None:
    """Prepares raw files, or goes on where an earlier process with the same command was interrupted.

    Args:
        format_: of the files.
        paths: files, and folders of files.
        options: of the command.
        progress: the display.

    Raises:
        UserError: a file or line is not as it should be, or the output cannot be written.
        KeyboardInterrupt: interrupted; recorded work is kept.
    """
    if not format_.has_labels:
        options = replace(options, test_fraction=0.0)
    inputs, base = find_inputs(paths), read_base(options, format_)
    if base is not None:
        options = replace(options, max_ind_range=base.max_ind_range)
    if options.test_files is not None and options.test_files >= len(inputs):
        raise UserError(
            f"--test-files {options.test_files} leaves none of {len(inputs)} to train on; name more files, or hold out "
            "a share of the samples with --test-fraction"
        )
    _check(format_, options, inputs)
    with open_work(options.out, _command(format_, options, inputs, base)) as work:
        if work is None:
            progress.say(f"{shown(options.out)} is complete")
            return
        if work.resumed:
            progress.say("resuming where it was interrupted")
        if work.restarted:
            progress.say("files have changed since it was interrupted; starting over")
        skipped = sum(work.read.skipped)
        if skipped and not options.skip_bad_lines:
            raise UserError(
                f"{skipped:,} {format_.line}s are left out already; add --skip-bad-lines, or remove "
                f"{shown(work.folder)} to begin anew"
            )
        read_files(work, format_, options, inputs, progress)
        num_samples = work.read.num_samples
        num_train = num_samples - _num_test(options, work.read.samples)
        if not num_train:
            raise UserError(f"{shown(paths[0])}: no samples to train on; name other files")
        if not work.read.written:
            tables = _number(work, format_, options, num_train, progress, base=base)
            _write(work, format_, tables, num_train, progress)
            summary = _summary(work, format_, inputs, tables, num_train)
            vocabulary = Vocabulary(_fingerprint(format_, options, tables))
            if base is not None:
                vocabulary = base.vocabulary_with(vocabulary.fingerprint)
            summary["vocabulary"] = {"fingerprint": vocabulary.fingerprint, "bases": list(vocabulary.bases)}
            write_json(work.folder / "out" / PREPARED_FILE, summary)
            work.record(replace(work.read, written=True))
        work.publish(output_names(num_train < num_samples, format_.has_labels, bool(format_.list_tables)))
        held_out, skipped = num_samples - num_train, sum(work.read.skipped)
        without = f", {skipped:,} {format_.line}s skipped" if skipped else ""
        progress.say(f"{shown(options.out)}: {num_train:,} samples to train on, {held_out:,} held out{without}")


def _check(format_: Format, options: PrepareOptions, inputs: Sequence[Path]) -> None:
    """Looks at every file, so that one that cannot be read shows before hours are spent on the others.

    Raises:
        UserError: one of them cannot be read, or there is nothing to train on or to hold out.
    """
    holds = [format_.check(path) for path in inputs]
    if not any(holds):
        raise UserError(f"{shown(inputs[0])}: no samples to train on; name other files")
    num_test = _num_test_files(options, len(inputs))
    if num_test and not any(holds[-num_test:]):
        raise UserError(
            f"{shown(inputs[-1])}, which is to be held out, holds no samples; leave it out, or say what to hold out "
            "with --test-files or --test-fraction (0: none)"
        )
    if num_test and not any(holds[:-num_test]):
        raise UserError(f"{shown(inputs[0])}: no samples to train on before those held out; name other files")


def _num_test_files(options: PrepareOptions, num_files: int) -> int:
    """Files to hold out, from the end; 0: a share of the samples, or none."""
    if options.test_fraction is not None or (options.test_files is None and num_files == 1):
        return 0
    return 1 if options.test_files is None else options.test_files


def _command(format_: Format, options: PrepareOptions, inputs: Sequence[Path], base: Base | None) -> dict[str, Any]:
    """Everything that the output depends on: not memory and threads.

    Nor --skip-bad-lines, so that it may be added after a bad line has ended the command.
    """
    files = [(str(path.resolve()), path.stat()) for path in inputs]
    return {
        "source": format_.name,
        "inputs": [{"path": shown(path), "bytes": s.st_size, "modified_ns": s.st_mtime_ns} for path, s in files],
        "dense": list(format_.dense_names),
        "sparse": list(format_.table_names),
        "rules": RULES,
        "base": None if base is None else f"{'extend' if base.extends else 'vocabulary'} {base.vocabulary.fingerprint}",
        "min_count": options.min_count,
        "max_ind_range": options.max_ind_range,
        "test_fraction": options.test_fraction,
        "test_files": options.test_files,
    } | format_.settings


def _num_test(options: PrepareOptions, file_samples: Sequence[int]) -> int:
    """Samples to hold out, from the end."""
    if options.test_fraction is not None:
        return int(Fraction(repr(options.test_fraction)) * sum(file_samples))
    num_files = _num_test_files(options, len(file_samples))
    if not num_files:
        return file_samples[0] // 7  # facebookresearch/dlrm takes Kaggle's file for seven days
    return sum(file_samples[-num_files:])


def _number(
    work: Work, format_: Format, options: PrepareOptions, num_train: int, progress: Display, *, base: Base | None
) -> list[FinishedTable]:
    """Vocabularies, and the rows of all lookups; tables side by side, with equal shares of the memory."""
    num_samples, stop = work.read.num_samples, threading.Event()
    free = options.memory - _resident_bytes() - _RESERVE_BYTES
    affordable = max(1, free // (_THREAD_BYTES + _LEAST_TABLE_BYTES))
    num_threads = min(options.num_threads, len(format_.table_names), affordable)
    slots = max(_LEAST_TABLE_BYTES, free // num_threads - _THREAD_BYTES) // SLOT_BYTES
    builder = TableBuilder(
        folder=work.folder,
        key_dtype=format_.key_dtype,
        num_train=num_train,
        num_samples=num_samples,
        min_count=options.min_count,
        max_slots=1 << slots.bit_length() - 1,
        stop=stop,
        base=base,
    )
    with (
        progress.stage("numbering", num_samples * len(format_.table_names), "lookups") as stage,
        thread_pool(num_threads) as pool,
    ):
        shares = [0.0] * len(format_.table_names)
        try:  # a signal may come while tables are still handed out
            futures: list[Future[FinishedTable]] = [
                pool.submit(builder.build, number, name, _share_noter(stage, shares, number, num_samples))
                for number, name in enumerate(format_.table_names)
            ]
            tables = [future.result() for future in futures]
        finally:
            stop.set()
    rows = sum(table.num_rows for table in tables)
    if rows > MOST_ROWS:
        raise UserError(
            f"the tables have {rows:,} rows, of which there can be {MOST_ROWS:,}; raise --min-count, or fold values "
            "with --max-ind-range, with another --out"
        )
    return tables


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _share_noter(stage: Stage, shares: list[float], number: int, num_samples: int) -> Callable[[float], None]:
    """Reports the progress of one of the tables to the display."""

    def note(share: float) -> None:
        shares[number] = share
        stage.update(int(sum(shares) * num_samples))

    return note


def _write(work: Work, format_: Format, tables: Sequence[FinishedTable], num_train: int, progress: Display) -> None:
    """The files for training, in the working folder until all are complete."""
    out, num_samples = work.folder / "out", work.read.num_samples
    out.mkdir(exist_ok=True)
    triples = [(out / TRAIN, range(num_train))]
    if num_train < num_samples:
        (out / TEST).mkdir(exist_ok=True)
        triples.append((out / TEST / TEST, range(num_train, num_samples)))
    done = 0
    with progress.stage("writing", num_samples) as stage:
        for prefix, samples in triples:
            for count in write_triple(work.folder, prefix, len(format_.dense_names), tables, samples):
                done += count
                stage.update(done)
        write_rows(out, tables)


def _summary(
    work: Work,
    format_: Format,
    inputs: Sequence[Path],
    tables: Sequence[FinishedTable],
    num_train: int,
) -> dict[str, Any]:
    """The content of ``prepared.json``."""
    files = zip(inputs, work.read.samples, work.read.skipped, strict=True)
    names = zip(format_.table_names, tables, strict=True)
    most = [most_listed(table, range(num_train)) for table in tables]
    return {
        "version": 1,
        "samples": num_train,
        "test_samples": work.read.num_samples - num_train,
        "table_rows": [table.num_rows for table in tables],
        "tables": [{"name": name, "rows": t.num_rows, "different_values": t.num_keys} for name, t in names],
        "files": [{"path": shown(path), "samples": good, "skipped": bad} for path, good, bad in files],
        "command": work.command,
    } | ({"max_lookups_per_bag": most} if format_.list_tables else {})


def _fingerprint(format_: Format, options: PrepareOptions, tables: Sequence[FinishedTable]) -> str:
    """That of the vocabulary of all tables."""

    def pieces() -> Iterator[bytes]:
        for table in tables:
            with table.keys.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield piece

    return make_fingerprint(format_.table_names, [table.num_rows for table in tables], options.max_ind_range, pieces())
