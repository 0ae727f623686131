"""Whole training steps of others, every row resident, for whole_step.py; see there."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from peers import fbgemm_operator, table_major, torchrec_model
from torch import Tensor

from cachedlrm.base.kernels import table_offsets
from cachedlrm.data.batch import Batch
from cachedlrm.model.dense_optimizer import DenseOptimizer
from cachedlrm.model.dense_pass import DensePass
from cachedlrm.model.losses import make_loss
from cachedlrm.run.job import Job
from cachedlrm.store.records import OPTIMIZERS

FBGEMM, FBGEMM_AND_OURS, TORCH = "FBGEMM, torch.nn layers", "FBGEMM, our dense pass", "torch.nn"
TORCHREC = "TorchRec over FBGEMM"


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
    """A batch of B samples as others take it: [B, num_dense], [B], and lookups in a form of theirs."""

    dense: Tensor
    labels: Tensor
    lookups: Any


Lookups = tuple[Tensor, Tensor]
"""Ids in the order of their bags [L], and boundaries of the bags [B * T + 1]."""
Pool = Callable[[Lookups], Tensor]
"""From lookups to the pooled vectors of all bags, [B * T, dim]."""


class Resident:
    """A model with all rows resident, in a loop.

    Args:
        as_lookups: from a batch to what ``step`` finds in its inputs.
        step: trains a batch; its loss.
    """

    def __init__(self, as_lookups: Callable[[Batch], Any], step: Callable[[Inputs], Tensor]) -> None:
        self._as_lookups = as_lookups
        self._step = step

    def train(self, batches: list[Batch]) -> Block:
        """Trains a block; the loss is read at its end."""
        inputs = [
            Inputs(torch.from_numpy(batch.dense).clone(), torch.from_numpy(batch.labels), self._as_lookups(batch))
            for batch in batches
        ]
        started = time.perf_counter()
        loss = torch.stack([self._step(each) for each in inputs]).mean().item()
        return Block((time.perf_counter() - started) * 1e3 / len(batches), loss)


def with_autograd(job: Job, pool: Pool, sparse: Iterable[torch.nn.Parameter]) -> Callable[[Inputs], Tensor]:
    """The step of a model of torch.nn modules; ``sparse`` are embeddings that torch.optim moves too."""
    model = job.architecture.dlrm(job.options.batches.numpy_rand_seed)
    loss_function = torch.nn.BCELoss()
    optimizer = _optimizer(job, [*model.parameters(), *sparse])

    def step(inputs: Inputs) -> Tensor:
        optimizer.zero_grad()
        loss = loss_function(model(inputs.dense, [pool(inputs.lookups)]), inputs.labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _optimizer(job: Job, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """torch's, of the layers of ``job``."""
    rate = job.options.optimisation.learning_rate
    if job.options.optimisation.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate)
    return torch.optim.Adagrad(parameters, lr=rate, eps=job.options.optimisation.dense.definite_eps)


def with_torchrec(job: Job, model: torch.nn.Module) -> Callable[[Inputs], Tensor]:
    """The step of a model of TorchRec, whose embeddings move in their backward pass."""
    loss_function = torch.nn.BCEWithLogitsLoss()
    optimizer = _optimizer(job, [parameter for name, parameter in model.named_parameters() if "sparse" not in name])

    def step(inputs: Inputs) -> Tensor:
        optimizer.zero_grad()
        loss = loss_function(model(inputs.dense, inputs.lookups).squeeze(1), inputs.labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def with_dense_pass(job: Job, pool: Pool) -> Callable[[Inputs], Tensor]:
    """The step of our dense part after embeddings that autograd moves."""
    rate = job.options.optimisation.dense_rate.base
    model = job.architecture.dlrm(job.options.batches.numpy_rand_seed)
    optimizer = DenseOptimizer(job.options.optimisation.dense, model)
    dense_pass = DensePass(model, optimizer.grads, make_loss("bce", (), job.device))

    def step(inputs: Inputs) -> Tensor:
        pooled = pool(inputs.lookups)
        grad = pooled.detach()  # takes the vectors' place
        with torch.inference_mode():
            prediction = dense_pass.forward(inputs.dense, [grad])
            loss = dense_pass.loss(prediction, inputs.labels)
            dense_pass.backward(prediction, inputs.labels, adds=False)
            optimizer.step(rate)
        pooled.backward(grad)
        return loss

    return step


def _pool(operator: torch.nn.Module, dim: int) -> Pool:
    return lambda lookups: operator(*lookups).view(-1, dim)


def others(job: Job, names: Iterable[str]) -> dict[str, Training]:
    """Those of ``names`` that can be loaded, with ``job``'s initial parameters and options.

    Args:
        job: with sgd, adagrad or (not for torch.nn, which has no such optimizer) rwsadagrad.
        names: of the constants above.
    """
    rows, dim = job.dataset.train.table_rows, job.options.model.arch_sparse_feature_size
    name, rate = job.options.optimisation.optimizer, job.options.optimisation.learning_rate
    eps = job.options.optimisation.eps
    first_rows = table_offsets(rows)
    init = job.trainer.cache.groups[0].init

    def operator_of_fbgemm() -> torch.nn.Module | None:
        operator = fbgemm_operator(rows, dim, name, rate, OPTIMIZERS[name].eps if eps is None else eps)
        if operator is not None:
            for first, weights in zip(first_rows, operator.split_embedding_weights(), strict=False):
                init.fill(np.arange(first, first + len(weights)), weights.detach().numpy())
        return operator

    def as_table_major(batch: Batch) -> Lookups:
        return table_major(batch, first_rows[:-1])

    found: dict[str, Training] = {}
    if FBGEMM in names and (operator := operator_of_fbgemm()) is not None:
        found[FBGEMM] = Resident(as_table_major, with_autograd(job, _pool(operator, dim), ()))
    if FBGEMM_AND_OURS in names and (operator := operator_of_fbgemm()) is not None:
        found[FBGEMM_AND_OURS] = Resident(as_table_major, with_dense_pass(job, _pool(operator, dim)))
    if TORCHREC in names and (operator := operator_of_fbgemm()) is not None:
        dense = job.architecture.dlrm(job.options.batches.numpy_rand_seed).state_dict()
        made = torchrec_model(job.architecture, operator, {key: value.numpy() for key, value in dense.items()})
        if made is not None:
            model, features = made
            found[TORCHREC] = Resident(lambda batch: features(*as_table_major(batch)), with_torchrec(job, model))
    if TORCH in names and name != "rwsadagrad":
        bags = torch.nn.EmbeddingBag(sum(rows), dim, mode="sum", sparse=True, include_last_offset=True)
        init.fill(np.arange(sum(rows)), bags.weight.detach().numpy())
        step = with_autograd(job, lambda lookups: bags(*lookups), bags.parameters())
        found[TORCH] = Resident(lambda batch: (torch.from_numpy(batch.rows), torch.from_numpy(batch.offsets)), step)
    return found
