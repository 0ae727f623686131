"""Runs of TorchRec's DLRM, DLRM_DCN and DLRM_Projection, repeated here: every loss, resident and with a cache.

`tests/golden/torchrec` holds runs of torchrec 1.8.0 on the CPU (torch 2.13, fbgemm-gpu-cpu 1.8.0, one thread) with
optimizers of torch.optim: data, initial parameters as a model file, and in ``case.json`` the command line that is the
same here and the loss of every step (`python tests/support/golden_torchrec.py OUT` makes them anew). TorchRec adds in
another order, so losses agree to rounding; cached and resident runs have the same bits.
"""

import json

import numpy as np
import pytest

from cachedlrm.train import main
from support.documents import ROOT
from support.runs import parameters

GOLDEN = ROOT / "tests" / "golden" / "torchrec"
SGD, ADAPTIVE = 1e-5, 1e-4
TOLERANCES = {
    "dot_onehot_sgd": SGD,
    "dcn_onehot_sgd": SGD,
    "projection_onehot_sgd": SGD,
    "dot_ragged_mean_sgd": SGD,
    "dot_onehot_clip": SGD,
    "dot_onehot_momentum": SGD,
    "dot_fixed_split": ADAPTIVE,
    "dcn_ragged_adagrad": ADAPTIVE,
    "dcn_fixed_adamw": ADAPTIVE,
}


def test_every_run_is_repeated():
    assert {path.parent.name for path in GOLDEN.glob("*/case.json")} == set(TOLERANCES)


@pytest.mark.parametrize("name", TOLERANCES)
def test_torchrec_gives_the_same_losses(name, tmp_path):
    case = json.loads((GOLDEN / name / "case.json").read_text())

    def run(kind: str, *arguments: str) -> tuple[dict, dict[str, np.ndarray]]:
        folder, places = tmp_path / kind, (f"--data=npy:{GOLDEN / name}", f"--load-model={GOLDEN / name / 'model.pt'}")
        assert main([*case["args"], *places, "--threads=1", "--ui=off", f"--run-dir={folder}", *arguments]) == 0
        return json.loads((folder / "report.json").read_text()), parameters(folder, with_optimizer_state=True)

    resident, expected = run("resident")
    assert len(case["losses"]) == 30
    assert resident["losses"] == pytest.approx(case["losses"], rel=TOLERANCES[name], abs=0)
    assert resident["evicted_rows"] == 0

    cached, found = run("cached", "--gpu-cache-rows=150", "--policy=lru", "--prefetch-depth=2")
    assert cached["losses"] == resident["losses"]
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in expected)
    for counter in ("evicted_rows", "written_back_rows", "fetched_rows"):
        assert cached[counter] > 0
