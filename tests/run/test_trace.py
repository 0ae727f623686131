"""``--profile-trace``: the file, the ranges in it and their threads, and runs that trace as runs that do not."""

import itertools
import json
import resource
import signal
from collections import Counter
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cachedlrm import train as train_module
from cachedlrm.cache.counters import PHASES, PREPARING_PHASES
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.run import trace as step_trace
from cachedlrm.train import main
from support.runs import one_line, train

OPTIONS = ["--gpu-cache-rows=300", "--print-freq=1", "--optimizer=adam", "--test-freq=6"]  # 20 steps
TRAINING_PHASES = [phase for phase in PHASES if phase not in PREPARING_PHASES]
SLACK_US = 50.0  # between two clocks


def read(run: Path) -> dict[str, list[tuple[str, float, float]]]:
    """Ranges of each thread, by its name: what, from when, until when, in microseconds, in order."""
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    ranges: dict[str, list[tuple[str, float, float]]] = {}
    for event in sorted((e for e in events if e.get("cat") == "user_annotation"), key=lambda e: e["ts"]):
        ranges.setdefault(names[event["tid"]], []).append((event["name"], event["ts"], event["ts"] + event["dur"]))
    return ranges


def steps(ranges: dict[str, list[tuple[str, float, float]]]) -> list[str]:
    return [name for name, _, _ in ranges["training"] if name.startswith("step ")]


def named(first: int, last: int) -> list[str]:
    return [f"step {number}" for number in range(first, last + 1)]


def result(run: Path) -> tuple[list[float], dict[str, bytes]]:
    tensors = load_file(run / "final.safetensors")
    return json.loads((run / "report.json").read_text())["losses"], {k: v.tobytes() for k, v in tensors.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By prefetch depth, and one that traces nothing."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder / "0", *OPTIONS, "--profile-trace=8", "--prefetch-depth=0") == 0
    assert train(folder / "untraced", *OPTIONS) == 0
    spans = []

    def prepared(self, *arguments):
        batch = prepare(self, *arguments)
        spans.extend(batch.spans)
        return batch

    prepare = EmbeddingCache._prepare_next
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddingCache, "_prepare_next", prepared)
        assert train(folder / "2", *OPTIONS, "--profile-trace=8", "--prefetch-depth=2") == 0
    (folder / "2" / "spans").write_text(json.dumps(spans))
    return folder


@pytest.mark.parametrize("depth", [0, 2])
def test_traced_runs_have_the_same_bits(runs, depth):
    assert result(runs / str(depth)) == result(runs / "untraced")
    assert not (runs / "untraced" / "trace.json").exists()


def test_every_phase_of_a_step_is_a_range_of_the_thread_that_does_it(runs):
    ranges = read(runs / "2")
    assert ranges.keys() == {"training", "prefetch"}
    assert steps(ranges) == named(2, 9)
    training, prefetch = (Counter(name for name, _, _ in ranges[thread]) for thread in ("training", "prefetch"))
    assert {phase: training[phase] for phase in TRAINING_PHASES} == {
        phase: 16 if phase == "wait" else 8 for phase in TRAINING_PHASES  # for the batch, and for its rows
    }  # fmt: skip
    assert training["evaluate"] == 1, "after step 6"
    assert prefetch.keys() == {"read", *PREPARING_PHASES}
    assert all(prefetch[name] >= 5 for name in prefetch), "it runs up to two batches and a pause ahead"


def test_all_that_the_prefetch_thread_did_meanwhile_is_there(runs):
    ranges = read(runs / "2")
    traced = [(name, end - start) for name, start, end in ranges["prefetch"]]
    spans = json.loads((runs / "2" / "spans").read_text())
    first = next(i for i, (name, start, end) in enumerate(spans) if same(traced[0], name, start, end))
    last = first + len(traced)
    assert all(same(one, *span) for one, span in zip(traced, spans[first:last], strict=True))
    shift = ranges["prefetch"][0][1] - spans[first][1] * 1e6
    assert spans[first - 1][2] * 1e6 + shift < ranges["training"][0][1] + SLACK_US
    assert spans[last][1] * 1e6 + shift > max(end for _, _, end in ranges["training"]) - SLACK_US


def same(traced: tuple[str, float], name: str, start: float, end: float) -> bool:
    return traced[0] == name and abs(traced[1] - (end - start) * 1e6) < 0.01


def test_without_a_prefetch_thread_a_step_does_one_thing_after_the_other(runs):
    ranges = read(runs / "0")
    assert ranges.keys() == {"training"}
    bounds = [(start, end) for name, start, end in ranges["training"] if name.startswith("step ")]
    for begin, finish in bounds:
        within = [(name, s, e) for name, s, e in ranges["training"] if s > begin - SLACK_US and e < finish + SLACK_US]
        work = [(name, s, e) for name, s, e in within if name != "evaluate" and not name.startswith("step ")]
        announced = ["read", "plan"]
        assert [name for name, _, _ in work] == [*announced, *PREPARING_PHASES, *TRAINING_PHASES]
        assert all(end < start + SLACK_US for (_, _, end), (_, start, _) in itertools.pairwise(work))


