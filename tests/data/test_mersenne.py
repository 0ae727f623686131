"""The numbers are numpy's."""

import numpy as np
import pytest

from cachedlrm.data.mersenne import draw, seeded


@pytest.mark.parametrize("seed", [0, 123, 2**32 - 1])
def test_as_numpy_draws(seed):
    generator, reference = seeded(seed), np.random.RandomState(seed)
    expected = reference.random_sample(1000)  # more than 624 words: the state is renewed
    assert [draw(generator) for _ in range(1000)] == expected.tolist()


def test_a_copy_goes_on_where_it_was_taken():
    generator = seeded(5)
    draw(generator)
    kept = generator.copy()
    assert [draw(generator) for _ in range(400)] == [draw(kept) for _ in range(400)]


def test_a_seed_beyond_32_bits_is_refused():
    with pytest.raises(ValueError, match="Seed must be between 0 and"):
        seeded(2**32)
