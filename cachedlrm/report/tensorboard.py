"""``--tensorboard``: the lines of ``metrics.jsonl`` as scalars, in the folder ``tensorboard`` of the run directory."""

import time
from collections.abc import Sequence
from pathlib import Path

from cachedlrm.base.files import cannot_write
from cachedlrm.options.run_files import OTHER_RUN_DIR
from cachedlrm.report.event_file import EventFile
from cachedlrm.report.metrics import MetricsRow

SCALARS_FOLDER = "tensorboard"

_GROUPS = {
    "learning": ("loss", "auc"),
    "progress": ("epoch", "samples", "elapsed_s", "samples_per_s"),
    "memory": ("device_bytes", "host_bytes", "mapped_bytes", "disk_bytes", "resident_slots"),
}
"""Keys of a line by the group TensorBoard shows them in; those that end in ``_ms`` are phases, others the cache's."""


def tag(key: str) -> str:
    """What a key of a line of metrics is called in TensorBoard, as in ``cache/hit_ratio``."""
    for group, keys in _GROUPS.items():
        if key in keys:
            return f"{group}/{key}"
    return f"{'phases' if key.endswith('_ms') else 'cache'}/{key}"


class Scalars:
    """Takes a run's lines of metrics. Nothing is written before the first one.

    Args:
        run_dir: the run's directory.
        rows: lines that an earlier process wrote and that hold; empty for a new run.
        steps: that were trained before.
    """

    def __init__(self, run_dir: Path, rows: Sequence[MetricsRow] = (), steps: int = 0) -> None:
        self._folder = run_dir / SCALARS_FOLDER
        self._before = tuple(rows)
        self._steps = steps
        self._file: EventFile | None = None

    def add(self, row: MetricsRow) -> None:
        """Appends a line; its numbers are in the file when this returns.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if self._file is None:
                self._begin()
            self._write(row, time.time())
        except OSError as error:
            raise cannot_write(self._folder, error, OTHER_RUN_DIR) from error

    def _begin(self) -> None:
        """A file of this process's own; TensorBoard takes those of the run in the order of their names."""
        self._folder.mkdir(exist_ok=True)
        is_first = not any(self._folder.glob("*tfevents*"))
        path = self._folder / f"events.out.tfevents.{self._steps:012d}.{time.time_ns()}"
        try:
            self._file = EventFile(path)
            if not is_first:
                self._file.add_restart(self._steps + 1)
                return
            for row in self._before:  # the option is new to the run
                past = (self._before[-1].get("elapsed_s") or 0) - (row.get("elapsed_s") or 0)
                self._write(row, time.time() - past)
        except OSError:
            path.unlink(missing_ok=True)  # or a later process would take the lines before for written
            raise

    def _write(self, row: MetricsRow, wall_time: float) -> None:
        scalars = {tag(key): value for key, value in row.items() if key != "step" and value is not None}
        step = row["step"]
        assert isinstance(step, int)
        assert self._file is not None
        self._file.add_scalars(step, wall_time, scalars)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