def test_operators_are_in_the_trace_with_the_ranges(runs):
    events = json.loads((runs / "2" / "trace.json").read_text())["traceEvents"]
    assert any(event.get("cat") == "cpu_op" and event["name"] == "aten::index_select" for event in events)


@pytest.mark.parametrize(
    ("num_steps", "wanted", "depth"), [(1, (1, 1), 2), (3, (1, 3), 0), (3, (1, 3), 2), (4, (2, 4), 0)]
)
def test_a_run_of_fewer_steps_traces_those_it_has(tmp_path, num_steps, wanted, depth):
    options = ["--profile-trace=3", f"--steps={num_steps}", f"--prefetch-depth={depth}"]
    assert train(tmp_path / "run", *OPTIONS, *options) == 0
    assert steps(read(tmp_path / "run")) == named(*wanted)


def test_no_step_leaves_no_trace(tmp_path):
    assert train(tmp_path / "run", "--profile-trace=3", "--steps=0") == 0
    assert not (tmp_path / "run" / "trace.json").exists()


def test_added_up_gradients_have_a_range_of_their_own_for_every_mini_batch(tmp_path):
    assert train(tmp_path / "run", "--profile-trace=6", "--mlperf-grad-accum-iter=4", "--steps=16") == 0
    ranges = read(tmp_path / "run")
    assert steps(ranges) == ["step 5", "step 9"], "of four steps each"
    names = Counter(name for name, _, _ in ranges["training"])
    assert (names["forward"], names["backward"], names["row_step"]) == (8, 8, 2)


@pytest.mark.parametrize("checkpoints", [[], ["--checkpoint-every=1000"]], ids=["without", "with"])
def test_an_interrupted_run_leaves_the_steps_it_traced(tmp_path, monkeypatch, capsys, runs, checkpoints):
    step_of = train_module.Progress.trained

    def trained(self, batch, losses):
        step_of(self, batch, losses)
        if self.steps == 5:
            signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Progress, "trained", trained)
        options = ["--profile-trace=18", "--prefetch-depth=0", "--ui=plain", *checkpoints]
        assert train(run, *OPTIONS, *options) == 130
    out, error = capsys.readouterr()
    assert "interrupted after step 5" in error
    assert f"trace of 4 steps: {run / 'trace.json'}" in out
    assert steps(read(run)) == named(2, 5)
    if checkpoints:  # and the rest of the run traces what is left of it
        assert main([f"--resume={run}", "--ui=off"]) == 0
        assert steps(read(run)) == named(6, 20)
        assert result(run) == result(runs / "untraced")


@pytest.mark.parametrize("moment", ["start", "stop", "write"])
def test_a_signal_waits_for_the_profiler(tmp_path, monkeypatch, moment):
    method = getattr(step_trace.Trace, moment)

    def interrupted(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return method(self, *arguments)

    monkeypatch.setattr(step_trace.Trace, moment, interrupted)
    run = tmp_path / "run"
    assert train(run, *OPTIONS, "--profile-trace=4") == 130
    assert (run / "trace.json").exists() == (moment != "start"), "no step was traced"
    if moment != "start":
        assert steps(read(run)) == named(2, 5)


@pytest.mark.parametrize("method", ["stop", "_mark", "write"])
def test_a_second_signal_does_not_wait_for_the_profiler_and_is_one_line(tmp_path, monkeypatch, capsys, method):
    whole = getattr(step_trace.Trace, method)

    def interrupted(self, *arguments):
        if self._began:  # the trace has
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return whole(self, *arguments)

    monkeypatch.setattr(step_trace.Trace, method, interrupted)
    assert train(tmp_path / "run", *OPTIONS, "--profile-trace=4") == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted after step ")
    assert error.count("\n") == 1


def test_phases_are_ranges_no_longer_than_the_trace_lasts(tmp_path, monkeypatch):
    entered = []
    monkeypatch.setattr(step_trace.PhaseRanges, "enter", lambda self, phase: entered.append(phase))
    assert train(tmp_path / "run", *OPTIONS, "--profile-trace=1") == 0
    assert entered == [*TRAINING_PHASES, None, None]


def test_without_the_option_there_is_no_trace(tmp_path, monkeypatch):
    monkeypatch.delattr(step_trace, "Trace")
    monkeypatch.delattr(step_trace, "record_function")
    assert train(tmp_path / "run", "--steps=3", "--test-freq=2") == 0


def test_the_end_of_a_run_says_where_the_trace_is(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "--ui=plain", "--profile-trace=2") == 0
    out = capsys.readouterr().out
    assert f"trace of 2 steps: {run / 'trace.json'}\n" in out
    assert f"trace: {run / 'trace.json'}, for https://ui.perfetto.dev\n" in out


def test_a_trace_that_cannot_be_written_ends_the_run(tmp_path, capsys):
    run, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        status = train(run, *OPTIONS, "--profile-trace=8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = one_line(capsys, status)
    assert f"cannot write {run / 'trace.json'}: the profiler's file is not complete, the disk may be full" in message
    assert {path.name for path in run.iterdir()} == {"config.toml", "metrics.jsonl", "run.lock"}
