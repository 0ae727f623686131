"""From pooled vectors of tables to one vector a feature, by hand."""

import pytest
import torch

from cachedlrm.model.features import FeatureVectors
from cachedlrm.model.tables import Embedding


def test_plain_tables_pass_as_they_are():
    embeddings = [Embedding(0, 5, 2), Embedding(1, 5, 2)]
    features = FeatureVectors(embeddings, [[*embeddings[0].tables, *embeddings[1].tables]], 2, "mult")
    pooled = torch.arange(8.0).view(4, 2)  # two samples of two tables
    assert features.is_plain
    assert features([pooled]).data_ptr() == pooled.data_ptr()
    assert features([pooled]).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize(("operation", "expected"), [("mult", [[3, 8]]), ("add", [[4, 6]]), ("concat", [[1, 2, 3, 4]])])
def test_quotients_and_remainders_combine(operation, expected):
    embedding = Embedding(0, 10, 2, collisions=4)
    features = FeatureVectors([embedding], [list(embedding.tables)], 2, operation)
    assert features([torch.tensor([[1.0, 2.0], [3.0, 4.0]])])[0].tolist() == expected


def test_narrow_vectors_are_projected():
    wide, narrow = Embedding(0, 5, 2, mixed=True), Embedding(1, 50, 1, mixed=True)
    features = FeatureVectors([wide, narrow], [list(narrow.tables), list(wide.tables)], 2, "mult")
    assert [name for name, _ in features.named_parameters()] == ["1.proj.weight"]
    with torch.no_grad():
        features["1"]["proj"].weight.copy_(torch.tensor([[2.0], [3.0]]))
    assert features([torch.tensor([[5.0]]), torch.tensor([[7.0, 8.0]])]).tolist() == [[[7, 8], [10, 15]]]
