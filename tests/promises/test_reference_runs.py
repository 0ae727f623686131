"""Runs of facebookresearch/dlrm, repeated here: every loss, the initial weights to the last bit, the final ones.

`tests/golden` holds runs of its ``dlrm_s_pytorch.py`` (commit 090956e, torch 2.13 CPU, numpy 2.4, one thread):
``args`` is the command line, ``losses`` that of every iteration, ``initial`` and ``final`` the shape, sum, sum of
absolute values and first three values of every parameter. Each is repeated with all rows resident and with a cache
that evicts. With stochastic gradient descent losses are equal to the last bit; Adagrad's sum duplicate lookups in an
order of torch's own (an unstable sort), and its weights of classes are float64; there losses are equal to 1e-5.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import export
from cachedlrm.train import main
from support.documents import TESTS

GOLDEN = sorted((TESTS / "golden").glob("*.json"))


def run(directory: Path, *arguments: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The report of a run and its final parameters."""
    common = ["--data=reference", "--print-freq=1", "--ui=off", "--threads=1", f"--run-dir={directory}"]
    assert main([*arguments, *common]) == 0
    export(directory, directory / "model.safetensors")
    report = json.loads((directory / "report.json").read_text())
    return report, load_file(directory / "model.safetensors")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_reference_gives_the_same_numbers(path, tmp_path):
    golden = json.loads(path.read_text())
    arguments = [argument for argument in golden["args"] if not argument.startswith("--print-freq")]
    initial = run(tmp_path / "initial", *arguments, "--steps=0")[1]
    assert initial.keys() == golden["initial"].keys()
    for name, expected in golden["initial"].items():
        assert list(initial[name].shape) == expected["shape"]
        assert initial[name].ravel()[:3].tolist() == expected["first"]
        assert initial[name].sum(dtype=np.float64) == pytest.approx(expected["sum"], rel=1e-12, abs=1e-12)
        assert np.abs(initial[name]).sum(dtype=np.float64) == pytest.approx(expected["abs_sum"], rel=1e-12)

    report, final = run(tmp_path / "resident", *arguments)
    if any(word in " ".join(arguments) for word in ("--optimizer", "--weighted-pooling=learned", "wbce")):
        assert report["losses"] == pytest.approx(golden["losses"], rel=1e-5, abs=0)
    else:
        assert report["losses"] == golden["losses"]
    for name, expected in golden["final"].items():
        size = expected["abs_sum"]
        assert final[name].ravel()[:3].tolist() == pytest.approx(expected["first"], rel=1e-4, abs=1e-6), name
        assert final[name].sum(dtype=np.float64) == pytest.approx(expected["sum"], rel=1e-5, abs=1e-5 * size), name
        assert np.abs(final[name]).sum(dtype=np.float64) == pytest.approx(size, rel=1e-5), name

    rows = 12 if report["table_rows"] > 1000 else 3
    small = ["--gpu-cache-rows", str(rows), "--policy=lru", "--prefetch-depth=3"]
    cached, cached_final = run(tmp_path / "cached", *arguments, *small)
    assert cached["losses"] == report["losses"]
    assert all((cached_final[name] == final[name]).all() for name in final)
    if path.stem not in ("blog_row", "gaussian"):  # their few rows are all in every batch
        assert cached["evicted_rows"] > 0
        assert cached["written_back_rows"] > 0
        assert cached["fetched_rows"] > 0
