"""Predictions beside what the cache then does: python benchmarks/prediction.py [SAMPLE] [POLICY]

Predicts hits and rows moved from the ids of the first SAMPLE batches (200), then plans all of them, on the default
stream (an epoch and three) and the flights, without training, for some policies, or for POLICY alone. Writes
profiles/predictions_<date>.md, or profiles/predictions-POLICY_<date>.md.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from measuring import made_by, write_profile

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.data.open import open_dataset
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan.__main__ import parse_plan
from cachedlrm.plan.prediction import predict
from cachedlrm.plan.simulation import planned_batches
from cachedlrm.plan.tiers import size_tiers

STREAMS = {
    "zipf, 1,000 batches": (["--data=zipf"], (0.005, 0.01, 0.02, 0.05)),
    "zipf, 3 epochs": (["--data=zipf", "--nepochs=3"], (0.005, 0.01, 0.02, 0.05)),
    "flights, 272 batches": (["--data=flights"], (0.02, 0.05, 0.1)),
}
POLICIES = ("lru", "lfu", "lrfu", "lookahead")


def rows(sample: int, policies: Sequence[str]) -> Iterator[str]:
    """The lines of the table, one by one."""
    yield "| ids | policy | cache | hits, predicted | measured | points apart | rows in, predicted of measured |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for name, (arguments, ratios) in STREAMS.items():
        dataset = None
        for policy, ratio in itertools.product(policies, ratios):
            given, _ = parse_plan([*arguments, f"--policy={policy}", f"--gpu-cache-ratio={ratio}"])
            dataset = dataset or open_dataset(given.data.data, None, data_request(given))
            options = resolve(given, dataset)
            assert options.optimisation.optimizer is not None
            architecture = build_architecture(options.model, options.optimisation)
            tiers = size_tiers(options, architecture, dataset, torch.device("cpu"))
            expected = predict(options, dataset, tiers, sample).chosen
            batches = planned_batches(options, dataset, [tiers.device.groups])
            counters = sum((one for (one,) in batches), CacheCounters())
            moved = (expected.first_touch_rows + expected.fetched_rows) / counters.moved_rows
            apart = 100 * (expected.hit_ratio - counters.hit_ratio)
            yield (
                f"| {name} | {policy} | {ratio:.1%} | {expected.hit_ratio:.2%} | {counters.hit_ratio:.2%} | "
                f"{apart:+.2f} | {moved:.3f} |"
            )


def main(sample: int, policy: str | None) -> None:
    """Prints the table, row by row, and writes it."""
    made, lines = made_by(__file__), []
    for line in rows(sample, POLICIES if policy is None else [policy]):
        print(line, flush=True)
        lines.append(line)
    write_profile(
        "predictions" if policy is None else f"predictions-{policy}",
        "# Predictions and what the cache then did",
        f"{made}. Hits and rows brought in, created or fetched: predicted from the ids of the first {sample} batches, "
        "then counted.",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2] if len(sys.argv) > 2 else None)
