"""``python -m cachedlrm.predict RUN_DIR --data SPEC --out FILE``: predictions of a finished run, in bounded memory.

Rows stay in the run's ``final.safetensors``, which is mapped into memory; those of a batch are read when it is
predicted. Reads top to bottom: `main`, `_predict`, and what it opens.
"""

import sys

from cachedlrm.base.program import end_program, run_program, start_program

if __name__ == "__main__":
    start_program()

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import writable_file
from cachedlrm.base.machine import choose_device, usable_processors
from cachedlrm.base.text import aligned
from cachedlrm.cache.reading import RowReader
from cachedlrm.data.batch import Source
from cachedlrm.data.open import open_dataset, open_samples
from cachedlrm.data.vocabulary import common_vocabulary
from cachedlrm.export.final_state import FinalState, load_final_state
from cachedlrm.export.formats.predictions import check_suffix, prediction_file
from cachedlrm.export.started import saved_rows
from cachedlrm.model.quantized import quantize_mlps
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.parsing import parse
from cachedlrm.options.profiles import load_resolved
from cachedlrm.options.resolve import data_request
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import LOCK_FILE, RUN_FILES
from cachedlrm.options.types import EmbeddingBits, GivenPath, MlpBits, Threads
from cachedlrm.prepare.progress import Display
from cachedlrm.report.words import NONE, scores_in_words
from cachedlrm.run.evaluation import Model, evaluation_batch_size, ids_of, predict, table_number
from cachedlrm.run.inference import check_quantized
from cachedlrm.run.scoring import score
from cachedlrm.store.init import RowInit
from cachedlrm.store.records import RecordLayout

_HELP = """Predict with a finished run: every sample's probability, in the order of the data.

Example: python -m cachedlrm.predict runs/A --data npy:DIR --out predictions.npy
"""
_AHEAD = 2  # batches read while one is predicted, where a run had a thread for it


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(
        lambda _: parse(arguments, "python -m cachedlrm.predict", _HELP, _command)(),
        interrupted="interrupted; nothing was written",
    )


def _command(
    run_dir: Annotated[GivenPath, Parameter(help="Directory of a run that ended.")],
    /,
    *,
    out: Annotated[GivenPath, Parameter(help="File to write: .npy (float32), .parquet or .csv.")],
    data: Annotated[
        str | None,
        Parameter(
            help="Samples to predict, spelled as --data of training. Default: those that the run was evaluated on."
        ),
    ] = None,
    gauc_table: Annotated[
        str | None, Parameter(help="Also measure AUC within the samples of each id of this one-hot column.")
    ] = None,
    quantize_mlp_with_bit: Annotated[MlpBits, Parameter(help="Bits of the weights of layers: 8, 16 or 32.")] = 32,
    quantize_emb_with_bit: Annotated[EmbeddingBits, Parameter(help="Bits of the numbers in tables: 4, 8 or 32.")] = 32,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, Parameter(help="Device to predict on. Default: the run's.")
    ] = None,
    threads: Annotated[Threads | None, Parameter(help="Threads of torch's operators. Default: the run's.")] = None,
    ui: Annotated[Literal["auto", "live", "plain", "off"], Parameter(help="What the terminal shows.")] = "auto",
) -> Callable[[], None]:
    bits = (quantize_mlp_with_bit, quantize_emb_with_bit)
    return partial(
        _predict, run_dir, out, data, gauc_table=gauc_table, bits=bits, device=device, threads=threads, ui=ui
    )


