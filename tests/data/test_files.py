"""What the sources of files share: folded ids, and blocks that a range of samples lies in."""

import numpy as np
import pytest

from cachedlrm.data.files import BadIdError, fold_ids, numbered, spans


@pytest.mark.parametrize("max_ind_range", [-1, 5, 2**40])
def test_ids_are_folded_in_their_own_type(max_ind_range):
    ids = np.array([[0, 4], [5, 127]], np.int8)
    folded = fold_ids(ids, max_ind_range)
    assert folded.dtype == np.int64
    assert folded.tolist() == [
        [id_ % max_ind_range if max_ind_range > 0 else id_ for id_ in row] for row in ids.tolist()
    ]


@pytest.mark.parametrize(
    ("ids", "place", "words"),
    [
        (np.array([[3, 4], [5, -1]]), (1, 1), "is negative; correct the data"),
        (np.array([1, 2**63], np.uint64), (1,), "is above 9223372036854775807; .* fold ids with --max-ind-range"),
    ],
)
def test_an_id_that_cannot_be_one_is_placed(ids, place, words):
    with pytest.raises(BadIdError, match=words) as caught:
        fold_ids(ids, -1)
    assert caught.value.place == place


def test_spans_cover_a_range_once():
    first_samples = numbered([3, 1, 0, 4])
    assert first_samples == (0, 3, 4, 4, 8)
    samples = [(block, place) for block, count in enumerate([3, 1, 0, 4]) for place in range(count)]
    for start in range(9):
        for stop in range(start, 9):
            found, places = [], []
            for number, part, out in spans(first_samples, start, stop):
                found += [(number, place) for place in range(part.start, part.stop)]
                places += range(out.start, out.stop)
            assert found == samples[start:stop]
            assert places == list(range(stop - start))
