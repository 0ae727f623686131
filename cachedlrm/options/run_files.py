"""Names of what a run leaves in its directory, ``--run-dir``."""

RUN_FILES = (
    "config.toml",
    "metrics.jsonl",
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
