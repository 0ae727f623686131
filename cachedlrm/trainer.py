"""One training step and one evaluation: the cache, the model and the optimizers put together."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, mse_loss

from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.data.batch import Source
from cachedlrm.metrics import PHASES
from cachedlrm.model.bags import pool, sum_bags
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.row_optimizers import dense_optimizer, row_step


def _binary_cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """torch's, except that a NaN gives a NaN loss, where torch raises on the CPU and aborts the process on CUDA."""
    loss = binary_cross_entropy(torch.nan_to_num(prediction, nan=0.5), labels)
    return loss + 0.0 * prediction.detach().sum()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": _binary_cross_entropy, "mse": mse_loss}


class PhaseClock:
    """Milliseconds by phase, without synchronising the device inside a step.

    On CUDA a phase lies between two events on the training stream; their distance is read in `collect`, when the host
    waits for the device anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._totals = dict.fromkeys(PHASES, 0.0)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []
        self._last = self._now()

    def _now(self) -> "float | torch.cuda.Event":
        if not self._on_cuda:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """The first phase of a step begins."""
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """``phase`` ends and the next begins."""
        now = self._now()
        if isinstance(now, float):
            assert isinstance(self._last, float)
            self._totals[phase] += (now - self._last) * 1e3
        else:
            assert isinstance(self._last, torch.cuda.Event)
            self._pending.append((phase, self._last, now))
        self._last = now

    def add(self, milliseconds: dict[str, float]) -> None:
        """Adds phases measured elsewhere."""
        for phase, value in milliseconds.items():
            self._totals[phase] += value

    def collect(self) -> dict[str, float]:
        """Totals since the last call; on CUDA the device must have been synchronised."""
        for phase, start, end in self._pending:
            self._totals[phase] += start.elapsed_time(end)
            self._spare.append(end)
        self._pending.clear()
        totals, self._totals = self._totals, dict.fromkeys(PHASES, 0.0)
        return totals


class Trainer:
    """Trains a DLRM over cached embeddings.

    Args:
        cache: embedding tables.
        model: dense part, on the cache's device.
        learning_rate: of rows and dense parameters; the optimizer is named by the cache's record layout.
        loss: ``bce`` or ``mse``.
    """

    def __init__(self, cache: EmbeddingCache, model: Dlrm, learning_rate: float, loss: str) -> None:
        self.cache = cache
        self.model = model
        self._learning_rate = learning_rate
        self._loss = _LOSSES[loss]
        self._optimizer = dense_optimizer(cache.layout.optimizer, list(model.parameters()), learning_rate)
        self.clock = PhaseClock(cache.device)

    def step(self, batch: PreparedBatch) -> Tensor:
        """Trains one batch; its loss, a scalar on the device that is not waited for."""
        tensors = batch.tensors
        self.clock.add(batch.phase_ms)
        self.clock.start()
        batch.admitted.wait()
        self.clock.lap("wait")  # on CUDA what the training stream waited for the copy stream
        records = self.cache.gather(batch)  # [U, width]
        weights = records[:, : self.cache.layout.dim].detach().requires_grad_()  # [U, D]
        pooled = sum_bags(
            weights, tensors.positions, tensors.offsets, tensors.bags_by_position, tensors.position_offsets
        )  # [B * T, D]
        prediction = self.model(tensors.dense, pooled)  # [B]
        loss: Tensor = self._loss(prediction, tensors.labels)
        self.clock.lap("forward")
        self._optimizer.zero_grad()
        loss.backward()
        self.clock.lap("backward")
        self._optimizer.step()
        self.clock.lap("dense_step")
        assert weights.grad is not None
        row_step(self.cache.layout, records, weights.grad, self._learning_rate, tensors.index + 1)
        self.cache.scatter(batch, records)
        self.clock.lap("row_step")
        return loss.detach()

    @torch.no_grad()
    def predict(self, source: Source, batch_size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Predictions and labels, each [B] float32, batch by batch. Changes nothing that training depends on.

        Call it while no batch is being prepared.
        """
        device = self.cache.device
        for start in range(0, source.num_samples, batch_size):
            batch = source.read(start, min(start + batch_size, source.num_samples))
            rows, positions = np.unique(batch.rows, return_inverse=True)
            pooled = pool(
                self.cache.read(rows),
                torch.from_numpy(positions).to(device),
                torch.from_numpy(batch.offsets).to(device),
            )
            dense = torch.from_numpy(batch.dense).to(device, copy=True)  # aligned, as in training
            prediction: Tensor = self.model(dense, pooled)
            yield prediction.cpu().numpy(), batch.labels

    def evaluate(self, source: Source, batch_size: int) -> tuple[float | None, NDArray[np.float32]]:
        """Area under the ROC curve (None if only one class occurs) and the predictions, in data order."""
        outputs = list(self.predict(source, batch_size))
        predictions = np.concatenate([prediction for prediction, _ in outputs])
        labels = np.concatenate([label for _, label in outputs])
        classes = np.unique(labels)
        if len(classes) != 2 or not np.isfinite(predictions).all():
            return None, predictions
        return float(roc_auc_score(labels, predictions)), predictions
