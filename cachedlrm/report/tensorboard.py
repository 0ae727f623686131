"""``--tensorboard``: the lines of ``metrics.jsonl`` as scalars, in the folder ``tensorboard`` of the run directory."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cachedlrm.base.files import cannot_write
from cachedlrm.options.run_files import OTHER_RUN_DIR
from cachedlrm.report.metrics import MetricsRow
from cachedlrm.report.scores import SCORES

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCALARS_FOLDER = "tensorboard"

_GROUPS = {
    "learning": ("loss", "learning_rate", "dense_learning_rate", *SCORES),
    "progress": ("epoch", "samples", "elapsed_s", "samples_per_s"),
    "memory": ("device_bytes", "host_bytes", "mapped_bytes", "disk_bytes", "resident_slots"),
}
"""Keys of a line by the group that TensorBoard shows them in; others are phases (``*_ms``) or the cache's."""


def tag(key: str) -> str:
    """The name in TensorBoard of a key of a line of metrics, as in ``cache/hit_ratio``."""
    for group, keys in _GROUPS.items():
        if key in keys:
            return f"{group}/{key}"
    return f"{'phases' if key.endswith('_ms') else 'cache'}/{key}"


class Scalars:
    """Takes a run's lines of metrics. Nothing is written before the first one.

    Args:
        run_dir: the run's directory.
        rows: lines of earlier processes of the run that still hold; empty for a new run.
        steps: trained by those processes.
    """

    def __init__(self, run_dir: Path, rows: Sequence[MetricsRow] = (), steps: int = 0) -> None:
        self._folder = run_dir / SCALARS_FOLDER
        self._before = tuple(rows)
        self._steps = steps
        self._writer: SummaryWriter | None = None
        self._show_failure = threading.excepthook

    def add(self, row: MetricsRow) -> None:
        """Appends a line; its numbers are in the file when this returns.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if self._writer is None:
                self._open()
            self._write([row], time.time())
        except OSError as error:
            raise cannot_write(self._folder, error, OTHER_RUN_DIR) from error

    def _open(self) -> None:
        """Opens a file of this process's own, which takes back the steps that earlier files have beyond the run's."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - needs an optional package

        threading.excepthook = self._on_failure
        earlier = set(self._folder.glob("*tfevents*"))
        try:
            self._writer = SummaryWriter(str(self._folder), purge_step=self._steps + 1 if earlier else None)
            if not earlier and self._before:  # the option is new to the run
                self._write(self._before, time.time())
        except OSError:
            for path in set(self._folder.glob("*tfevents*")) - earlier:  # a later process would take it for whole
                path.unlink()
            raise

    def _write(self, rows: Sequence[MetricsRow], now: float) -> None:
        """Writes lines, the last of which is of now."""
        assert self._writer is not None
        for row in rows:
            wall_time = now - ((rows[-1].get("elapsed_s") or 0) - (row.get("elapsed_s") or 0))
            for key, value in row.items():
                if key != "step" and value is not None:
                    self._writer.add_scalar(tag(key), value, row["step"], wall_time)
        self._writer.flush()

    def _on_failure(self, failure: threading.ExceptHookArgs) -> None:
        """Shows nothing where the writer's thread failed: its error is raised again by `_write`."""
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            self._show_failure(failure)

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            with suppress(OSError):  # every line was flushed; a file that failed is said so
                self._writer.close()
        threading.excepthook = self._show_failure
