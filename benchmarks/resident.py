"""A DLRM in plain PyTorch whose tables are one tensor on the device: no cache, no planner, no code of `Trainer.step`.

What cached runs are compared with by ``benchmarks/gpu_check.py``. Batches, initial parameters, layers and optimizer are
those of a run with the same options; forward, backward and update are torch.nn's, autograd's and torch.optim's.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cachedlrm.base.machine import choose_device, usable_processors
from cachedlrm.data.batch import Dataset
from cachedlrm.data.open import open_dataset
from cachedlrm.export.initial import initial_parameters
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.config import Options
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.schedule import Schedule

_DEPTH = 2  # batches read ahead, as the trainer's default
_PIECE_ROWS = 1 << 20

_ROW_OPTIMIZERS = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
_DENSE_OPTIMIZERS = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}


@dataclass(frozen=True)
class ResidentRun:
    """What a run measured.

    Attributes:
        losses: of every step.
        samples_per_s: over the second half of the steps.
    """

    losses: list[float]
    samples_per_s: float


def opened(arguments: Sequence[str]) -> tuple[Options, Dataset]:
    """Resolved options and their data, of a command line of `cachedlrm.train`."""
    options = parse_command_line(arguments)
    dataset = open_dataset(options.data.data, options.data.test_data, data_request(options))
    return resolve(options, dataset), dataset


def synchronize(device: torch.device) -> None:
    """Blocks the host until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train_resident(arguments: Sequence[str]) -> ResidentRun:
    """Trains as a command line of `cachedlrm.train` says, but for everything it says of caching.

    For plain models: vectors of one dimension, sum pooling, a constant learning rate, binary cross-entropy, one of
    torch's optimizers (there is no row-wise Adagrad among them).
    """
    options, dataset = opened(arguments)
    optimizer, rate = options.optimisation.optimizer, options.optimisation.learning_rate
    assert optimizer is not None
    device = choose_device(options.run.device)
    torch.set_num_threads(options.run.threads or usable_processors())
    torch.backends.cuda.matmul.allow_tf32 = options.optimisation.tf32
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch.optim builds valid ones; without a choice it warns
    architecture, schedule = build_architecture(options.model, options.optimisation), Schedule(options, dataset.train)
    weight = nn.Parameter(_initial_weight(options, architecture, device))  # [rows of all tables, D]
    model = architecture.dlrm(options.batches.numpy_rand_seed).to(device)
    moves = [
        _ROW_OPTIMIZERS[optimizer]([weight], lr=rate),
        _DENSE_OPTIMIZERS[optimizer](model.parameters(), lr=rate),
    ]
    losses = torch.empty(schedule.num_batches, device=device)
    half, started, samples = schedule.num_batches // 2, 0.0, 0
    for number, (dense, rows, offsets, labels) in enumerate(_batches(schedule, device)):
        if number == half:
            synchronize(device)
            started, samples = time.perf_counter(), 0
        pooled = nn.functional.embedding_bag(
            rows, weight, offsets, mode="sum", sparse=True, include_last_offset=True
        )  # [B * T, D]
        loss = nn.functional.binary_cross_entropy(model(dense, [pooled]), labels)
        for move in moves:
            move.zero_grad()
        loss.backward()
        for move in moves:
            move.step()
        losses[number] = loss.detach()
        samples += len(labels)
    synchronize(device)
    return ResidentRun(losses.tolist(), samples / (time.perf_counter() - started))


def _initial_weight(options: Options, architecture: Architecture, device: torch.device) -> Tensor:
    """Every row as a cached run creates it at its first touch, [rows of all tables, D]."""
    (layout,) = architecture.layouts
    (init,) = initial_parameters(options, architecture, torch.device("cpu")).rows
    num_rows = sum(table.num_rows for table in architecture.groups[0])
    weight = torch.empty(num_rows, layout.dim, device=device)
    for first in range(0, num_rows, _PIECE_ROWS):
        last = min(first + _PIECE_ROWS, num_rows)
        piece = np.empty((last - first, layout.dim), np.float32)
        init.fill(np.arange(first, last), piece)
        weight[first:last].copy_(torch.from_numpy(piece))
    return weight


def _batches(schedule: Schedule, device: torch.device) -> Iterator[list[Tensor]]:
    """Dense features, rows, offsets and labels of each batch on the device; a thread reads ahead into pinned memory."""

    def read(number: int) -> list[Tensor]:
        batch = schedule.read(number)
        arrays = (batch.dense, batch.rows, batch.offsets, batch.labels)
        if device.type == "cuda":
            return [torch.from_numpy(array).pin_memory() for array in arrays]
        # torch's memory is aligned, numpy's not always, and matrix libraries may round differently for it.
        return [torch.from_numpy(array).clone() for array in arrays]

    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(read, number) for number in range(min(_DEPTH, schedule.num_batches)))
        for number in range(_DEPTH, schedule.num_batches + _DEPTH):
            tensors = coming.popleft().result()
            if number < schedule.num_batches:
                coming.append(thread.submit(read, number))
            yield [tensor.to(device, non_blocking=True) for tensor in tensors]
