"""Predictions of a model on held-out samples, and how good they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.ahead import ahead
from cachedlrm.base.errors import UserError
from cachedlrm.cache.reading import FoundRows, RowReader
from cachedlrm.data.batch import Batch, Dataset, Source
from cachedlrm.options.resolved import Resolved
from cachedlrm.report.scores import CalibrationBin, Scores
from cachedlrm.run.scoring import calibration_bins, score

_READ_SAMPLES = 1 << 12

Model = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""The dense part: dense features [B, num_dense] and the pooled vectors of each group give predictions [B]."""


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model.

    Attributes:
        scores: how good they are.
        bins: predicted beside observed; none where predictions are not finite.
        predictions: [N] float32, in data order.
        labels: [N] float32.
    """

    scores: Scores
    bins: tuple[CalibrationBin, ...]
    predictions: NDArray[np.float32]
    labels: NDArray[np.float32]


@torch.no_grad()
def predict(
    model: Model, reader: RowReader, source: Source, batch_size: int, device: torch.device, *, depth: int = 0
) -> Iterator[tuple[NDArray[np.float32], Batch]]:
    """Predictions [B] float32, batch by batch; up to ``depth`` batches are read meanwhile, in a thread of its own."""

    def batches() -> Iterator[tuple[Batch, list[FoundRows]]]:
        for start in range(0, source.num_samples, batch_size):
            batch = source.read(start, min(start + batch_size, source.num_samples))
            yield batch, reader.find(batch)

    with closing(ahead(batches(), depth)) as found_batches:
        for batch, found in found_batches:
            dense = torch.from_numpy(batch.dense).to(device, copy=True)  # aligned, as in training
            prediction = model(dense, reader.pool(found))
            yield prediction.cpu().numpy(), batch


def evaluate(
    model: Model,
    reader: RowReader,
    source: Source,
    batch_size: int,
    device: torch.device,
    *,
    group_by: int | None = None,
    depth: int = 0,
    tell: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Predicts a whole source.

    Args:
        model: the dense part.
        reader: of the rows.
        source: samples with labels.
        batch_size: samples of a batch.
        device: of the model.
        group_by: number of the one-hot table by whose ids samples are grouped for ``gauc``.
        depth: batches read ahead.
        tell: takes the share of the samples that were predicted, before each batch.

    Raises:
        UserError: a sample has none or several ids in that table.
    """
    predictions, labels = np.empty((2, source.num_samples), np.float32)
    ids = None if group_by is None else np.empty(source.num_samples, np.int32)
    first = 0
    tell(0.0)
    for prediction, batch in predict(model, reader, source, batch_size, device, depth=depth):
        last = first + batch.num_samples
        predictions[first:last], labels[first:last] = prediction, batch.labels
        if ids is not None and group_by is not None:
            ids[first:last] = ids_of(batch, group_by, len(source.table_rows), first)
        first = last
        tell(first / source.num_samples)
    bins = calibration_bins(predictions, labels) if np.isfinite(predictions).all() else ()
    return Evaluation(score(predictions, labels, ids), bins, predictions, labels)


def evaluation_batch_size(options: Resolved) -> int:
    """Samples of a batch of predictions: the reference's generators know one size, that of training."""
    batches = options.batches
    return batches.mini_batch_size if options.data.data == "reference" else batches.test_mini_batch_size


def ids_of(batch: Batch, table: int, num_tables: int, first_sample: int) -> NDArray[np.int64]:
    """The one id of each sample in a table, [B]."""
    starts, ends = batch.offsets[table:-1:num_tables], batch.offsets[table + 1 :: num_tables]
    if (odd := np.flatnonzero(ends - starts != 1)).size:
        sample = int(odd[0])
        raise UserError(
            f"--gauc-table: sample {first_sample + sample} has {ends[sample] - starts[sample]} ids in table "
            f"{table}, where one is needed; name a column with one id a sample"
        )
    return batch.rows[starts]


def table_number(name: str | None, names: Sequence[str], count: int) -> int | None:
    """The number of the table that ``--gauc-table`` names, of ``count``; None without it.

    Raises:
        UserError: there is no such table.
    """
    if name is None:
        return None
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < count:
        return int(name)
    known = f", or one of {', '.join(names)}" if names else ""
    raise UserError(f"--gauc-table {name}: there is no such column; give a number from 0 to {count - 1}{known}")


def check_monitor(options: Resolved, dataset: Dataset) -> None:
    """Refuses options that go by AUC where held-out labels have none, before the first step.

    Held-out samples are read until both labels have been met.

    Raises:
        UserError: labels are not 0 and 1, both.
    """
    evaluation = options.evaluation
    by_auc = evaluation.monitor == "auc"
    asked = [
        name
        for name, given in (
            ("--stop-at-auc", evaluation.stop_at_auc is not None),
            ("--gauc-table", evaluation.gauc_table is not None),
            ("--keep-best", by_auc and evaluation.keep_best),
            ("--stop-after", by_auc and evaluation.stop_after is not None),
        )
        if given
    ]
    if not asked or dataset.test is None:
        return
    met: set[float] = set()
    for start in range(0, dataset.test.num_samples, _READ_SAMPLES):
        labels = dataset.test.read(start, min(start + _READ_SAMPLES, dataset.test.num_samples)).labels
        met |= set(np.unique(labels).tolist())
        if met >= {0.0, 1.0}:
            break
    if met != {0.0, 1.0}:
        instead = ", or say --monitor logloss" if asked[0] in ("--keep-best", "--stop-after") else ""
        raise UserError(
            f"{asked[0]} goes by AUC, which held-out labels other than 0 and 1, both, do not have; drop it{instead}"
        )
