"""Whole training steps of others, every row resident, for whole_step.py; see there."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from peers import fbgemm_operator, table_major
from torch import Tensor

from cachedlrm.base.kernels import table_offsets
from cachedlrm.data.batch import Batch
from cachedlrm.model.dense_optimizer import DenseOptimizer
from cachedlrm.model.dense_pass import DensePass
from cachedlrm.model.losses import make_loss
from cachedlrm.run.job import Job

FBGEMM, FBGEMM_AND_OURS, TORCH = "FBGEMM, torch.nn layers", "FBGEMM, our dense pass", "torch.nn"


@dataclass(frozen=True)
class Block:
    """What several consecutive steps took.

    Attributes:
        step_ms: milliseconds a step.
        loss: mean.
        wait_ms: of them, waiting for rows.
        steady_wait_ms: the same without the first step, which nothing was prepared for.
        evicted_rows: a step.
    """

    step_ms: float
    loss: float
    wait_ms: float = 0.0
    steady_wait_ms: float = 0.0
    evicted_rows: float = 0.0


class Training(Protocol):
    """A model in training."""

    def train(self, batches: list[Batch]) -> Block:
        """Trains a block."""
        ...


@dataclass(frozen=True)
class Inputs:
    """A batch of B samples as others take it: [B, num_dense], [B], and ids in the order of their bags."""

    dense: Tensor
    labels: Tensor
    ids: Tensor


Pool = Callable[[Tensor], Tensor]
"""From ids to the pooled vectors of all bags, [B * T, dim]."""


class Resident:
    """A model with all rows resident, in a loop.

    Args:
        as_ids: from a batch to ids.
        step: trains a batch; its loss.
    """

    def __init__(self, as_ids: Callable[[Batch], Tensor], step: Callable[[Inputs], Tensor]) -> None:
        self._as_ids = as_ids
        self._step = step

    def train(self, batches: list[Batch]) -> Block:
        """Trains a block; the loss is read at its end."""
        inputs = [
            Inputs(torch.from_numpy(batch.dense).clone(), torch.from_numpy(batch.labels), self._as_ids(batch))
            for batch in batches
        ]
        started = time.perf_counter()
        loss = torch.stack([self._step(each) for each in inputs]).mean().item()
        return Block((time.perf_counter() - started) * 1e3 / len(batches), loss)


def with_autograd(job: Job, pool: Pool, sparse: Iterable[torch.nn.Parameter]) -> Callable[[Inputs], Tensor]:
    """The step of a model of torch.nn modules; ``sparse`` are embeddings that torch.optim moves too."""
    model = job.architecture.dlrm(job.options.batches.numpy_rand_seed)
    loss_function = torch.nn.BCELoss()
    kind = torch.optim.SGD if job.options.optimisation.optimizer == "sgd" else torch.optim.Adagrad
    optimizer = kind([*model.parameters(), *sparse], lr=job.options.optimisation.learning_rate)

    def step(inputs: Inputs) -> Tensor:
        optimizer.zero_grad()
        loss = loss_function(model(inputs.dense, [pool(inputs.ids)]), inputs.labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def with_dense_pass(job: Job, pool: Pool) -> Callable[[Inputs], Tensor]:
    """The step of our dense part after embeddings that autograd moves."""
    name, rate = job.options.optimisation.optimizer, job.options.optimisation.learning_rate
    model = job.architecture.dlrm(job.options.batches.numpy_rand_seed)
    optimizer = DenseOptimizer(name, model)
    dense_pass = DensePass(model, optimizer.grads, make_loss("bce", (), job.device))

    def step(inputs: Inputs) -> Tensor:
        pooled = pool(inputs.ids)
        grad = pooled.detach()  # takes the vectors' place
        with torch.inference_mode():
            prediction = dense_pass.forward(inputs.dense, [grad])
            loss = dense_pass.loss(prediction, inputs.labels)
            dense_pass.backward(prediction, inputs.labels, adds=False)
            optimizer.step(rate)
        pooled.backward(grad)
        return loss

    return step


def others(job: Job) -> dict[str, Training]:
    """Those that can be loaded, by name, with ``job``'s initial parameters and options.

    Args:
        job: of one-hot data, with sgd, adagrad or (not for torch.nn, which has no such optimizer) rwsadagrad.
    """
    rows, dim = job.dataset.train.table_rows, job.options.model.arch_sparse_feature_size
    name, rate = job.options.optimisation.optimizer, job.options.optimisation.learning_rate
    first_rows = table_offsets(rows)
    offsets = torch.arange(len(rows) * job.options.batches.mini_batch_size + 1)
    init = job.trainer.cache.groups[0].init

    def pool_of_fbgemm() -> Pool | None:
        operator = fbgemm_operator(rows, dim, name, rate)
        if operator is None:
            return None
        for first, weights in zip(first_rows, operator.split_embedding_weights(), strict=False):
            init.fill(np.arange(first, first + len(weights)), weights.detach().numpy())
        return lambda ids: operator(ids, offsets).view(-1, dim)

    found: dict[str, Training] = {}
    if (pool := pool_of_fbgemm()) is not None:
        step = with_autograd(job, pool, ())
        found[FBGEMM] = Resident(lambda batch: table_major(batch, first_rows[:-1]), step)
    if (pool := pool_of_fbgemm()) is not None:
        found[FBGEMM_AND_OURS] = Resident(lambda batch: table_major(batch, first_rows[:-1]), with_dense_pass(job, pool))
    if name != "rwsadagrad":
        bags = torch.nn.EmbeddingBag(sum(rows), dim, mode="sum", sparse=True, include_last_offset=True)
        init.fill(np.arange(sum(rows)), bags.weight.detach().numpy())
        step = with_autograd(job, lambda ids: bags(ids, offsets), bags.parameters())
        found[TORCH] = Resident(lambda batch: torch.from_numpy(batch.rows), step)
    return found
