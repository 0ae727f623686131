"""The names of what a run leaves behind are all that it writes."""

import importlib.util

from cachedlrm.options.run_files import CUT_METRICS_FILE, LOCK_FILE, RUN_FILES, STORE_FOLDER
from support.runs import train


def test_a_run_writes_no_other_files(tmp_path):
    asked = ["--save-predictions", "--checkpoint-every=2", "--profile-trace=2", "--test-freq=2", "--steps=4"]
    onnx = ["--save-onnx"] if importlib.util.find_spec("onnx") else []
    assert train(tmp_path / "run", *asked, *onnx) == 0
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written <= {*RUN_FILES, STORE_FOLDER, LOCK_FILE}
    optional = {"model.onnx", "model.onnx.data", CUT_METRICS_FILE}
    assert {*RUN_FILES, STORE_FOLDER} - written <= optional
