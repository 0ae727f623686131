"""Trace files of facebookresearch/dlrm: ids by LRU stack distances.

A file has three lines: ids in the order of their first use, stack distances, and the cumulative distribution of these.
Its tool ``dlrm_data_pytorch.py --trace-file`` makes one from a trace.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.mersenne import Generator, draw


class Traces(NamedTuple):
    """The distributions of all trace files.

    Attributes:
        accesses: ids in the order of their first use, and room for as many more as a bag draws; uint64.
        distances: ascending from 0, which stands for a new id; 1 is the latest id, 2 the one before; int64.
        cumulative: probability of a distance up to this one; float64.
        places: [T, 4] int64, each table's first access, number of accesses, first distance and number of distances.
    """

    accesses: NDArray[np.uint64]
    distances: NDArray[np.int64]
    cumulative: NDArray[np.float64]
    places: NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def draw_trace(generator: Generator, traces: Traces, table: int, padding: bool, group: NDArray[np.uint64]) -> None:
    """Fills ``group`` with ids at stack distances drawn for ``table``.

    The stack is a window on the accesses that moves on by one at each new id. As no distance is longer than the number
    of new ids so far, only what this function appended is ever moved, and the list itself stays as it was.
    """
    first_access, num_ids, first_distance, num_distances = traces.places[table]
    stack = traces.accesses[first_access : first_access + num_ids + len(group)]
    distances = traces.distances[first_distance : first_distance + num_distances]
    cumulative = traces.cumulative[first_distance : first_distance + num_distances]
    num_new, longest = 0, distances[-1]
    for index in range(len(group)):
        u = draw(generator)
        if num_new < longest:
            u *= cumulative[np.searchsorted(distances, num_new, side="right") - 1]
        elif padding:
            u = (1.0 - cumulative[0]) * u + cumulative[0]
        distance = distances[min(np.searchsorted(cumulative, u), num_distances - 1)]
        if distance == 0:
            stack[num_new + num_ids] = stack[num_new]
            num_new += 1
        else:
            # The reference's index is negative for a distance beyond the list, and so counts again from its end.
            place = num_new + (num_ids - distance) % num_ids
            value = stack[place]
            for later in range(place, num_new + num_ids - 1):
                stack[later] = stack[later + 1]
            stack[num_new + num_ids - 1] = value
        group[index] = stack[num_new + num_ids - 1]


def _trace_error(path: str, line: int, problem: str) -> UserError:
    return UserError(
        f"--data-trace-file: {path}, line {line}: {problem}; the three lines are ids, stack distances from 0 up and "
        "their cumulative distribution, as numbers with commas between"
    )


def _numbers(path: str, line: int, text: str, kind: type[int] | type[float]) -> list[Any]:
    numbers = []
    for item in text.split(","):
        try:
            numbers.append(kind(item))
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise _trace_error(path, line, f"{item.strip()[:20]!r} is not {name}") from None
    return numbers


def _read_trace(path: str) -> tuple[list[int], list[int], list[float]]:
    """The lines of a trace file: ids, stack distances, cumulative distribution."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(
            f"--data-trace-file: {path}: {reason}; every table needs a file, and each letter j of the option stands "
            "for the table's number"
        ) from None
    if len(lines) < 3:
        raise _trace_error(path, len(lines) + 1, "missing")
    accesses: list[int] = _numbers(path, 1, lines[0], int)
    distances: list[int] = _numbers(path, 2, lines[1], int)
    cumulative: list[float] = _numbers(path, 3, lines[2], float)
    for access in accesses:
        if not 0 <= access < 2**64:
            raise _trace_error(path, 1, f"id {access} is negative or beyond 64 bits")
    if distances[0] != 0:
        raise _trace_error(path, 2, f"the first distance is {distances[0]}, not 0, which stands for a new id")
    if distances[-1] > 2 * len(accesses):
        raise _trace_error(path, 2, f"distance {distances[-1]} reaches beyond the {len(accesses)} ids of line 1")
    if len(cumulative) != len(distances):
        raise _trace_error(path, 3, f"{len(cumulative)} numbers for the {len(distances)} distances of line 2")
    if not all(0.0 <= number < math.inf for number in cumulative) or abs(cumulative[-1] - 1.0) > 1e-6:
        raise _trace_error(path, 3, "a cumulative distribution is not negative and ends at 1")
    for line, values in ((2, distances), (3, cumulative)):
        for one, following in itertools.pairwise(values):
            if following < one:
                raise _trace_error(path, line, f"{following} follows {one}, but numbers must not fall")
    return accesses, distances, cumulative


def read_traces(option: str, num_tables: int, room: int) -> Traces:
    """The trace files of all tables, each file read once, with space for ``room`` more ids after its own."""
    paths = [option.replace("j", str(table)) for table in range(num_tables)]
    places: dict[str, tuple[int, int, int, int]] = {}
    all_accesses, first_access = [np.empty(0, np.uint64)], 0
    all_distances: list[int] = []
    all_cumulative: list[float] = []
    for path in dict.fromkeys(paths):
        accesses, distances, cumulative = _read_trace(path)
        places[path] = (first_access, len(accesses), len(all_distances), len(distances))
        all_accesses += [np.array(accesses, np.uint64), np.zeros(room, np.uint64)]
        first_access += len(accesses) + room
        all_distances += distances
        all_cumulative += cumulative
    return Traces(
        np.concatenate(all_accesses),
        np.array(all_distances, np.int64),
        np.array(all_cumulative, np.float64),
        np.array([places[path] for path in paths], np.int64).reshape(-1, 4),
    )
