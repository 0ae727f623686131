"""Kernels over the rows of a working set on the CPU, against torch's operators, bit by bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachedlrm.base.kernels import BLOCK
from cachedlrm.cache.upload import DeviceLookups
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.model.bags import add_bags, pool_backward
from cachedlrm.model.row_optimizers import RowStep, move_rows
from cachedlrm.store.records import RecordLayout

DIMS = [1, 4, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 3]
RATE = 0.01


def lookups_of(seed: int, num_bags: int) -> tuple[DeviceLookups, int]:
    """Of bags of none to three rows, and the number of different rows; sorted by position too, as on CUDA."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 4, (num_bags,), generator=generator)
    rows = torch.randint(0, 9, (int(sizes.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    made = AddressBook(9).working_set(0, rows.numpy(), offsets.numpy())
    nothing = torch.empty(0, dtype=torch.int64)
    tensors = [torch.from_numpy(array) for array in (made.offsets, made.positions, *made.transposed())]
    return DeviceLookups(*tensors[:2], nothing, *tensors[2:]), made.num_rows


def values(*shape: int, seed: int) -> Tensor:
    """Of many magnitudes, some of them zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator) * 10 ** (6 * torch.rand(*shape, generator=generator) - 5)
    return drawn * torch.randint(0, 4, shape, generator=generator).sign()


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.int32).flatten().tolist()


@settings(deadline=None, derandomize=True)  # the first call compiles
@given(dim=st.sampled_from(DIMS), num_bags=st.integers(0, 30), seed=st.integers(0, 999))
def test_gradients_of_rows_are_those_of_the_transposed_lookups(dim: int, num_bags: int, seed: int) -> None:
    lookups, num_rows = lookups_of(seed, num_bags)
    grad = values(num_bags, dim, seed=seed)
    assert lookups.transposed is not None
    expected = pool_backward(grad, lookups.positions, lookups.offsets, lookups.transposed, num_rows)
    for values_grad in (grad, grad.t().contiguous().t()):  # in the order of memory, and not
        found = pool_backward(values_grad, lookups.positions, lookups.offsets, None, num_rows)
        assert bits(found) == bits(expected)


@settings(deadline=None, derandomize=True)
@given(dim=st.sampled_from(DIMS), num_bags=st.integers(1, 30), seed=st.integers(0, 999))
def test_bags_are_added_with_one_rounding_lookup_by_lookup(dim: int, num_bags: int, seed: int) -> None:
    lookups, num_rows = lookups_of(seed, num_bags)
    rows, grad = values(num_rows, dim, seed=seed + 1), values(num_bags, dim, seed=seed)
    expected = rows.clone()
    for bag in range(num_bags):
        for position in lookups.positions[int(lookups.offsets[bag]) : int(lookups.offsets[bag + 1])].tolist():
            expected[position].add_(grad[bag], alpha=-RATE)
    add_bags(rows, grad, lookups.positions, lookups.offsets, -RATE)
    assert bits(rows) == bits(expected)


def adagrad(records: Tensor, grad: Tensor, width: int, step: int) -> None:
    sums = records[:, width:]
    sums.add_(grad.square())
    records[:, :width].add_(grad / sums.sqrt().add_(1e-10), alpha=-RATE)


def adam(records: Tensor, grad: Tensor, width: int, step: int) -> None:
    first, second = records[:, width : 2 * width], records[:, 2 * width :]
    first.add_(grad.sub(first).mul_(1 - 0.9))
    second.add_(grad.square().sub_(second).mul_(1 - 0.999))
    step_size = RATE * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    records[:, :width].add_(first.div(second.sqrt().add_(1e-8)).mul_(-step_size))


@pytest.mark.parametrize("formula", [adagrad, adam])
@pytest.mark.parametrize("weighted", [False, True])
@settings(deadline=None, derandomize=True, max_examples=50)
@given(dim=st.sampled_from(DIMS), num_rows=st.integers(0, 40), seed=st.integers(0, 999))
def test_rows_move_as_by_operators(formula, weighted: bool, dim: int, num_rows: int, seed: int) -> None:
    layout = RecordLayout(dim, formula.__name__, weighted)
    width = layout.parameter_width
    records = values(num_rows, layout.width, seed=seed)
    records[:, width:] = 0.0
    expected = records.clone()
    for step in (1, 2, 3):
        grad = values(num_rows, width, seed=seed + step)
        formula(expected, grad, width, step)
        move_rows(layout, records, grad, RowStep(RATE, step))
        assert bits(records) == bits(expected)


OF_TORCH = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}


@pytest.mark.parametrize("optimizer", OF_TORCH)
def test_rows_of_a_batch_decay_and_move_as_a_table_of_torch_does(optimizer):
    eps, decay, used = (None if optimizer == "sgd" else 1e-3), 0.3, [4, 0, 7]
    table = torch.nn.Parameter(values(9, 5, seed=1))
    of_torch = OF_TORCH[optimizer]([table], lr=RATE, **({} if eps is None else {"eps": eps}))
    layout = RecordLayout(5, optimizer)
    records = torch.cat([table.detach(), torch.zeros(9, layout.state_width)], 1)
    untouched = table.detach()[[1, 2, 3, 5, 6, 8]].clone()
    for step in (1, 2, 3):
        grad = values(3, 5, seed=1 + step)
        with torch.no_grad():
            table[used] *= 1 - RATE * decay
        with torch.sparse.check_sparse_tensor_invariants():
            table.grad = torch.sparse_coo_tensor(torch.tensor([sorted(used)]), grad[[1, 0, 2]], table.shape)
            of_torch.step()
        moved = records[used]
        move_rows(layout, moved, grad.clone(), RowStep(RATE, step, eps, decay))
        records[used] = moved
        assert bits(records[:, :5]) == bits(table.detach())
    assert bits(records[[1, 2, 3, 5, 6, 8], :5]) == bits(untouched)


def test_a_sum_of_each_row_takes_an_eps_and_decays():
    records, grad = torch.tensor([[2.0, 4.0, 0.0]]), torch.tensor([[3.0, 3.0]])
    move_rows(RecordLayout(2, "rwsadagrad"), records, grad, RowStep(0.5, 1, 1.0, 0.5))
    assert records.tolist() == [[2.0 * 0.75 - 0.5 * 3 / 4, 4.0 * 0.75 - 0.5 * 3 / 4, 9.0]]
