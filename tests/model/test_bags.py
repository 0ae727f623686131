"""Pooling and its gradient, by hand and against autograd."""

import pytest
import torch

from cachedlrm.model.bags import add_bags, pool, pool_backward, weigh, weigh_backward

ROWS = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
POSITIONS = torch.tensor([2, 0, 2, 1], dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 2, 4], dtype=torch.int32)  # rows 2 and 0, none, 2 and 1
GRAD = torch.tensor([[1.0, 2.0], [50.0, 60.0], [4.0, 8.0]])


def test_bags_are_sums_of_their_rows():
    assert pool(ROWS, POSITIONS, OFFSETS).tolist() == [[101, 202], [0, 0], [110, 220]]
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert pool(ROWS, POSITIONS, OFFSETS, factors).tolist() == [[102, 204], [0, 0], [340, 680]]


def test_the_gradient_of_a_row_is_the_sum_of_its_bags():
    expected = [[1, 2], [4, 8], [5, 10]]
    assert pool_backward(GRAD, POSITIONS, OFFSETS, None, 3).tolist() == expected
    by_position = torch.tensor([0, 2, 0, 2], dtype=torch.int32), torch.tensor([0, 1, 2, 4], dtype=torch.int32)
    assert pool_backward(GRAD, POSITIONS, OFFSETS, by_position, 3).tolist() == expected


@pytest.mark.parametrize("dim", [1, 7, 8, 16, 19])  # whole blocks of columns, some beside them, none
def test_gradients_are_added_lookup_by_lookup(dim):
    random = torch.Generator().manual_seed(dim)
    rows, grad = torch.randn(3, dim, generator=random), torch.randn(3, dim, generator=random)
    expected = rows.double()
    for bag in range(3):
        for lookup in range(OFFSETS[bag], OFFSETS[bag + 1]):  # fused: rounded once
            row = POSITIONS[lookup]
            expected[row] = (expected[row] + torch.tensor(-0.1).double() * grad[bag].double()).float().double()
    add_bags(rows, grad, POSITIONS, OFFSETS, -0.1)
    assert torch.equal(rows, expected.float())


def test_pooling_weights_are_factors_of_rows():
    parameters = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -1.0]], requires_grad=True)
    weighed = weigh(parameters, 2)
    assert weighed.tolist() == [[3, 6], [-4, -5]]
    grad = torch.tensor([[1.0, 10.0], [2.0, 3.0]])
    weighed.backward(grad)
    assert torch.equal(weigh_backward(grad, parameters.detach(), 2), parameters.grad)
    assert parameters.grad.tolist() == [[3, 30, 21], [-2, -3, 23]]
    assert weigh(ROWS, 2) is ROWS
    assert weigh_backward(GRAD, ROWS, 2) is GRAD