def _predict(
    run_dir: Path,
    out: Path,
    data: str | None,
    *,
    gauc_table: str | None,
    bits: tuple[int, int],
    device: str | None,
    threads: int | None,
    ui: str,
) -> None:
    check_suffix(out)
    target = writable_file(out, "--out", [run_dir], (*RUN_FILES, LOCK_FILE))
    options = load_resolved(run_dir / "config.toml")
    on = choose_device(device or options.run.device)
    inference = replace(options.inference, quantize_mlp_with_bit=bits[0], quantize_emb_with_bit=bits[1])
    check_quantized(replace(options, inference=inference), on)
    architecture = build_architecture(options.model, options.optimisation)
    state = load_final_state(run_dir, options, architecture)
    display = Display(ui, sys.stdout)
    source, names, has_labels, notes = _open_samples(run_dir, options, state, data)
    if gauc_table is not None and not has_labels:
        raise UserError(f"--gauc-table {gauc_table} measures by labels, which --data {data} does not have; drop it")
    group_by = table_number(gauc_table, names, len(architecture.embeddings))
    for note in notes:
        display.say(note)
    torch.set_num_threads(threads or options.run.threads or usable_processors())
    torch.backends.cuda.matmul.allow_tf32 = options.optimisation.tf32
    model = _model(architecture, state, bits[0], on)
    reader = _reader(options, architecture, state, on, bits[1])
    depth = _AHEAD if options.cache.prefetch_depth else 0
    predictions, labels = np.empty((2, source.num_samples if has_labels else 0), np.float32)
    ids = np.empty(source.num_samples if group_by is not None else 0, np.int32)
    first = 0
    with (
        prediction_file(target, source.num_samples) as write,
        display.stage("predicting", source.num_samples) as stage,
    ):
        for prediction, batch in predict(model, reader, source, evaluation_batch_size(options), on, depth=depth):
            last = first + batch.num_samples
            if not np.isfinite(prediction).all():
                raise UserError(
                    f"{run_dir} predicts what is no number for samples {first} to {last - 1}; train it anew"
                )
            write(prediction, batch.labels if has_labels else None)
            if has_labels:
                predictions[first:last], labels[first:last] = prediction, batch.labels
            if group_by is not None:
                ids[first:last] = ids_of(batch, group_by, len(source.table_rows), first)
            stage.update(last)
            first = last
    if has_labels:
        for line in _said(predictions, labels, ids if group_by is not None else None).splitlines():
            display.say(line)
    display.say(f"{source.num_samples:,} predictions: {out}")


def _open_samples(
    run_dir: Path, options: Resolved, state: FinalState, data: str | None
) -> tuple[Source, tuple[str, ...], bool, tuple[str, ...]]:
    """The samples, the names of their tables, whether they have labels, and what a user should know of them."""
    options = replace(options, run=replace(options.run, start_from=None))  # its tables are known
    if data is None:
        own = open_dataset(options.data.data, options.data.test_data, data_request(options))
        if own.test is None:
            raise UserError(f"{run_dir} held out no samples; name some by --data")
        _, note = common_vocabulary(own.vocabulary, f"--data {options.data.data}", state.vocabulary, str(run_dir))
        return own.test, own.table_names or (), True, (note,) if note else ()
    request = replace(data_request(options), needs_labels=False)
    samples = open_samples(data, request, options.data.data, state.vocabulary)
    _, note = common_vocabulary(samples.vocabulary, f"--data {data}", state.vocabulary, str(run_dir))
    notes = (*samples.notes, note) if note else samples.notes
    return samples.source, samples.table_names or (), samples.source.has_labels, notes


def _model(architecture: Architecture, state: FinalState, bits: int, device: torch.device) -> Model:
    model = architecture.dlrm(seed=0)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.dense.items()})
    model.to(device)
    return model if bits == 32 else quantize_mlps(model, bits)


def _reader(
    options: Resolved, architecture: Architecture, state: FinalState, device: torch.device, bits: int
) -> RowReader:
    """Rows of the final state, wherever they are."""
    rows = saved_rows(options, state, architecture, torch.device("cpu"))
    reads = [partial(_read, one, layout, device) for one, layout in zip(rows, architecture.layouts, strict=True)]
    averages = options.model.pooling == "mean"
    return RowReader(architecture.router(), architecture.layouts, reads, device, averages=averages, bits=bits)


def _read(init: RowInit, layout: RecordLayout, device: torch.device, rows: NDArray[np.int64]) -> Tensor:
    numbers = np.empty((len(rows), layout.columns), np.float32)
    init.fill(rows, numbers)
    return torch.from_numpy(numbers).to(device)[:, : layout.parameter_width]


def _said(predictions: NDArray[np.float32], labels: NDArray[np.float32], ids: NDArray[np.int32] | None) -> str:
    """How good predictions are, in lines."""
    figures = scores_in_words(score(predictions, labels, ids))
    kept = [(name.removesuffix(" on held-out samples"), figure) for name, figure in figures.items() if figure != NONE]
    return aligned(kept)


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
