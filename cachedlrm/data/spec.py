"""A data source as an option names it, before its samples are opened."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import MOST_ROWS, Source
from cachedlrm.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class ReferenceStream:
    """The options of facebookresearch/dlrm's generators.

    Attributes:
        generation: ``random``, or ``synthetic`` for ids by trace files.
        data_size: samples of an epoch, if ``num_batches`` is 0.
        num_batches: batches of an epoch; 0: as many as ``data_size`` gives, the last one smaller if need be.
        mini_batch_size: samples of a batch.
        num_indices_per_lookup: the most draws of a bag.
        num_indices_per_lookup_fixed: every bag draws the most.
        rand_data_dist: of ids in ``random`` data: ``uniform`` over the table or ``gaussian``.
        rand_data_min: gaussian draws below it become it.
        rand_data_max: gaussian draws above it become it.
        rand_data_mu: mean of the gaussian; -1: midway between ``rand_data_min`` and ``rand_data_max``.
        rand_data_sigma: standard deviation of the gaussian.
        data_trace_file: of ``synthetic`` data; every letter j in it stands for the table's number.
        data_trace_enable_padding: no new ids once the longest stack distance has been reached.
        round_targets: labels are 0 or 1 instead of any number between.
        seed: 0 to 2^32 - 1.
    """

    generation: str
    data_size: int
    num_batches: int
    mini_batch_size: int
    num_indices_per_lookup: int
    num_indices_per_lookup_fixed: bool
    rand_data_dist: str
    rand_data_min: float
    rand_data_max: float
    rand_data_mu: float
    rand_data_sigma: float
    data_trace_file: str
    data_trace_enable_padding: bool
    round_targets: bool
    seed: int


@dataclass(frozen=True)
class DataRequest:
    """Options that shape the data.

    Attributes:
        table_rows: rows of each table; None: the data's own.
        num_dense: dense features; None: the data's own.
        seed: of generated data.
        max_ind_range: ids are folded modulo this if positive.
        reference: options of the reference's generators; None without them.
        round_targets: whether labels are rounded to 0 or 1.
        needs_labels: whether samples without labels are refused.
        least_rows: of each table, where the data's own are fewer; None: no bound.
    """

    table_rows: tuple[int, ...] | None
    num_dense: int | None
    seed: int
    max_ind_range: int
    reference: ReferenceStream | None = None
    round_targets: bool = False
    needs_labels: bool = True
    least_rows: tuple[int, ...] | None = None


class SourceSpec(ABC):
    """The source that ``--data`` or ``--test-data`` names.

    Each kind of data has one subclass, listed in `cachedlrm.data.open`.

    Attributes:
        words: option and value, for messages.
        is_generated: whether samples are drawn, for any number of tables and dense features.
        hashes_ids: whether rows are not the ids themselves, so that only data of the same kind can be held out.
    """

    words: str
    is_generated: ClassVar[bool] = False
    hashes_ids: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: "SourceSpec | None") -> Self:
        """The source that an option names, checked as far as it can be alone.

        Args:
            words: option and value, for messages.
            argument: the value after the kind of data and a colon.
            request: the other options.
            train: for ``--test-data``, the source that ``--data`` names.

        Raises:
            UserError: it cannot be read, or is not as it should be; names it.
        """

    @property
    @abstractmethod
    def columns(self) -> tuple[int, int]:
        """Number of tables and of dense features; for generated data the defaults."""

    @abstractmethod
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each table that hold every id, for when the options do not say.

        Raises:
            UserError: an id that cannot be one, or more rows than there can be.
        """

    @abstractmethod
    def open(self, table_rows: tuple[int, ...], num_dense: int) -> Source:
        """The samples, for tables and dense features of these numbers."""

    @property
    def files(self) -> tuple[Path, ...]:
        """That hold the samples, in order; none: they are generated."""
        return ()

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Which value each row stands for; None: not on record."""
        return None

    @property
    def table_names(self) -> tuple[str, ...] | None:
        """The user's names of the tables, in order; None: they have none."""
        return None

    def held_out_part(self) -> "SourceSpec | None":
        """Held-out samples that belong to these and have their tables; None: there are none."""
        return None

    @property
    def left_out(self) -> str | None:
        """The held-out samples beside these and how ``--data`` names them, for the user; None: there are none such."""
        return None

    def row_counts(self, table_rows: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Lookups of each row of the tables in an epoch [rows of all tables], if known in advance."""
        return None


def too_many_rows(largest: str, table_rows: tuple[int, ...], max_ind_range: int) -> UserError:
    """Refuses tables that the ids of files make.

    Args:
        largest: where the largest id is, for the message.
        table_rows: rows of each table.
        max_ind_range: as in `DataRequest`.
    """
    change = "lower --max-ind-range to" if max_ind_range > 0 else "correct it, or fold ids with --max-ind-range"
    return UserError(
        f"{largest}, and the largest ids of all columns make {sum(table_rows)} rows, of which there can be "
        f"{MOST_ROWS}; {change} {MOST_ROWS // len(table_rows)}"
    )
