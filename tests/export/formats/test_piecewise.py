"""Tensors in pieces."""

import numpy as np
import pytest
import torch

from cachedlrm.export.formats.piecewise import PiecewiseTensor, piecewise


def test_pieces_of_any_shape_and_order_in_memory_are_the_data_in_order():
    table = np.arange(12, dtype=np.float64).reshape(4, 3)
    pieces = [table[:1], table[1:3], table[3:, :2], np.array(11)]
    tensor = PiecewiseTensor((4, 3), lambda: pieces)
    assert tensor.num_elements == 12
    for _ in range(2):  # as often as wanted
        assert b"".join(tensor.data()) == np.arange(12, dtype="<f4").tobytes()
    columns = PiecewiseTensor((4,), lambda: [table[:, 1]])
    assert b"".join(columns.data()) == np.array([1, 4, 7, 10], "<f4").tobytes()


@pytest.mark.parametrize("count", [1, 3])
def test_pieces_that_do_not_add_up_are_an_error(count):
    tensor = PiecewiseTensor((2,), lambda: [np.zeros(count, np.float32)])
    with pytest.raises(ValueError, match=rf"{4 * count} bytes of data for a tensor of shape \(2,\)"):
        list(tensor.data())


def test_a_parameter_in_one_piece():
    tensor = piecewise(torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T))
    assert tensor.shape == (2, 2)
    assert b"".join(tensor.data()) == np.array([1, 3, 2, 4], "<f4").tobytes()


def test_a_scalar_has_one_element():
    assert PiecewiseTensor((), list).num_elements == 1
