"""What a step costs the host, the link and the device's memory: python benchmarks/simulated_device.py [DEVICE WORKLOAD]

Every shipped device profile with every shipped workload, Criteo 1TB at its full size included, takes a few steps and
an evaluation on a simulated CUDA device that computes nothing: tensors have shapes and take memory as torch's caching
allocator takes it, so launches, copies, waits and peaks are those of a real run. Writes
profiles/simulated-device_<date>.md.
"""

import itertools
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from measuring import ROOT, made_by, write_profile

sys.path.insert(0, str(ROOT / "tests"))

from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.data.open import open_dataset
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.run.evaluation import predict
from cachedlrm.run.job import build_job
from simcuda import simulated_cuda
from simcuda.machine import Machine

COUNTED = 6
"""Steps whose launches, bytes and waits are counted, at the end of a run."""

DEVICES = ["rtx3050-4gb", "rtx3050-6gb", "rtx3050-8gb", "rtx3060-12gb"]
WORKLOADS = ["criteo-kaggle", "avazu", "flights", "criteo-1tb", "dlrm-dcnv2"]
STEPS = {
    "adagrad": ["--gpu-cache-ratio=0.01"],
    "sgd": ["--gpu-cache-ratio=0.01", "--optimizer=sgd"],
    "rwsadagrad": ["--gpu-cache-ratio=0.01", "--optimizer=rwsadagrad"],
    "adam": ["--gpu-cache-ratio=0.01", "--optimizer=adam"],
    "adagrad, CUDA graphs": ["--gpu-cache-ratio=0.01", "--cuda-graphs"],
    "adagrad, all rows resident": ["--gpu-cache-ratio=1.0"],
    "adagrad, mini-batches of 16,384": ["--gpu-cache-ratio=0.01", "--mini-batch-size=16384", "--lookahead=4"],
}
MEMORY_HEADER = (
    "| device | workload | account, MB | allocated at most | reserved at most | reserved / account | "
    "pinned: account, MB | taken |"
)
STEP_HEADER = "| | launches of training | of copies | MB to the device | MB to the host | waits in training |"


@dataclass(frozen=True)
class Cost:
    """Of a run.

    Attributes:
        account: bytes of device memory that the plan says; all of a budget that has no room for another row.
        allocated: the most that tensors took.
        reserved: the most that the allocator took from the driver.
        pinned_account: bytes of pinned host memory that the plan says.
        pinned: what was taken, as torch rounds it up.
        training: operators and copies that the training thread issues in a step.
        copies: those of the copy stream.
        to_device: bytes a step.
        to_host: bytes a step.
        waits: how often the training thread waited for the device in the counted steps.
    """

    account: int
    allocated: int
    reserved: int
    pinned_account: int
    pinned: int
    training: float
    copies: float
    to_device: float
    to_host: float
    waits: int


def cost(arguments: Sequence[str], steps: int = 12) -> Cost:
    """Trains some steps, and takes an evaluation step if there are samples for it.

    Args:
        arguments: of ``cachedlrm.train``.
        steps: how many; the last are counted.
    """
    with simulated_cuda("late", total_bytes=1 << 36, computes=False) as machine:
        options = parse_command_line([*arguments, "--device=cuda", f"--steps={steps + 4}", "--ui=off"])
        dataset = open_dataset(options.data.data, options.data.test_data, data_request(options))
        resolved = resolve(options, dataset)
        with closing(build_job(resolved, dataset, Path())) as job:
            test_size = resolved.batches.test_mini_batch_size
            cache, depth = job.trainer.cache, resolved.cache.prefetch_depth
            batches = cache.prepare(job.schedule.batches(0), 0)
            with closing(Prefetcher(batches, depth, cache.trained, lambda index: index == steps - 1)) as prepared:
                taken = islice(prepared, steps)
                for batch in islice(taken, steps - COUNTED):
                    job.trainer.step(batch)
                before = Counts(machine)
                for batch in taken:
                    job.trainer.step(batch)
                after = Counts(machine)
                if dataset.test is not None:
                    next(predict(job.trainer.model, cache.reader(), dataset.test, test_size, cache.device))
        allocator, account, budget = machine.allocators[0], job.tiers.device.total_bytes, resolved.cache.gpu_budget
        if budget is not None and budget - account < max(group.layout.record_bytes for group in cache.groups):
            account = budget
        return Cost(
            account,
            allocator.peak_allocated,
            allocator.peak_reserved,
            job.tiers.host.pinned,
            machine.most_pinned_bytes,
            (after.training - before.training) / COUNTED,
            (after.copies - before.copies) / COUNTED,
            (after.to_device - before.to_device) / COUNTED,
            (after.to_host - before.to_host) / COUNTED,
            after.waits - before.waits,
        )


class Counts:
    """What a machine has counted so far."""

    def __init__(self, machine: Machine) -> None:
        self.training = sum(times for (stream, _), times in machine.launches.items() if stream == 0)
        self.copies = sum(times for (stream, _), times in machine.launches.items() if stream != 0)
        self.to_device, self.to_host = machine.copied_bytes["to device"], machine.copied_bytes["to host"]
        name = threading.current_thread().name
        self.waits = sum(times for (thread, _), times in machine.waits.items() if thread == name)


def main() -> None:
    """Measures and writes the tables."""
    memory, step = [], []
    for device, workload in [tuple(sys.argv[1:])] if len(sys.argv) > 1 else itertools.product(DEVICES, WORKLOADS):
        one = cost([f"--profile={device}", f"--profile={workload}"])
        assert one.reserved <= one.account, f"{device}, {workload}"
        assert one.pinned <= one.pinned_account, f"{device}, {workload}"
        numbers = [one.account, one.allocated, one.reserved, one.reserved / one.account, one.pinned_account, one.pinned]
        cells = [f"{number:.3f}" if isinstance(number, float) else f"{number / 1e6:,.1f}" for number in numbers]
        memory.append(f"| {device} | {workload} | {' | '.join(cells)} |")
        print(memory[-1], flush=True)
    for name, options in STEPS.items():
        one = cost(options, steps=200)
        step.append(
            f"| {name} | {one.training:.1f} | {one.copies:.1f} | {one.to_device / 1e6:.2f} | {one.to_host / 1e6:.2f} | "
            f"{one.waits} |"
        )
        print(step[-1], flush=True)
    write_profile(
        "simulated-device",
        "# Steps on a simulated CUDA device",
        f"{made_by(__file__)}. Nothing is computed and no time is measured. Memory: 12 steps and an evaluation step of "
        "every shipped workload, at full size, with the budget of every shipped device. `reserved` are the segments of "
        "torch's caching allocator, cuBLAS's workspaces included.",
        table(MEMORY_HEADER, 2, memory),
        f"The default job (Criteo-Kaggle's shape, mini-batches of 2,048) with 1 % of the rows on the device: means of "
        f"steps {200 - COUNTED + 1} to 200. A launch is an operator, a copy or a graph.",
        table(STEP_HEADER, 1, step),
    )


def table(header: str, num_texts: int, lines: Sequence[str]) -> str:
    """In Markdown; the first columns are texts, the others numbers."""
    return "\n".join([header, f"|{'---|' * num_texts}{'---:|' * (header.count('|') - 1 - num_texts)}", *lines])


if __name__ == "__main__":
    main()
