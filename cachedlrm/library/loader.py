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
_numpy: Any = np.random  # numpy does not declare the two functions that are used of it


class Loader(Generic[T]):
    """Reads a loader's batches one by one, inside `generators`, which has global generators of its own.

    They are seeded by the next number that torch's generator would draw, which stays to be drawn, and by how many
    loaders there were before: ``torch.manual_seed`` decides what a loader draws, and epochs differ.

    Args:
        batches: the loader.
        number: of loaders before.
    """

    def __init__(self, batches: Iterable[T], number: int) -> None:
        following = torch.Generator()
        following.set_state(torch.get_rng_state())
        drawn = int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=following))
        seed = int(mix(np.uint64((drawn + number * GAMMA) & _MASK)))
        self._torch = torch.Generator().manual_seed(seed & (_MASK >> 1)).get_state()
        self._numpy = np.random.MT19937(seed)
        self._random = random.Random(seed).getstate()
        with self.generators():
            self._batches: Iterator[T] = iter(batches)

    def read(self) -> T:
        """The next batch.

        Raises:
            StopIteration: there is none.
        """
        return next(self._batches)

    @contextmanager
    def generators(self) -> Iterator[None]:
        """The block draws from the loader's generators.

        numpy's is exchanged, since its state takes 35 microseconds each way. It forgets the second of two normal
        numbers then, so a loop comes by here once a batch whether it reads or not.
        """
        of_torch, of_numpy, of_random = torch.get_rng_state(), _numpy.get_bit_generator(), random.getstate()
        try:  # from here on, as an interrupt must not leave the loader's generators to the user
            torch.set_rng_state(self._torch)
            _numpy.set_bit_generator(self._numpy)
            random.setstate(self._random)
            yield
        finally:
            self._torch, self._random = torch.get_rng_state(), random.getstate()
            torch.set_rng_state(of_torch)
            _numpy.set_bit_generator(of_numpy)
            random.setstate(of_random)
