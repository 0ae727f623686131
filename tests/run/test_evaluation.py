"""Predictions of a source, the ids they are grouped by, and what needs labels of two kinds."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.cache.reading import RowReader
from cachedlrm.data.batch import Batch
from cachedlrm.run.evaluation import evaluate
from support.runs import one_line, report, train

TABLES = 2


class Source:
    """Five samples of two tables; the second has bags of one id."""

    table_rows, num_dense, max_lookups_per_bag, num_samples = (10, 5), 1, (2, 1), 5

    def read(self, start: int, stop: int) -> Batch:
        bags = [[1, 2], [10], [], [11], [3], [10], [4], [11], [5], [10]][start * TABLES : stop * TABLES]
        offsets = np.cumsum([0, *map(len, bags)])
        dense = np.linspace(0.1, 0.5, 5, dtype=np.float32)[start:stop, None]
        labels = np.array([0, 1, 1, 0, 1], np.float32)[start:stop]
        return Batch(dense, np.array([row for bag in bags for row in bag], np.int64), offsets, labels)


def predicted(group_by: int | None, batch_size: int = 2):
    def model(dense, pooled):
        return dense[:, 0]

    reader = RowReader(lambda batch: (), [], [], torch.device("cpu"))
    return evaluate(model, reader, Source(), batch_size, torch.device("cpu"), group_by=group_by)


def test_predictions_come_in_order_and_groups_by_ids():
    evaluation = predicted(group_by=1)
    assert evaluation.predictions.tolist() == np.linspace(0.1, 0.5, 5, dtype=np.float32).tolist()
    assert evaluation.labels.tolist() == [0, 1, 1, 0, 1]
    assert sum(one.samples for one in evaluation.bins) == 5
    assert evaluation.scores.auc == 4 / 6
    assert evaluation.scores.gauc == (3 * 1.0 + 2 * 0.0) / 5  # of ids 10 and 11
    assert predicted(None).scores.gauc is None


def test_a_sample_with_several_ids_cannot_be_grouped():
    with pytest.raises(UserError, match="sample 0 has 2 ids in table 0, where one is needed"):
        predicted(group_by=0)


@pytest.mark.parametrize("option", ["--keep-best", "--stop-after=2", "--stop-at-auc=0.9", "--gauc-table=0"])
def test_labels_without_an_auc_are_found_before_the_first_step(tmp_path, capsys, option):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "day_dense.npy", np.ones((40, 3), np.float32))
    np.save(folder / "day_sparse.npy", np.zeros((40, 4), np.int32))
    np.save(folder / "day_labels.npy", np.ones((40, 1), np.int32))
    data = [f"--data=npy:{folder}", f"--test-data=npy:{folder}", "--mini-batch-size=10", "--test-freq=2", option]
    message = one_line(capsys, train(tmp_path / "run", *data))
    assert f"{option.split('=')[0]} goes by AUC" in message
    assert not (tmp_path / "run").exists()
    if option == "--keep-best":
        assert train(tmp_path / "run", *data, "--monitor=logloss") == 0
        made = report(tmp_path / "run")
        assert made["auc"] is made["normalized_entropy"] is None
        assert made["best_step"] == made["evaluated_step"] is not None
