"""One training step and one evaluation: the cache, the model and the optimizers put together."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.cache.upload import DeviceBatch
from cachedlrm.data.batch import Source
from cachedlrm.model.clipping import clip_grad_norm
from cachedlrm.model.dense_optimizer import DenseOptimizer
from cachedlrm.model.dense_pass import DensePass
from cachedlrm.model.dense_settings import DenseSettings, counterpart
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.graphed_pass import GraphedPass, Recorder
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import Loss
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.run.evaluation import Evaluation, evaluate
from cachedlrm.run.phase_clock import PhaseClock


class Trainer:
    """Trains a DLRM over cached embeddings.

    Args:
        cache: embedding tables; their record layout names the rows' optimizer.
        model: dense part, on the cache's device.
        learning_rate: of rows, by step.
        loss: from predictions and labels to a scalar.
        mini_batch_size: samples over which a loss is averaged. Gradients of a larger batch's mini-batches are added
            up, and parameters move once.
        micro_batch_size: samples that go through the layers at a time; a mini-batch may take several passes.
        dtype: of layers and interaction in training; see `DensePass`.
        record: captures the passes over batches of one whole mini-batch; None: all passes are eager.
        dense: the optimizer of dense parameters; None: the counterpart of the rows'.
        dense_learning_rate: its rate, by step; None: the rows'.
        eps: of the rows' optimizer; None: its own.
        weight_decay: of rows, see `RowStep`.
        clip_grad_norm: the most that the norm of a step's gradients, of rows and dense parameters together, may be.
    """

    def __init__(
        self,
        cache: EmbeddingCache,
        model: Dlrm,
        learning_rate: LearningRate,
        loss: Loss,
        mini_batch_size: int,
        *,
        micro_batch_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        record: Recorder | None = None,
        dense: DenseSettings | None = None,
        dense_learning_rate: LearningRate | None = None,
        eps: float | None = None,
        weight_decay: float = 0.0,
        clip_grad_norm: float | None = None,
    ) -> None:
        self.cache = cache
        self.model = model
        self.learning_rate = learning_rate
        self.dense_learning_rate = dense_learning_rate or learning_rate
        self._eps, self._weight_decay, self._clip_grad_norm = eps, weight_decay, clip_grad_norm
        self._mini_batch_size = mini_batch_size
        self._micro_batch_size = micro_batch_size or mini_batch_size
        self._optimizer = DenseOptimizer(dense or DenseSettings(counterpart(cache.optimizer)), model)
        self._dense_pass = DensePass(model, self._optimizer.grads, loss, dtype)
        self._graphed_pass = None if record is None else GraphedPass(self._dense_pass, record)
        self.steps_before = 0  # of the run whose state was loaded
        self.num_batches = 0  # trained, by earlier processes of the run too
        self.clock = PhaseClock(cache.device)

    @torch.inference_mode()
    def step(self, batch: PreparedBatch) -> Tensor:
        """Trains one batch; the loss of each mini-batch in it, [M] on the device, not waited for.

        With a recorder the next step may write its loss to the same place.
        """
        tensors = batch.tensors
        self.clock.add(batch.phase_ms)
        self.clock.enter("wait")  # on CUDA what the training stream waits for the copy stream
        batch.admitted.wait()
        self.clock.enter("forward")
        updates = self.cache.begin(batch)
        losses, gradients = self._dense_passes(tensors, [update.pooled for update in updates])
        moves = [update.step for update in updates]
        if self._clip_grad_norm is not None:
            self.clock.enter("row_step")
            gradients = [update.sum_by_row(gradient) for update, gradient in zip(updates, gradients, strict=True)]
            clip_grad_norm([self._optimizer.all_grads, *gradients], self._clip_grad_norm)
            moves = [update.move for update in updates]
        self.clock.enter("dense_step")
        number = tensors.index + 1
        self._optimizer.step(self.dense_learning_rate(number))
        self.clock.enter("row_step")
        step = RowStep(self.learning_rate(number), self.steps_before + number, self._eps, self._weight_decay)
        for move, gradient in zip(moves, gradients, strict=True):
            move(gradient, step)
        self.cache.finish(batch, updates)
        self.num_batches = number
        self.clock.enter(None)
        return losses

    def _dense_passes(self, batch: DeviceBatch, pooled: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Forward and backward through the dense part; the losses [M] and the gradient of each of ``pooled``.

        Args:
            batch: B samples.
            pooled: of each group, [B * T, D]; overwritten.
        """
        if self._graphed_pass is not None and batch.num_samples == self._mini_batch_size:
            loss, backward = self._graphed_pass(batch.dense, pooled, batch.labels)
            self.clock.enter("backward")
            return loss.view(1), backward()
        bags_per_sample = [group.shape[0] // batch.num_samples for group in pooled]
        losses: list[Tensor] = []
        for first, last, mini_batch in self._passes(batch.num_samples):
            share = (last - first) / len(mini_batch)
            dense, parts, labels = batch.dense, pooled, batch.labels
            if last - first < batch.num_samples:
                dense, labels = dense[first:last], labels[first:last]
                parts = [group[first * bags : last * bags] for group, bags in zip(pooled, bags_per_sample, strict=True)]
            if first:
                self.clock.enter("forward")
            prediction = self._dense_pass.forward(dense, parts)  # [b]
            loss = self._dense_pass.loss(prediction, labels, share)
            if first == mini_batch.start:
                losses.append(loss)
            else:
                losses[-1] += loss
            self.clock.enter("backward")
            self._dense_pass.backward(prediction, labels, adds=first > 0, share=share)
        gradients = pooled  # each pass has put them in the place of its vectors
        return torch.stack(losses), gradients

    def _passes(self, num_samples: int) -> Iterator[tuple[int, int, range]]:
        """The first sample of each pass, the first after it, and the mini-batch that it is part of."""
        for start in range(0, num_samples, self._mini_batch_size):
            mini_batch = range(start, min(start + self._mini_batch_size, num_samples))
            for first in mini_batch[:: self._micro_batch_size]:
                yield first, min(first + self._micro_batch_size, mini_batch.stop), mini_batch

    @property
    def num_updates(self) -> int:
        """How often parameters moved, in the run whose state was loaded too."""
        return self.steps_before + self.num_batches

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """State of the dense parameters' optimizer, by parameter name and torch's key."""
        return self._optimizer.state()

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes over the state of another run; that of its rows is in their records.

        Args:
            state: by parameter name and torch's key, as arrays, and ``step`` as a number.
        """
        self._optimizer.load_state(state)

    def is_finite(self) -> bool:
        """Whether no parameter and no optimizer state is NaN or infinite. Call it while nothing is in flight."""
        self.cache.flush()
        dense = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        return dense and all(group.is_finite() for group in self.cache.groups)

    def evaluate(
        self,
        source: Source,
        batch_size: int,
        group_by: int | None = None,
        depth: int = 0,
        tell: Callable[[float], None] = lambda share: None,
    ) -> Evaluation:
        """Predicts a whole source; see `cachedlrm.run.evaluation.evaluate`. Changes nothing that training needs."""
        return evaluate(
            self.model,
            self.cache.reader(),
            source,
            batch_size,
            self.cache.device,
            group_by=group_by,
            depth=depth,
            tell=tell,
        )
