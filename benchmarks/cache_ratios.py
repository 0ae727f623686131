"""The default job at several cache ratios, in turn: python benchmarks/cache_ratios.py [ROUNDS] [STEPS]

Each round runs every ratio once, so that a machine whose speed drifts treats them alike. Prints medians and ratios to
all rows resident, checks that every loss is the same, and writes profiles/criteo-kaggle_<device>_<date>.md.
"""

import statistics
import sys

from measuring import made_by, train, write_profile

RATIOS = ("1.0", "0.05", "0.01")


def main() -> None:
    """Runs, prints and writes the table."""
    rounds, steps = (sys.argv[1:] + ["5", "300"][len(sys.argv) - 1 :])[:2]
    made = made_by(__file__)
    reports: dict[str, list[dict]] = {ratio: [] for ratio in RATIOS}
    for number in range(int(rounds)):
        for ratio in RATIOS:
            options = [f"--gpu-cache-ratio={ratio}", f"--steps={steps}", "--test-freq=-1", "--print-freq=1"]
            reports[ratio].append(train(*options)[0])
            print(f"round {number + 1}: {ratio} {reports[ratio][-1]['samples_per_s']:,.0f} samples/s", flush=True)
    losses = [report["losses"] for ratio in RATIOS for report in reports[ratio]]
    assert all(loss == losses[0] for loss in losses), "a cached run lost a bit"
    environment = reports["1.0"][0]["environment"]
    resident = [report["samples_per_s"] for report in reports["1.0"]]
    lines = [
        "| cache ratio | samples/s | of resident | wait ms | hit ratio | fetched | created | evicted |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for ratio in RATIOS:
        rates = [report["samples_per_s"] for report in reports[ratio]]
        share = statistics.median(rate / base for rate, base in zip(rates, resident, strict=True))
        wait = statistics.median(report["phase_ms"]["wait"] for report in reports[ratio])
        last = reports[ratio][-1]
        lines.append(
            f"| {ratio} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) | {share:.3f} "
            f"| {wait:.2f} | {last['hit_ratio']:.2%} | {last['fetched_rows']:,} | {last['first_touch_rows']:,} "
            f"| {last['evicted_rows']:,} |"
        )
    write_profile(
        f"criteo-kaggle_{environment['device']}",
        "# Cached and resident, the default job",
        f"{made}, {environment['threads']} threads. {rounds} rounds of {steps} steps; medians (range). The losses of "
        "all steps of all runs were equal, bit for bit.",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
