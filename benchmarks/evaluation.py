"""``python benchmarks/evaluation.py [STEPS]``: an evaluation beside a training forward pass over the same samples.

Both in processor time of one thread, in turns of ten steps. The forward pass is all that a step does until its loss is
known: reading, planning, moving rows, and the pass through the layers.
"""

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from cachedlrm.data.batch import Batch, SourceWrapper
from cachedlrm.data.open import open_dataset
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.run.job import build_job

TURN, BATCH = 10, 2048


class Turn(SourceWrapper):
    """The samples of some steps."""

    def __init__(self, source, first: int) -> None:
        super().__init__(source)
        self._first, self.num_samples = first, TURN * BATCH

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        return self._source.read(self._first + start, self._first + stop)


def main(num_steps: int) -> None:
    """Prints milliseconds a step of both, and their ratio."""
    options = parse_command_line(
        ["--gpu-cache-ratio=0.05", "--prefetch-depth=0", "--threads=1", f"--steps={num_steps}"]
    )
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, closing(build_job(options, dataset, Path(folder))) as job:
        trainer = job.trainer
        prepared = iter(trainer.cache.prepare(job.schedule.batches()))
        forward = evaluation = 0.0
        for turn in range(num_steps // TURN):
            for _ in range(TURN):
                started = time.process_time()
                batch = next(prepared)
                updates = trainer.cache.begin(batch)
                with torch.inference_mode():
                    trainer._dense_pass.forward(batch.tensors.dense, [update.pooled for update in updates])
                forward += time.process_time() - started
                trainer.step(batch)
            started = time.process_time()
            trainer.evaluate(Turn(dataset.train, turn * TURN * BATCH), BATCH)
            evaluation += time.process_time() - started
    steps = num_steps // TURN * TURN
    print(
        f"forward pass {forward / steps * 1e3:.2f} ms, evaluation {evaluation / steps * 1e3:.2f} ms a step of {BATCH}"
    )
    print(f"evaluation / forward pass: {evaluation / forward:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
