"""Vectors by feature."""

import pytest
import torch

from cachedlrm.library.keyed import JaggedTensor, KeyedTensor, jagged_tensor, keyed_tensor


def test_keyed_tensors():
    values = torch.arange(10.0).view(2, 5)
    keyed = keyed_tensor({}, ("a", "b"), (2, 3), values)
    assert isinstance(keyed, KeyedTensor)
    assert keyed.keys() == ["a", "b"]
    assert keyed.length_per_key() == [2, 3]
    assert keyed.offset_per_key() == [0, 2, 5]
    assert keyed.values() is values
    assert torch.equal(keyed["b"], values[:, 2:])
    assert torch.equal(keyed.to_dict()["a"], values[:, :2])
    with pytest.raises(KeyError):
        keyed["c"]
    assert repr(keyed) == "KeyedTensor({'a': 2, 'b': 3}, [2, 5])"


def test_jagged_tensors():
    values = torch.arange(8.0).view(4, 2).requires_grad_()
    jagged = jagged_tensor({}, values, torch.tensor([0, 3, 3, 4]))
    assert isinstance(jagged, JaggedTensor)
    assert jagged.lengths().tolist() == [3, 0, 1]
    assert jagged.offsets().tolist() == [0, 3, 3, 4]
    assert [len(rows) for rows in jagged.to_dense()] == [3, 0, 1]
    padded = jagged.to_padded_dense(padding_value=-1.0)
    assert padded[:, :, 0].tolist() == [[0, 2, 4], [-1, -1, -1], [6, -1, -1]]
    cut = jagged.to_padded_dense(2)
    assert cut[:, :, 1].tolist() == [[1, 3], [0, 0], [7, 0]]
    cut.sum().backward()
    assert values.grad[:, 0].tolist() == [1, 1, 0, 1]
    assert repr(jagged) == "JaggedTensor(3 samples, [4, 2])"


def test_results_are_of_the_kind_beside_a_keyed_jagged_tensor():
    """As TorchRec's are beside its own; here the classes of this file's."""
    kind = type("KeyedJaggedTensor", (), {"__module__": KeyedTensor.__module__})
    assert isinstance(keyed_tensor(kind(), ["a"], [1], torch.zeros(1, 1)), KeyedTensor)
    elsewhere = type("KeyedJaggedTensor", (), {"__module__": __name__})
    assert isinstance(jagged_tensor(elsewhere(), torch.zeros(1, 1), torch.tensor([0, 1])), JaggedTensor)
