"""What policies learn of the ids before training: counts for ``static`` and ``lookahead``, next uses for ``oracle``."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write
from cachedlrm.cache.lookup_counts import MANY, Counts, add_lookups
from cachedlrm.cache.next_use import NextUses, NextUseWriter
from cachedlrm.cache.policies import Lookahead, Oracle, Policy, Static
from cachedlrm.cache.working_set import AddressBook, Int64s
from cachedlrm.data.lookups import Router
from cachedlrm.options.resolved import Resolved, ResolvedCache
from cachedlrm.options.schedule import Schedule

NEXT_USES_FOLDER = "next_uses"
"""Of the run directory; gone when the run is finished."""

_SAVE_EVERY_S = 60.0
_NUM_SAMPLED_BATCHES = 8  # of which the fingerprint has the ids

Tell = Callable[[float], None]


def tell_nobody(share: float) -> None:
    """For callers without a display."""


def inform_policies(
    caches: Sequence[Sequence[Policy]],
    num_rows: Sequence[int],
    router: Router,
    schedule: Schedule,
    options: Resolved,
    run_dir: Path,
    row_counts: Int64s | None = None,
    tell: Tell = tell_nobody,
    first_batch: int = 0,
) -> None:
    """Gives policies what they need of the stream; one pass over the ids if they need anything.

    Args:
        caches: the policies of each group of each cache, all of one kind.
        num_rows: rows of each group.
        router: from batches to the lookups of each group.
        schedule: of the run.
        options: resolved; what the stream depends on.
        run_dir: where next uses go.
        row_counts: lookups of each row in an epoch, where the data knows them.
        tell: takes the share of the ids that was read, again and again.
        first_batch: the first of the run to plan; those before it were trained by an earlier process.

    Raises:
        UserError: ids are wrong, or the disk is full.
        KeyboardInterrupt: a signal came; the pass goes on with the next run in the same directory.
    """
    by_group = list(zip(*caches, strict=True))
    kind = caches[0][0]
    known = row_counts if router.is_identity else None
    if isinstance(kind, Static) and known is None:
        _count_uses(by_group, num_rows, router, schedule, tell)
    elif isinstance(kind, Static) and known is not None:
        for (policy,) in caches:  # plain tables share a slab
            assert isinstance(policy, Static)
            policy.take_counts(known)
    if isinstance(kind, Lookahead) and knows_counts(options.cache, router, row_counts):
        _count_what_is_left(by_group, num_rows, router, schedule, known, first_batch, tell)
    if isinstance(kind, Oracle):
        folder = run_dir / NEXT_USES_FOLDER
        read_next_uses(num_rows, router, schedule, options, folder, tell=tell)
        for number, policies in enumerate(by_group):
            for policy in policies:
                assert isinstance(policy, Oracle)
                policy.know(NextUses(folder / str(number)))


def _count_what_is_left(
    by_group: Sequence[Sequence[Policy]],
    num_rows: Sequence[int],
    router: Router,
    schedule: Schedule,
    known: Int64s | None,
    first_batch: int,
    tell: Tell,
) -> None:
    """Policy ``lookahead`` ranks rows by lookups left; ``known`` are those of an epoch, where the data has them."""
    epochs, passed = 1, None
    counts: Sequence[NDArray[np.integer]]
    if known is None:  # those behind `first_batch`, all epochs together
        counts = _count_lookups(num_rows, router, schedule, (first_batch, schedule.num_batches), tell)
    else:
        epochs, counts = -(-schedule.num_batches // schedule.batches_per_epoch), [known]
        if first_batch:
            passed = _count_lookups(num_rows, router, schedule, (0, first_batch), tell)
    for number, policies in enumerate(by_group):
        for policy in policies:
            assert isinstance(policy, Lookahead)
            policy.take_counts(counts[number], epochs, None if passed is None else passed[number])


def knows_counts(cache: ResolvedCache, router: Router, row_counts: Int64s | None) -> bool:
    """Whether policy ``lookahead`` is told how often each row is still to be used; arguments as of `inform_policies`.

    Counts of the data are of its own tables, not of those that tricks make of them.
    """
    return cache.count_rows or (row_counts is not None and router.is_identity)


def discard_next_uses(run_dir: Path) -> None:
    """Removes what a finished run does not need any more."""
    shutil.rmtree(run_dir / NEXT_USES_FOLDER, ignore_errors=True)


def _count_lookups(
    num_rows: Sequence[int], router: Router, schedule: Schedule, between: tuple[int, int], tell: Tell
) -> list[Counts]:
    """Lookups of each row of each group in batches ``between`` two of the run; reads an epoch at most."""
    counts = [np.zeros(rows, np.uint16) for rows in num_rows]
    num_batches = min(schedule.batches_per_epoch, schedule.num_batches)
    for index in range(num_batches):
        tell(index / num_batches)
        times = schedule.repeats(index, *between)
        if times:
            for of_group, lookups in zip(counts, router(schedule.read(index)), strict=True):
                add_lookups(lookups.rows, of_group, min(times, MANY))
    return counts


def _count_uses(
    by_group: Sequence[Sequence[Policy]], num_rows: Sequence[int], router: Router, schedule: Schedule, tell: Tell
) -> None:
    """Policy ``static`` ranks rows by the batches of an epoch that use them."""
    books = [AddressBook(rows) for rows in num_rows]
    num_batches = min(schedule.batches_per_epoch, schedule.num_batches)
    for index, batch in enumerate(schedule.one_epoch()):
        tell(index / num_batches)
        for policies, book, lookups in zip(by_group, books, router(batch), strict=True):
            working_set = book.working_set(index, lookups.rows, lookups.offsets)
            for policy in policies:
                assert isinstance(policy, Static)
                policy.count([working_set])


def read_next_uses(
    num_rows: Sequence[int],
    router: Router,
    schedule: Schedule,
    options: Resolved,
    folder: Path,
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = tell_nobody,
) -> None:
    """Writes the next uses of the run's ids into ``folder``, a subfolder for each group.

    A pass that was interrupted goes on where it was saved last, a finished one is used again, if the stream is the same
    by its fingerprint: the options, and the ids of a few batches.

    Args:
        num_rows: rows of each group.
        router: from batches to the lookups of each group.
        schedule: of the run.
        options: resolved.
        folder: where.
        clock: seconds, for tests.
        tell: as `inform_policies` has it.

    Raises:
        UserError: ids are wrong, or the disk is full.
        KeyboardInterrupt: a signal came; what was read so far is safe.
    """
    fingerprint = _fingerprint(schedule, options)
    with ExitStack() as files:
        try:
            writers = [
                NextUseWriter(folder / str(number), rows, schedule.num_batches, fingerprint)
                for number, rows in enumerate(num_rows)
            ]
            for writer in writers:
                files.callback(writer.close)
            _read_backwards(writers, router, schedule, clock, tell)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise cannot_write(folder, error, "choose another --run-dir, or another --policy") from error
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _read_backwards(
    writers: Sequence[NextUseWriter], router: Router, schedule: Schedule, clock: Callable[[], float], tell: Tell
) -> None:
    saved = clock()
    try:
        while (index := max(writer.next_batch for writer in writers)) >= 0:
            tell(1 - (index + 1) / schedule.num_batches)
            lookups = router(schedule.read(index))
            for writer, part in zip(writers, lookups, strict=True):
                if writer.next_batch == index:  # groups may have been saved at different batches
                    writer.add(part.rows)
            if clock() - saved > _SAVE_EVERY_S:
                for writer in writers:
                    writer.save()
                saved = clock()
    except KeyboardInterrupt as error:
        for writer in writers:
            writer.save()
        raise KeyboardInterrupt(
            "interrupted while reading ids for --policy oracle; the same command with the same --run-dir goes on there"
        ) from error
    for writer in writers:
        writer.save()


def _fingerprint(schedule: Schedule, options: Resolved) -> str:
    """Of the stream of ids: what it is drawn from, and some of it, as files may change under their names."""
    parts = (options.model, options.batches, options.data, options.reference)
    digest = hashlib.sha256(json.dumps([asdict(part) for part in parts], default=str).encode())
    digest.update(f"{schedule.num_batches} {options.optimisation.mlperf_grad_accum_iter}".encode())
    last = schedule.num_batches - 1
    for number in range(min(_NUM_SAMPLED_BATCHES, last + 1)):
        digest.update(schedule.read(last * number // max(1, _NUM_SAMPLED_BATCHES - 1)).rows.tobytes())
    return digest.hexdigest()
