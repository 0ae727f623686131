"""Which samples each step trains, and when the model is evaluated."""

import itertools
from collections.abc import Callable, Iterator

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, Source
from cachedlrm.data.lookups import Router, count_unique, row_bits
from cachedlrm.data.shuffle import ShuffledEpochs
from cachedlrm.options.resolved import Resolved

_MOST_BATCHES = 2**31 - 1
"""Planner and policies number them in 31 bits: at a thousand a second, 24 days of training."""


class Schedule:
    """Which samples each step trains, and when the model is evaluated.

    A step trains one mini-batch. Samples are taken in their order, or with ``--shuffle`` in that of the epoch; the last
    batch of an epoch may be smaller. With ``--steps`` epochs repeat or end early to match. With
    ``--mlperf-grad-accum-iter`` N, steps come N at a time: N mini-batches are planned and trained as one batch, after
    which parameters move; an epoch may end in fewer.

    Args:
        options: all of them; ``test_freq`` only decides evaluations.
        source: training samples.

    Raises:
        UserError: more batches than can be numbered.
    """

    def __init__(self, options: Resolved, source: Source) -> None:
        batches = options.batches
        self._source = source
        self._shuffled = ShuffledEpochs(source, batches.numpy_rand_seed) if options.data.shuffle else None
        self._mini_batch_size = batches.mini_batch_size
        self._steps_per_batch = options.optimisation.mlperf_grad_accum_iter
        self._test_freq = batches.test_freq
        self._checkpoint_every = options.run.checkpoint_every
        self.steps_per_epoch = -(-source.num_samples // self._mini_batch_size)
        if batches.num_batches > 0:
            self.steps_per_epoch = min(self.steps_per_epoch, batches.num_batches)
        steps = options.run.steps
        self.num_steps = batches.nepochs * self.steps_per_epoch if steps is None else steps
        if self.num_batches > _MOST_BATCHES:
            raise UserError(
                f"a run of {self.num_steps:,} steps is longer than {_MOST_BATCHES:,} batches; lower --steps, or "
                "--nepochs or --num-batches"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch: as many as steps, unless gradients are accumulated."""
        return -(-self.steps_per_epoch // self._steps_per_batch)

    @property
    def num_batches(self) -> int:
        """Batches of the run."""
        epochs, rest = divmod(self.num_steps, self.steps_per_epoch)
        return epochs * self.batches_per_epoch + -(-rest // self._steps_per_batch)

    def epoch(self, step: int) -> int:
        """Epoch of step ``step``, both from 0."""
        return step // self.steps_per_epoch

    def steps(self, batch: int) -> tuple[int, int]:
        """First step of batch ``batch`` and the one after its last, counted from 0."""
        epoch, number = divmod(batch, self.batches_per_epoch)
        first = epoch * self.steps_per_epoch + number * self._steps_per_batch
        last = min(first + self._steps_per_batch, (epoch + 1) * self.steps_per_epoch, self.num_steps)
        return first, last

    def batches(self, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of the run from ``first_batch`` on."""
        return map(self.read, range(first_batch, self.num_batches))

    def read(self, batch: int) -> Batch:
        """Batch ``batch`` of the run."""
        first, last = self.steps(batch)
        start = first % self.steps_per_epoch * self._mini_batch_size
        stop = min(start + (last - first) * self._mini_batch_size, self._source.num_samples)
        if self._shuffled is not None:
            return self._shuffled.read(self.epoch(first), start, stop)
        return self._source.read(start, stop)

    @property
    def shuffled_bytes(self) -> int:
        """The most host memory that ``--shuffle`` takes; 0 without it."""
        return 0 if self._shuffled is None else self._shuffled.most_bytes

    def same_lookups(self, first_batch: int, end: int) -> list[tuple[int, int]]:
        """Batches, each with how often to count it, that have the lookups of batches ``first_batch`` to ``end - 1``.

        They are fewer where samples come again: in every epoch the same batches, or shuffled the same samples.
        """
        per_epoch = self.batches_per_epoch
        if self._shuffled is None:
            counted = [
                (batch, (end - 1 - batch) // per_epoch - (first_batch - 1 - batch) // per_epoch)
                for batch in range(min(per_epoch, self.num_batches))
            ]
            return [(batch, times) for batch, times in counted if times]
        epochs = range(-(-first_batch // per_epoch), end // per_epoch)  # whole ones
        if not epochs or self.steps_per_epoch * self._mini_batch_size < self._source.num_samples:
            return [(batch, 1) for batch in range(first_batch, end)]
        before, after = epochs.start * per_epoch, epochs.stop * per_epoch
        return [
            *((batch, 1) for batch in range(first_batch, before)),
            *((batch, len(epochs)) for batch in range(before, before + per_epoch)),
            *((batch, 1) for batch in range(after, end)),
        ]

    def one_epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch, or as many as the run has."""
        return itertools.islice(self.batches(), self.batches_per_epoch)

    def evaluates_after(self, batch: int) -> bool:
        """Whether an evaluation is due after batch ``batch``, counted from 0: at one of its steps, or at the end."""
        every = self._test_freq
        if every <= 0:
            return False
        first, last = self.steps(batch)
        return last // every > first // every or last == self.num_steps

    def checkpoint_after(self, batch: int) -> bool:
        """Whether a checkpoint is due after batch ``batch``: at one of its steps, or at the end."""
        first, last = self.steps(batch)
        every = self._checkpoint_every
        return last == self.num_steps or (every is not None and last // every > first // every)

    @property
    def lookups_per_batch(self) -> int:
        """The most lookups of a batch."""
        samples = min(self._steps_per_batch * self._mini_batch_size, self._source.num_samples)
        return samples * sum(self._source.max_lookups_per_bag)

    @property
    def lookups_to_count(self) -> int:
        """The most lookups that `largest_working_sets` reads."""
        return self._batches_to_count * self.lookups_per_batch

    @property
    def _batches_to_count(self) -> int:
        return self.num_batches if self._shuffled is not None else min(self.num_batches, self.batches_per_epoch)

    def largest_working_sets(self, router: Router, tell: Callable[[float], None]) -> tuple[int, ...]:
        """The most unique rows of any batch in each group of tables, counted; 0 without batches.

        Args:
            router: from batches to the lookups of each group.
            tell: takes the share of the batches read so far, again and again.
        """
        bits = [row_bits(rows) for rows in router.num_rows]
        largest = [0] * len(bits)
        for number, batch in enumerate(self.one_epoch() if self._shuffled is None else self.batches()):
            tell(number / self._batches_to_count)
            for group, lookups in enumerate(router(batch)):
                largest[group] = max(largest[group], count_unique(lookups.rows, bits[group]))
        return tuple(largest)
