"""Names of what a run leaves in its directory, ``--run-dir``."""

CUT_METRICS_FILE = "metrics.before_resume.jsonl"
"""Lines of metrics beyond a checkpoint, of steps that a resumed run trains again."""

RUN_FILES = (
    "config.toml",
    "metrics.jsonl",
    CUT_METRICS_FILE,
    "report.json",
    "report.md",
    "report.html",
    "final.safetensors",
    "predictions.npy",
    "model.onnx",
    "model.onnx.data",
    "trace.json",
)
"""All that a run writes under names of its own."""

STORE_FOLDER = "store"
"""Folder of the rows on disk, unless ``--store-path`` says where."""

OTHER_RUN_DIR = "choose another --run-dir"

LOCK_FILE = "run.lock"
