"""``--inference-only``: a model, quantised or not, on the held-out samples."""

import time
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import choose_device
from cachedlrm.base.units import finite
from cachedlrm.data.batch import Batch, Dataset, SourceWrapper
from cachedlrm.model.losses import make_loss
from cachedlrm.model.quantized import mlp_bytes, quantize_mlps, row_bytes
from cachedlrm.options.resolved import Resolved
from cachedlrm.report.record import InferenceReport, ServedModel
from cachedlrm.run.evaluation import Evaluation, Model, evaluate, evaluation_batch_size
from cachedlrm.run.job import Job


def check_inference(options: Resolved, dataset: Dataset) -> None:
    """Refuses ``--inference-only`` where something that it needs is missing.

    Args:
        options: resolved.
        dataset: the data.

    Raises:
        UserError: no samples are held out, or the quantisation asked for is not possible.
    """
    if not options.inference.inference_only:
        return
    if dataset.test is None:
        raise UserError(f"--inference-only: --data {options.data.data} holds out no samples; name them by --test-data")
    check_quantized(options, choose_device(options.run.device))


def check_quantized(options: Resolved, device: torch.device) -> None:
    """Refuses a quantisation that is not possible.

    Args:
        options: of the model and of how it is served.
        device: where it is.

    Raises:
        UserError: names the option.
    """
    inference, model = options.inference, options.model
    bits, dim = inference.quantize_emb_with_bit, model.arch_sparse_feature_size
    for name, value in (("mlp", inference.quantize_mlp_with_bit), ("emb", bits)):
        if value != 32 and device.type == "cuda":
            raise UserError(f"--quantize-{name}-with-bit {value} runs on the CPU only; add --device cpu")
    if bits == 4 and dim % 2:
        raise UserError(
            f"--quantize-emb-with-bit 4 puts two columns into a byte and --arch-sparse-feature-size is {dim}; use 8"
        )
    for flag, given in (("--qr-flag", model.qr_flag), ("--md-flag", model.md_flag)):
        if bits != 32 and given:
            raise UserError(f"--quantize-emb-with-bit {bits} takes plain tables, not those of {flag}; use 32")


def run_inference(job: Job) -> tuple[InferenceReport, NDArray[np.float32]]:
    """Evaluates a job's model, and then its quantised form if that is asked for.

    Returns:
        The measurements, and the predictions of the model as served, in data order.
    """
    inference, trainer = job.options.inference, job.trainer
    mlp_bits, embedding_bits = inference.quantize_mlp_with_bit, inference.quantize_emb_with_bit
    served, evaluation = _serve(job, trainer.model, 32)
    before = replace(served, embedding_bytes=_embedding_bytes(job, 32), mlp_bytes=mlp_bytes(trainer.model))
    after = None
    if (mlp_bits, embedding_bits) != (32, 32):
        model = trainer.model if mlp_bits == 32 else quantize_mlps(trainer.model, mlp_bits)
        served, evaluation = _serve(job, model, embedding_bits)
        after = replace(
            served,
            embedding_bytes=_embedding_bytes(job, embedding_bits),
            mlp_bytes=mlp_bytes(trainer.model, mlp_bits),
        )
    report = InferenceReport(len(evaluation.labels), mlp_bits, embedding_bits, before, after)
    return report, evaluation.predictions


def _embedding_bytes(job: Job, bits: int) -> int:
    """Bytes of all tables: as they are kept at 32 bits an element, else with each row's scale."""
    total = 0
    for shape in job.architecture.shapes:
        layout = shape.layout
        kept = 4 * layout.parameter_words
        total += shape.num_rows * (kept if bits == 32 else row_bytes(layout.dim, bits) + 4 * layout.weighted)
    return total


def _serve(job: Job, model: Model, bits: int) -> tuple[ServedModel, Evaluation]:
    """Evaluates a model; the caller fills in its bytes."""
    options, source = job.options, job.dataset.test
    assert source is not None
    batch_size = evaluation_batch_size(options)  # int8 MLPs depend on it
    timed = _TimedSource(source)
    started = time.perf_counter()
    reader = job.trainer.cache.reader(bits)
    evaluation = evaluate(model, reader, timed, batch_size, job.device, group_by=job.group_by)
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
