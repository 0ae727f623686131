"""Ids of files, as they are or folded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST_INT64 = 2**63 - 1


class BadIdError(Exception):
    """An id that cannot be one.

    Attributes:
        place: index of the first such id.
        what: what is wrong with it and what to change, for the user.
    """

    def __init__(self, wrong: NDArray[np.bool_], what: str) -> None:
        super().__init__(what)
        self.place: tuple[int, ...] = tuple(np.argwhere(wrong)[0].tolist())
        self.what = what


def fold_ids(ids: NDArray[Any], max_ind_range: int) -> NDArray[np.int64]:
    """Integers of any kind as int64, folded modulo ``max_ind_range`` if that is positive.

    Raises:
        BadIdError: an id below 0, or one that int64 cannot hold.
    """
    limits = np.iinfo(ids.dtype)
    if limits.min < 0 and ids.min(initial=0) < 0:
        raise BadIdError(ids < 0, "is negative; correct the data (--max-ind-range folds ids from 0 on)")
    if 0 < max_ind_range <= limits.max:
        ids = ids % ids.dtype.type(max_ind_range)  # not as int64, which would change ids from 2^63 on
    elif limits.max > _LARGEST_INT64 and ids.max(initial=0) > _LARGEST_INT64:
        raise BadIdError(
            ids > _LARGEST_INT64,
            f"is above {_LARGEST_INT64}; correct the data, or fold ids with --max-ind-range",
        )
    return ids.astype(np.int64)
