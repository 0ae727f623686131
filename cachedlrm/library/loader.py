"""The random numbers of a user's loader, apart from those of the training loop.

A loader runs ahead of the loop, by more batches the deeper the prefetch. If both drew from the same generators (torch's
of the CPU, numpy's and random's global ones), dropout in a model would get other numbers at every depth. So the
loader's draws come from a state of its own, and the loop's from what they would come from without a loader.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from cachedlrm.base.kernels import GAMMA, mix

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Loader(Generic[T]):
    """Reads a loader's batches one by one, with global generators of its own.

    They are seeded by the next number that torch's generator would draw, which stays to be drawn, and by how many
    loaders there were before: ``torch.manual_seed`` decides what a loader draws, and epochs differ.

    Args:
        batches: the loader.
        number: of loaders before.
    """

    def __init__(self, batches: Iterable[T], number: int) -> None:
        following = torch.Generator()
        following.set_state(torch.get_rng_state())
        drawn = int(torch.empty((), dtype=torch.int64).random_(generator=following))
        seed = int(mix(np.uint64((drawn + number * GAMMA) & _MASK)))
        self._own: tuple[Any, ...] = (
            torch.Generator().manual_seed(seed & (_MASK >> 1)).get_state(),
            np.random.RandomState(seed & 0xFFFFFFFF).get_state(),
            random.Random(seed).getstate(),
        )
        with self._own_generators():
            self._batches: Iterator[T] = iter(batches)

    def read(self) -> T:
        """The next batch.

        Raises:
            StopIteration: there is none.
        """
        with self._own_generators():
            return next(self._batches)

    @contextmanager
    def _own_generators(self) -> Iterator[None]:
        loops = _states()
        _set(self._own)
        try:
            yield
        finally:
            self._own = _states()
            _set(loops)


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
