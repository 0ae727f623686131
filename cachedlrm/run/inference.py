"""``--inference-only``: a model, quantised or not, on the held-out samples."""

import time
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import choose_device
from cachedlrm.base.units import finite
from cachedlrm.data.batch import Batch, Dataset, SourceWrapper
from cachedlrm.export.full_tables import FullTable, current_records, full_tables
from cachedlrm.model.losses import make_loss
from cachedlrm.model.quantized import QuantizedTables, mlp_bytes, quantize_mlps
from cachedlrm.options.resolved import Resolved
from cachedlrm.report.record import InferenceReport, ServedModel
from cachedlrm.run.evaluation import Evaluation, Model, Pooling, evaluate
from cachedlrm.run.job import Job


def check_inference(options: Resolved, dataset: Dataset) -> None:
    """Refuses ``--inference-only`` where something that it needs is missing.

    Args:
        options: resolved.
        dataset: the data.

    Raises:
        UserError: no samples are held out, or the quantisation asked for is not possible.
    """
    inference = options.inference
    if not inference.inference_only:
        return
    if dataset.test is None:
        raise UserError(f"--inference-only: --data {options.data.data} holds out no samples; name them by --test-data")
    bits, dim = inference.quantize_emb_with_bit, options.model.arch_sparse_feature_size
    for name, value in (("mlp", inference.quantize_mlp_with_bit), ("emb", bits)):
        if value != 32 and choose_device(options.run.device).type == "cuda":
            raise UserError(f"--quantize-{name}-with-bit {value} runs on the CPU only; add --device cpu")
    if bits == 4 and dim is not None and dim % 2:
        raise UserError(
            f"--quantize-emb-with-bit 4 puts two columns into a byte and --arch-sparse-feature-size is {dim}; use 8"
        )


def run_inference(job: Job) -> tuple[InferenceReport, NDArray[np.float32]]:
    """Evaluates a job's model, and then its quantised form if that is asked for.

    Returns:
        The measurements, and the predictions of the model as served, in data order.

    Raises:
        UserError: the quantised tables do not fit into memory.
    """
    inference, trainer = job.options.inference, job.trainer
    tables = full_tables(job.architecture, current_records(trainer.cache))
    mlp_bits, embedding_bits = inference.quantize_mlp_with_bit, inference.quantize_emb_with_bit
    before, evaluation = _serve(job, trainer.model, trainer.cache.pooled)
    table_bytes = sum(4 * table.num_rows * table.layout.parameter_words for table in tables)
    before = replace(before, embedding_bytes=table_bytes, mlp_bytes=mlp_bytes(trainer.model))
    after = None
    if (mlp_bits, embedding_bits) != (32, 32):
        model = trainer.model if mlp_bits == 32 else quantize_mlps(trainer.model, mlp_bits)
        pooling: Pooling = trainer.cache.pooled
        if embedding_bits != 32:
            quantized = _quantize(tables, embedding_bits)
            pooling, table_bytes = _pooling(job, quantized), quantized.num_bytes
        after, evaluation = _serve(job, model, pooling)
        after = replace(after, embedding_bytes=table_bytes, mlp_bytes=mlp_bytes(trainer.model, mlp_bits))
    report = InferenceReport(len(evaluation.labels), mlp_bits, embedding_bits, before, after)
    return report, evaluation.predictions


def _serve(job: Job, model: Model, pooling: Pooling) -> tuple[ServedModel, Evaluation]:
    """Evaluates a model; the caller fills in its bytes."""
    options, source = job.options, job.dataset.test
    assert source is not None
    # The reference's generators know one size of batches; int8 MLPs depend on it.
    is_reference = options.data.data == "reference"
    batch_size = options.batches.mini_batch_size if is_reference else options.batches.test_mini_batch_size
    timed = _TimedSource(source)
    started = time.perf_counter()
    evaluation = evaluate(model, pooling, timed, batch_size, job.device, group_by=job.group_by)
    seconds = time.perf_counter() - started - timed.seconds
    loss = make_loss(options.model.loss_function, options.model.loss_weights, torch.device("cpu"))
    served = ServedModel(
        **asdict(evaluation.scores),
        loss=finite(float(loss(torch.from_numpy(evaluation.predictions), torch.from_numpy(evaluation.labels)))),
        samples_per_s=len(evaluation.labels) / max(seconds, 1e-9),
        embedding_bytes=0,
        mlp_bytes=0,
    )
    return served, evaluation


class _TimedSource(SourceWrapper):
    """A `Source` that counts the seconds spent reading."""

    seconds = 0.0

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        started = time.perf_counter()
        batch = super().read(start, stop)
        self.seconds += time.perf_counter() - started
        return batch


def _quantize(tables: list[FullTable], bits: int) -> QuantizedTables:
    """Plain tables, which form one group, packed piece by piece."""
    layout, num_rows = tables[0].layout, sum(table.num_rows for table in tables)
    pooling_weights = None
    try:
        if layout.weighted:
            pooling_weights = np.concatenate([p for table in tables for p in table.tensor(layout.dim).pieces()])
        pieces = (piece for table in tables for piece in table.tensor(slice(0, layout.dim)).pieces())
        return QuantizedTables(pieces, num_rows, layout.dim, bits, pooling_weights)
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises RuntimeError
        raise UserError(
            f"{num_rows:,} rows of {bits} bits an element do not fit into memory; "
            "use --quantize-emb-with-bit 4, or 32 to read them where they are"
        ) from error


def _pooling(job: Job, tables: QuantizedTables) -> Pooling:
    router, averages = job.trainer.cache.router, job.options.model.pooling == "mean"

    def pooled(batch: Batch) -> list[Tensor]:
        (lookups,) = router(batch)
        rows, offsets = torch.from_numpy(lookups.rows), torch.from_numpy(lookups.offsets)
        return [tables.pool(rows, offsets, averages=averages)]

    return pooled
