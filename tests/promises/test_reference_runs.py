"""Runs of facebookresearch/dlrm, repeated here: every loss, the initial weights to the last bit, the final ones.

`tests/golden` holds runs of its ``dlrm_s_pytorch.py`` (commit 090956e, torch 2.13 CPU, numpy 2.4, one thread):
``args`` is the command line, ``initial`` the shape, sum, sum of absolute values and first three values of every
parameter, ``runs`` the loss of every iteration and the final parameters by processor, since each adds in its own order
(``python tests/support/golden.py CHECKOUT`` adds the one it runs on; the vector width of the AMD EPYC is not known).
Each is repeated with all rows resident and with a cache that evicts.

With stochastic gradient descent losses and final weights are equal to the last bit. Adagrad's sum duplicate lookups in
an order of torch's own (an unstable sort), and its weights of classes are float64; there losses are equal to 1e-5, and
to 1e-4 where quotient-remainder vectors, which are large, multiply the difference. On a processor without a run of its
own losses are compared with another's to 1e-5; of quotient-remainder vectors only the first, because the last bit grows
to 30 % within 50 steps.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import export
from cachedlrm.train import main
from support.golden import GOLDEN, processor


def run(directory: Path, *arguments: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The report of a run and its final parameters."""
    common = ["--data=reference", "--print-freq=1", "--ui=off", "--threads=1", f"--run-dir={directory}"]
    assert main([*arguments, *common]) == 0
    export(directory, directory / "model.safetensors")
    report = json.loads((directory / "report.json").read_text())
    return report, load_file(directory / "model.safetensors")


def assert_parameters(found: dict[str, np.ndarray], expected: dict[str, dict], tolerance: float = 0) -> None:
    """``tolerance`` is relative, of the sums; single values may differ ten times as much. 0: all bits are equal."""
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        size, of_sums = parameter["abs_sum"], max(tolerance, 1e-12)  # float64, added in another order
        same_values = pytest.approx(parameter["first"], rel=10 * tolerance, abs=tolerance)
        assert found[name].ravel()[:3].tolist() == same_values, name
        assert found[name].sum(dtype=np.float64) == pytest.approx(parameter["sum"], abs=of_sums * size), name
        assert np.abs(found[name]).sum(dtype=np.float64) == pytest.approx(size, rel=of_sums), name


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_reference_gives_the_same_numbers(path, tmp_path):
    golden = json.loads(path.read_text())
    arguments = [argument for argument in golden["args"] if not argument.startswith("--print-freq")]
    initial = run(tmp_path / "initial", *arguments, "--steps=0")[1]
    assert_parameters(initial, golden["initial"])
    assert all(list(initial[name].shape) == expected["shape"] for name, expected in golden["initial"].items())

    report, final = run(tmp_path / "resident", *arguments)
    words = " ".join(arguments)
    qr = "--qr-flag" in words
    known = next((name for name in golden["runs"] if processor().startswith(name)), None)
    expected_run = golden["runs"][known or "AuthenticAMD"]
    if known and not any(word in words for word in ("--optimizer", "--weighted-pooling=learned", "wbce")):
        assert report["losses"] == expected_run["losses"]
        assert_parameters(final, expected_run["final"])
    elif known or not qr:
        tolerance = 1e-4 if qr else 1e-5
        assert report["losses"] == pytest.approx(expected_run["losses"], rel=tolerance, abs=0)
        assert_parameters(final, expected_run["final"], tolerance)
    else:
        assert report["losses"][0] == pytest.approx(expected_run["losses"][0], rel=1e-5)

    rows = 12 if report["table_rows"] > 1000 else 3
    small = ["--gpu-cache-rows", str(rows), "--policy=lru", "--prefetch-depth=3"]
    cached, cached_final = run(tmp_path / "cached", *arguments, *small)
    assert cached["losses"] == report["losses"]
    assert all((cached_final[name] == final[name]).all() for name in final)
    if path.stem not in ("blog_row", "gaussian"):  # their few rows are all in every batch
        assert cached["evicted_rows"] > 0
        assert cached["written_back_rows"] > 0
        assert cached["fetched_rows"] > 0
