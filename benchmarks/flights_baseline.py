"""Logistic regression on the features of --data flights: python benchmarks/flights_baseline.py"""

import time

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cachedlrm.data.batch import Source
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest


def design_matrix(source: Source) -> tuple[csr_matrix, np.ndarray]:
    """Dense features beside one column per table row, and the labels."""
    batch = source.read(0, source.num_samples)
    shape = (source.num_samples, sum(source.table_rows))
    one_hot = csr_matrix(
        (np.ones(len(batch.rows), np.float32), batch.rows, batch.offsets[:: len(source.table_rows)]), shape
    )
    return hstack([csr_matrix(batch.dense), one_hot], format="csr"), batch.labels


def main() -> None:
    """Fits a few strengths of regularisation and prints the AUC of each on the held-out flights."""
    dataset = open_dataset("flights", None, DataRequest(None, None, seed=1, max_ind_range=-1))
    assert dataset.test is not None
    features, labels = design_matrix(dataset.train)
    test_features, test_labels = design_matrix(dataset.test)
    for strength in (0.00003, 0.0001, 0.0003, 0.001, 0.01):
        started = time.perf_counter()
        model = LogisticRegression(C=strength, max_iter=100).fit(features, labels)
        auc = roc_auc_score(test_labels, model.predict_proba(test_features)[:, 1])
        print(f"logistic regression C={strength}: AUC {auc:.4f} ({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
