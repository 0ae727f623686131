"""Passes over the ids before training: counts for ``static`` and ``lookahead``, next uses for ``oracle``."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.files import writing
from cachedlrm.cache.lookup_counts import MANY, Counts, add_lookups
from cachedlrm.cache.next_use import NextUses, NextUseWriter
from cachedlrm.cache.policies import Lookahead, Oracle, Policy, Static
from cachedlrm.cache.working_set import AddressBook, Int64s
from cachedlrm.data.lookups import Router
from cachedlrm.options.resolved import Resolved, ResolvedCache
from cachedlrm.options.schedule import Schedule

NEXT_USES_FOLDER = "next_uses"
"""Of the run directory, until the run ends."""

Tell = Callable[[float], None]


def tell_nobody(share: float) -> None:
    """For callers without a display."""


def inform_policies(
    caches: Sequence[Sequence[Policy]],
    num_rows: Sequence[int],
    router: Router,
    schedule: Schedule,
    options: Resolved,
    *,
    run_dir: Path,
    row_counts: Int64s | None = None,
    tell: Tell = tell_nobody,
    first_batch: int = 0,
) -> None:
    """Gives policies the counts or next uses that they need; one pass over the ids if they need any.

    Args:
        caches: the policies of each group of each cache, all of one kind.
        num_rows: rows of each group.
        router: from batches to the lookups of each group.
        schedule: of the run.
        options: resolved.
        run_dir: where next uses go.
        row_counts: lookups of each row in an epoch, if the data has them.
        tell: takes the share of the ids read so far, again and again.
        first_batch: the first of the run to plan; those before it were trained by an earlier process.

    Raises:
        UserError: ids are wrong, or the disk is full.
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
        _count_what_is_left(by_group, num_rows, router, schedule, tell, known=known, first_batch=first_batch)
    if isinstance(kind, Oracle):
        folder = run_dir / NEXT_USES_FOLDER
        _write_next_uses(num_rows, router, schedule, folder, tell)
        for number, policies in enumerate(by_group):
            for policy in policies:
                assert isinstance(policy, Oracle)
                policy.know(NextUses(folder / str(number)))


def _count_what_is_left(
    by_group: Sequence[Sequence[Policy]],
    num_rows: Sequence[int],
    router: Router,
    schedule: Schedule,
    tell: Tell,
    *,
    known: Int64s | None,
    first_batch: int,
) -> None:
    """Policy ``lookahead`` ranks rows by lookups left; ``known`` are those of an epoch, if the data has them."""
    epochs, passed = 1, None
    counts: Sequence[NDArray[np.integer]]
    if known is None:  # those from `first_batch` on, all epochs together
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
    """Removes next uses, which only a run in progress needs."""
    shutil.rmtree(run_dir / NEXT_USES_FOLDER, ignore_errors=True)


def _count_lookups(
    num_rows: Sequence[int], router: Router, schedule: Schedule, between: tuple[int, int], tell: Tell
) -> list[Counts]:
    """Lookups of each row of each group in batches ``between`` two of the run; reads no more than it has to."""
    counts = [np.zeros(rows, np.uint16) for rows in num_rows]
    batches = schedule.same_lookups(*between)
    for number, (index, times) in enumerate(batches):
        tell(number / len(batches))
        for of_group, lookups in zip(counts, router(schedule.read(index)), strict=True):
            add_lookups(lookups.rows, of_group, min(times, MANY))
    return counts


def _count_uses(
    by_group: Sequence[Sequence[Policy]], num_rows: Sequence[int], router: Router, schedule: Schedule, tell: Tell
) -> None:
    """Policy ``static`` ranks rows by the batches of an epoch that use them."""
    books = [AddressBook(rows, keeps_previous=False) for rows in num_rows]
    num_batches = min(schedule.batches_per_epoch, schedule.num_batches)
    for index, batch in enumerate(schedule.one_epoch()):
        tell(index / num_batches)
        for policies, book, lookups in zip(by_group, books, router(batch), strict=True):
            working_set = book.working_set(index, lookups.rows, lookups.offsets)
            for policy in policies:
                assert isinstance(policy, Static)
                policy.count([working_set])


def _write_next_uses(num_rows: Sequence[int], router: Router, schedule: Schedule, folder: Path, tell: Tell) -> None:
    """Writes the next uses of the run's ids into ``folder``, a subfolder for each group; complete, or nothing."""
    with writing(folder, "choose another --run-dir, or another --policy"), ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        with ExitStack() as files:
            writers = [
                files.enter_context(closing(NextUseWriter(folder / str(number), rows)))
                for number, rows in enumerate(num_rows)
            ]
            for index in reversed(range(schedule.num_batches)):
                tell(1 - (index + 1) / schedule.num_batches)
                for writer, lookups in zip(writers, router(schedule.read(index)), strict=True):
                    writer.add(index, lookups.rows)
        undo.pop_all()
