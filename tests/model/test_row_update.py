"""One step of three rows, by hand, and with every optimizer against autograd's gradient."""

import pytest
import torch

from cachedlrm.model.row_optimizers import RowStep, move_rows
from cachedlrm.model.row_update import RowUpdate
from cachedlrm.store.records import OPTIMIZERS, RecordLayout

POSITIONS = torch.tensor([2, 0, 2, 1], dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 4], dtype=torch.int32)


def test_sgd_by_hand():
    records = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    update = RowUpdate(RecordLayout(2, "sgd"), records, POSITIONS, OFFSETS, None)
    assert update.pooled.tolist() == [[6, 8], [8, 10]]
    update.step(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), RowStep(0.5, 1))
    assert update.records.tolist() == [[0.5, 1], [1, 0], [2.5, 1]]


@pytest.mark.parametrize("sizes", [[2, 2], [0, 3], [3, 1, 0]])
def test_means_and_their_gradient_have_the_bits_of_embedding_bag(sizes):
    torch.manual_seed(2)
    records, positions = torch.randn(3, 5), torch.tensor([2, 2, 0, 2][: sum(sizes)], dtype=torch.int32)
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0)], dtype=torch.int32)
    table = torch.nn.Parameter(records.clone())
    pooled = torch.nn.functional.embedding_bag(
        positions, table, offsets, mode="mean", sparse=True, include_last_offset=True
    )
    gradient = torch.randn(len(sizes), 5)
    pooled.backward(gradient)
    torch.optim.SGD([table], lr=0.3).step()
    update = RowUpdate(RecordLayout(5, "sgd"), records, positions, offsets, None, averages=True)
    assert torch.equal(update.pooled, pooled)
    update.step(gradient.clone(), RowStep(0.3, 1))
    assert torch.equal(records, table)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_move_by_the_gradient_that_autograd_has(optimizer, weighted):
    layout = RecordLayout(2, optimizer, weighted)
    torch.manual_seed(1)
    records, gradient = torch.rand(3, layout.width), torch.randn(2, 2)
    parameters = records[:, : layout.parameter_width].clone().requires_grad_()
    vectors = parameters[:, :2] * parameters[:, 2:] if weighted else parameters
    pooled = torch.stack([vectors[2] + vectors[0], vectors[2] + vectors[1]])
    pooled.backward(gradient)
    expected = records.clone()
    move_rows(layout, expected, parameters.grad, RowStep(0.1, 7))
    update = RowUpdate(layout, records, POSITIONS, OFFSETS, None)
    torch.testing.assert_close(update.pooled, pooled.detach())
    update.step(gradient, RowStep(0.1, 7))
    torch.testing.assert_close(update.records, expected)
    assert not torch.equal(update.records[:, : layout.parameter_width], parameters)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_decay_after_their_gradient_was_taken(weighted):
    layout = RecordLayout(2, "sgd", weighted)
    torch.manual_seed(1)
    records, gradient = torch.rand(3, layout.width), torch.randn(2, 2)
    decayed, plain = (RowUpdate(layout, records.clone(), POSITIONS, OFFSETS, None) for _ in range(2))
    decayed.step(gradient, RowStep(0.1, 1, weight_decay=0.5))
    plain.step(gradient, RowStep(0.1, 1))
    torch.testing.assert_close(decayed.records, plain.records - 0.05 * records)


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_step_is_a_sum_by_row_and_a_move(optimizer, averages):
    layout = RecordLayout(2, optimizer)
    torch.manual_seed(1)
    records, gradient = torch.rand(3, layout.width), torch.randn(2, 2)
    at_once, in_two = (RowUpdate(layout, records.clone(), POSITIONS, OFFSETS, None, averages=averages) for _ in "ab")
    at_once.step(gradient.clone(), RowStep(0.1, 7))
    in_two.move(in_two.sum_by_row(gradient.clone()), RowStep(0.1, 7))
    assert torch.equal(at_once.records, in_two.records)
    assert at_once.step_number == in_two.step_number == 7
