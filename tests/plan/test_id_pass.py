"""What a run reports of Belady's MIN, and policy ``oracle`` from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import Lookahead, Static
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.data.open import open_dataset
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.schedule import Schedule
from cachedlrm.plan import id_pass as foresight
from cachedlrm.plan.__main__ import parse_plan
from cachedlrm.plan.id_pass import NEXT_USES_FOLDER
from cachedlrm.train import main
from support.models import plans
from support.runs import SMALL, one_line, train

ROWS = ["--gpu-cache-rows=300", "--test-freq=-1"]


def report(directory: Path) -> dict:
    return json.loads((directory / "report.json").read_text())


def moved(run: dict) -> int:
    return run["first_touch_rows"] + run["fetched_rows"]


TRICKS = [
    [],
    ["--md-flag", "--md-threshold=10", "--arch-sparse-feature-size=8"],
    ["--qr-flag", "--qr-threshold=100", "--data=zipf:samples=2000,hot=3"],
    ["--mlperf-grad-accum-iter=3", "--nepochs=2", "--num-batches=7"],
]


@pytest.mark.parametrize("prefetch_depth", [0, 3])
@pytest.mark.parametrize("trick", TRICKS, ids=" ".join)
def test_the_oracle_moves_as_many_rows_as_min(tmp_path, trick, prefetch_depth):
    options = [*ROWS, *trick, f"--prefetch-depth={prefetch_depth}"]
    assert train(tmp_path / "oracle", *options, "--policy=oracle") == 0
    assert train(tmp_path / "lru", *options, "--policy=lru", "--report-min", "--print-freq=1") == 0
    oracle, lru = report(tmp_path / "oracle"), report(tmp_path / "lru")
    assert oracle["evicted_rows"] > 0
    assert moved(oracle) == oracle["moved_rows_min"] == lru["moved_rows_min"]
    assert moved(lru) > lru["moved_rows_min"]
    assert oracle["loss_mean"] == lru["loss_mean"]
    assert not (tmp_path / "oracle" / NEXT_USES_FOLDER).exists()


@pytest.mark.parametrize("trick", TRICKS, ids=" ".join)
def test_lookahead_that_counts_first_moves_fewer_rows(tmp_path, trick):
    options = [*ROWS, *trick, "--policy=lookahead", "--lookahead=2", "--report-min"]
    assert train(tmp_path / "counts", *options) == 0
    assert train(tmp_path / "not", *options, "--count-rows=False") == 0
    counts, without = report(tmp_path / "counts"), report(tmp_path / "not")
    assert counts["moved_rows_min"] <= moved(counts) <= moved(without)
    assert (moved(counts) < moved(without)) == (counts["steps"] > 14)  # fewer leave nothing to choose
    assert counts["evicted_rows"] > 0
    assert counts["loss_mean"] == without["loss_mean"]


@pytest.mark.parametrize("order", [[], ["--shuffle"]], ids=["", "shuffled"])
@pytest.mark.parametrize("policy", ["lookahead", "static"])
def test_counts_are_lookups_of_the_whole_run(policy, order):
    # Bags of three ids, two epochs of five batches: equal ids of a batch count as often as they are there.
    arguments = ["--data=zipf:samples=50,hot=3", "--arch-embedding-size=6-4", "--mini-batch-size=10", "--nepochs=2"]
    options, _ = parse_plan([*arguments, *order, f"--policy={policy}"])
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    schedule = Schedule(options, dataset.train)
    router = build_architecture(options.model, options.optimisation).router()
    counts = np.zeros(10, np.int64)
    for batch in schedule.batches():
        (lookups,) = router(batch)
        counts += np.bincount(lookups.rows, minlength=10)
    given = []

    class Counting(Lookahead if policy == "lookahead" else Static):
        def take_counts(self, row_counts, epochs=1, passed=None):
            given.append((row_counts.tolist(), epochs))

    one_epoch = counts // 2
    known = one_epoch if policy == "static" else None  # as prepared data has them
    caches = [[Counting(4, 10, 1) if policy == "lookahead" else Counting(4, 10)]]
    foresight.inform_policies(caches, [10], router, schedule, options, run_dir=Path("unused"), row_counts=known)
    # How often a row is used, against others, is the same in every epoch; how often it is still to be used is not.
    assert given == [((counts if policy == "lookahead" else one_epoch).tolist(), 1)]
    assert counts.max() > 20  # more than there are samples in two batches


@pytest.mark.parametrize("order", [[], ["--shuffle"]], ids=["", "shuffled"])
@pytest.mark.parametrize("known", [False, True], ids=["counted", "of the data"])
@pytest.mark.parametrize(("first_batch", "steps"), [(0, 13), (3, 13), (5, 13), (8, 10), (10, 10), (0, 0)])
def test_a_run_that_goes_on_ranks_by_the_lookups_behind_it(known, first_batch, steps, order):
    # Epochs of five batches; the run ends within one.
    arguments = ["--data=zipf:samples=50,hot=3", "--arch-embedding-size=6-4", "--mini-batch-size=10"]
    options, _ = parse_plan([*arguments, *order, f"--steps={steps}", "--policy=lookahead"])
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    schedule = Schedule(options, dataset.train)
    router = build_architecture(options.model, options.optimisation).router()

    def lookups(batches) -> np.ndarray:
        return sum((np.bincount(batch.rows, minlength=10) for batch in batches), np.zeros(10, np.int64))

    counts = lookups(schedule.one_epoch()) if known else None
    policy = Lookahead(4, 10, 1)
    foresight.inform_policies(
        [[policy]],
        [10],
        router,
        schedule,
        options,
        run_dir=Path("unused"),
        row_counts=counts,
        first_batch=first_batch,
    )
    to_come = lookups(schedule.batches(first_batch))
    if known:  # counts of the data are of whole epochs
        to_come = (-(-steps // 5) or 1) * counts - lookups(map(schedule.read, range(first_batch)))
    assert policy._left.tolist() == to_come.tolist()


def test_a_resumed_run_moves_the_rows_that_it_would_with_the_rest_as_its_stream(tmp_path):
    """What a row was used for before does not make it worth keeping."""
    options = [*ROWS, "--policy=lookahead", "--lookahead=1", "--prefetch-depth=0"]
    assert train(tmp_path / "run", *options, "--checkpoint-every=100", "--num-batches=20", "--steps=10") == 0
    before = report(tmp_path / "run")
    assert main(["--resume", str(tmp_path / "run"), "--steps=20", "--ui=off"]) == 0
    after = report(tmp_path / "run")
    # Counted by hand: a policy that knows the ten batches left, and nothing of those before.
    parsed, _ = parse_plan([*SMALL, *options, "--num-batches=20"])
    dataset = open_dataset(parsed.data.data, None, data_request(parsed))
    parsed = resolve(parsed, dataset)
    schedule = Schedule(parsed, dataset.train)
    policy = Lookahead(after["cache_slots"] + after["temporary_slots"], after["table_rows"], 1)
    rest = [schedule.read(index) for index in range(10, 20)]
    policy.take_counts(sum(np.bincount(batch.rows, minlength=after["table_rows"]) for batch in rest))
    book = AddressBook(after["table_rows"])
    planner = Planner(after["cache_slots"], len(policy.keys), policy, 0)
    stream = [book.working_set(index, batch.rows, batch.offsets) for index, batch in enumerate(rest)]
    hits = sum(plan.counters.hit_lookups for _, plan in plans(planner, stream))
    hit = [round(run["hit_ratio"] * run["lookups"]) for run in (before, after)]
    assert hit[1] - hit[0] == hits
    assert after["evicted_rows"] > before["evicted_rows"] > 0


def test_counts_of_ids_are_not_taken_for_those_of_quotients():
    arguments = ["--data=zipf:samples=50", "--arch-embedding-size=600", "--policy=lookahead", "--qr-flag"]
    options, _ = parse_plan(arguments)
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    architecture, given = build_architecture(options.model, options.optimisation), []
    num_rows = sum(table.num_rows for table in architecture.groups[0])
    assert num_rows == 150 + 4

    class Counting(Lookahead):
        def take_counts(self, row_counts, epochs=1, passed=None):
            given.append((len(row_counts), row_counts.sum()))

    schedule = Schedule(options, dataset.train)
    caches = [[Counting(4, num_rows, 1)]]
    ids = np.ones(600, np.int64)
    foresight.inform_policies(
        caches, [num_rows], architecture.router(), schedule, options, run_dir=Path("unused"), row_counts=ids
    )
    assert given == [(num_rows, 2 * 50)]


def test_min_is_reported_where_it_was_asked_for(tmp_path, capsys):
    assert train(tmp_path / "asked", *ROWS, "--report-min", "--ui=plain") == 0
    run = report(tmp_path / "asked")
    ratio = f"{moved(run) / run['moved_rows_min']:.3f}"
    assert f"{ratio} of the rows that MIN moves" in capsys.readouterr().out
    text = (tmp_path / "asked" / "report.md").read_text()
    assert f"| rows brought in, of the fewest possible (Belady's MIN) | {ratio} |" in text
    assert f"| the fewest possible (Belady's MIN) | {run['moved_rows_min']:,} |" in text
    assert train(tmp_path / "plain", *ROWS, "--ui=plain") == 0
    assert report(tmp_path / "plain")["moved_rows_min"] is None
    assert "MIN" not in capsys.readouterr().out + (tmp_path / "plain" / "report.md").read_text()


def test_an_interrupted_pass_leaves_nothing(tmp_path, capsys, monkeypatch):
    add, taken = foresight.NextUseWriter.add, []

    def interrupted(self: foresight.NextUseWriter, batch: int, rows: np.ndarray) -> None:
        if len(taken) == 14:
            raise KeyboardInterrupt
        taken.append(batch)
        add(self, batch, rows)

    with monkeypatch.context() as patch:
        patch.setattr(foresight.NextUseWriter, "add", interrupted)
        assert train(tmp_path / "run", *ROWS, "--policy=oracle") == 130
    assert taken == list(range(19, 5, -1))
    assert capsys.readouterr().err == "interrupted before the first step; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_no_next_uses(tmp_path, monkeypatch):
    def interrupted(self: object, batch: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cachedlrm.run.trainer.Trainer.step", interrupted)
    assert train(tmp_path / "run", *ROWS, "--policy=oracle") == 130
    assert list(tmp_path.iterdir()) == []


def test_wrong_ids_found_ahead_leave_nothing_behind(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    ids = np.zeros((300, 2), np.int32)
    ids[150, 1] = 9
    np.save(folder / "a_dense.npy", np.zeros((300, 1), np.float32))
    np.save(folder / "a_sparse.npy", ids)
    np.save(folder / "a_labels.npy", np.zeros((300, 1), np.int32))
    status = train(
        tmp_path / "run", f"--data=npy:{folder}", "--arch-embedding-size=5-5", "--arch-mlp-bot=1-8", "--policy=oracle"
    )
    assert "id 9 is outside 0..4" in one_line(capsys, status)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_ahead_of_training(tmp_path, capsys, monkeypatch):
    def full(self: object, batch: object, rows: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(foresight.NextUseWriter, "add", full)
    message = one_line(capsys, train(tmp_path / "run", *ROWS, "--policy=oracle"))
    assert "No space left on device" in message
    assert "choose another --run-dir, or another --policy" in message
    assert not (tmp_path / "run").exists()


def test_a_run_of_no_steps_has_nothing_to_read_ahead(tmp_path):
    assert train(tmp_path / "run", *ROWS, "--policy=oracle", "--steps=0") == 0
    assert report(tmp_path / "run")["moved_rows_min"] == 0


def test_a_resumed_run_knows_the_rest_of_the_stream(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = [*ROWS, "--policy=oracle", "--print-freq=1"]
    assert train(whole, *options) == 0
    assert train(part, *options, "--checkpoint-every=100", "--num-batches=20", "--steps=9") == 0
    assert main(["--resume", str(part), "--steps=20", "--ui=off"]) == 0
    resumed = report(part)
    assert resumed["losses"] == report(whole)["losses"]
    assert (
        moved(resumed) == resumed["moved_rows_min"] > report(whole)["moved_rows_min"]
    )  # both caches begin empty, twice
