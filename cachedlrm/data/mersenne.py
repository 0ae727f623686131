"""numpy's MT19937 inside kernels (Matsumoto and Nishimura, ACM Trans. Modeling and Computer Simulation 8(1), 1998).

A generator is one array, [1249] uint32: 624 words of state, the 624 words that come from them, and how many of these
were drawn. Keeping a state is a copy, and a kernel takes it like any array: unpacking numpy's Generator takes as
long as drawing the numbers of a small batch.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_WORDS, _MIDDLE = 624, 397
_NUM_DRAWN = 2 * _WORDS  # place of the count

Generator = NDArray[np.uint32]


def seeded(seed: int) -> Generator:
    """The generator of ``numpy.random.RandomState(seed)``.

    Raises:
        ValueError: the seed is not 0 to 2^32 - 1.
    """
    generator = np.empty(_NUM_DRAWN + 1, np.uint32)
    start: Any = np.random.RandomState(seed).get_state(legacy=False)
    generator[:_WORDS] = start["state"]["key"]
    generator[_NUM_DRAWN] = _WORDS
    return generator


@numba.njit(cache=True, nogil=True)
def _mix(state: Generator, first: int, last: int, following: int, distant: int) -> None:
    """The words of ``state`` from ``first`` to ``last - 1``, with those at two distances."""
    for place in range(first, last):
        joined = (state[place] & np.uint32(0x80000000)) | (state[place + following] & np.uint32(0x7FFFFFFF))
        twist = np.uint32(-np.int32(joined & np.uint32(1))) & np.uint32(0x9908B0DF)
        state[place] = state[place + distant] ^ (joined >> np.uint32(1)) ^ twist


@numba.njit(cache=True, nogil=True)
def _renew(generator: Generator) -> None:
    """The next 624 words."""
    state, words = generator[:_WORDS], generator[_WORDS:_NUM_DRAWN]
    # In pieces without remainders: vectors of numbers at a time.
    _mix(state, 0, _WORDS - _MIDDLE, 1, _MIDDLE)
    _mix(state, _WORDS - _MIDDLE, _WORDS - 1, 1, _MIDDLE - _WORDS)
    _mix(state, _WORDS - 1, _WORDS, 1 - _WORDS, _MIDDLE - _WORDS)
    for place in range(_WORDS):
        word = state[place]
        word ^= word >> np.uint32(11)
        word ^= np.uint32(word << np.uint32(7)) & np.uint32(0x9D2C5680)
        word ^= np.uint32(word << np.uint32(15)) & np.uint32(0xEFC60000)
        words[place] = word ^ (word >> np.uint32(18))
    generator[_NUM_DRAWN] = 0


@numba.njit(cache=True, nogil=True)
def draw(generator: Generator) -> float:
    """The next number from 0 to 1, as ``RandomState.random_sample`` draws it: of 53 bits."""
    drawn = generator[_NUM_DRAWN]
    if drawn == _WORDS:
        _renew(generator)
        drawn = np.uint32(0)
    # Of 624 words two are always left.
    high, low = generator[_WORDS + drawn] >> np.uint32(5), generator[_WORDS + drawn + 1] >> np.uint32(6)
    generator[_NUM_DRAWN] = drawn + np.uint32(2)
    return (np.int64(high) * 67108864.0 + np.int64(low)) / 9007199254740992.0
