"""What both commands do with signals, closed streams, odd locales and read-only homes."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cachedlrm import train as train_module
from cachedlrm.base.errors import UserError
from cachedlrm.base.program import SIGNALS, Interrupts, run_program
from cachedlrm.base.units import format_bytes
from cachedlrm.export.__main__ import main as export_main
from cachedlrm.run import trainer
from support.runs import SMALL, one_line, train

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
BEFORE = "interrupted before the first step; nothing was written\n"


def signals(number: int, *, at_call: int = 1, function=None):
    """A function during whose n-th call a signal comes."""
    calls = 0

    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == at_call:
            signal.raise_signal(number)
        return function(*arguments, **options) if function is not None else None

    return call


# --- signals


@BOTH
def test_a_signal_interrupts_where_it_comes_but_not_what_is_held(number):
    interrupts, reached = Interrupts(), []

    def held() -> None:
        with interrupts.held():
            signal.raise_signal(number)
            reached.append("first")
            signal.raise_signal(number)
            reached.append("second")

    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        held()
    assert reached == []  # one had come before
    interrupts = Interrupts()
    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        held()
    assert reached == ["first"]


@pytest.mark.parametrize("number", sorted(set(SIGNALS) - {signal.SIGINT, signal.SIGTERM}))
def test_every_polite_signal_is_one(number):
    """Those that come again by themselves do not interrupt what the first one waits for."""
    before = signal.signal(number, signal.SIG_DFL)  # a shell's background job ignores some
    interrupts, reached = Interrupts(), []

    def held() -> None:
        with interrupts.held():
            signal.raise_signal(number)
            if number != signal.SIGQUIT:
                signal.raise_signal(number)
            reached.append("end")

    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        held()
    assert reached == ["end"]
    assert signal.signal(number, before) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts().installed():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_what_is_held_interrupts_behind_it():
    interrupts, reached = Interrupts(), []

    def work() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            reached.append("inside")
        reached.append("behind")

    before = signal.getsignal(signal.SIGTERM)
    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["inside"]
    assert signal.getsignal(signal.SIGTERM) is before


@BOTH
@pytest.mark.parametrize("place", ["open_dataset", "build_job", "to_toml", "_say_first"])
def test_a_signal_before_the_first_step_leaves_nothing(tmp_path, monkeypatch, capsys, number, place):
    monkeypatch.setattr(train_module, place, signals(number, function=getattr(train_module, place)))
    assert train(tmp_path / "a" / "run") == 130
    assert capsys.readouterr().err == BEFORE
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_a_signal_while_the_static_policy_counts_leaves_nothing(tmp_path, monkeypatch, capsys, number):
    one_epoch = train_module.build_job.__globals__["Schedule"].one_epoch
    monkeypatch.setattr("cachedlrm.run.job.Schedule.one_epoch", signals(number, function=one_epoch))
    assert train(tmp_path / "run", "--policy=static", "--gpu-cache-rows=300") == 130
    assert capsys.readouterr().err == BEFORE
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_steps_since_the_last_line_are_recorded(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(trainer.Trainer, "step", signals(number, at_call=7, function=trainer.Trainer.step))
    assert train(tmp_path / "run", "--print-freq=5") == 130
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert capsys.readouterr().err == f"interrupted after step 7; {metrics} keeps the metrics\n"
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [5, 7]
    assert {path.name for path in metrics.parent.iterdir()} == {"config.toml", "metrics.jsonl", "run.lock"}


def test_a_signal_at_a_line_of_metrics_writes_it_once(tmp_path, monkeypatch, capsys):
    append = train_module.RunDirectory.append_metrics
    monkeypatch.setattr(train_module.RunDirectory, "append_metrics", signals(signal.SIGINT, function=append))
    assert train(tmp_path / "run", "--print-freq=5") == 130
    assert "interrupted after step 5; " in capsys.readouterr().err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5]


def test_a_signal_while_rows_are_awaited_interrupts_at_once(tmp_path, monkeypatch, capsys):
    prepare = train_module.build_job.__globals__["EmbeddingCache"].prepare

    def wait(self, batches, first_batch):
        for number, batch in enumerate(prepare(self, batches, first_batch)):
            if number == 2:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr("cachedlrm.run.job.EmbeddingCache.prepare", wait)
    assert train(tmp_path / "run", "--prefetch-depth=0") == 130
    assert "interrupted after step 2; " in capsys.readouterr().err


@BOTH
def test_a_signal_during_an_evaluation_keeps_the_steps_before(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(trainer.Trainer, "evaluate", signals(number))
    assert train(tmp_path / "run", "--test-freq=4") == 130
    assert "interrupted after step 4; " in capsys.readouterr().err
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 4


def test_a_loss_that_is_not_finite_does_not_hide_the_interrupt(tmp_path, monkeypatch, capsys):
    step = trainer.Trainer.step
    spoilt = signals(signal.SIGTERM, at_call=2, function=lambda *arguments: step(*arguments) * float("nan"))
    monkeypatch.setattr(trainer.Trainer, "step", spoilt)
    assert train(tmp_path / "run") == 130
    assert capsys.readouterr().err == "interrupted after step 2; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def during_final_state(monkeypatch, action) -> None:
    """Calls ``action`` when the final state has been written but has not got its name."""
    fsync = os.fsync

    def call(file: int) -> None:
        if "final" in os.readlink(f"/proc/self/fd/{file}"):
            action()
        fsync(file)

    monkeypatch.setattr(os, "fsync", call)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="asks the system for a file's name")


@needs_proc
@BOTH
def test_a_signal_while_saving_leaves_the_report_and_no_part_of_a_file(tmp_path, monkeypatch, capsys, number):
    during_final_state(monkeypatch, lambda: signal.raise_signal(number))
    assert train(tmp_path / "run", "--steps=3") == 130
    words = f"interrupted after step 3; {tmp_path / 'run' / 'report.md'} is written, final.safetensors is not\n"
    assert capsys.readouterr().err == words
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.toml", "metrics.jsonl", "report.json", "report.md", "report.html", "run.lock"}


@needs_proc
@pytest.mark.parametrize("steps", [0, 3])
def test_a_disk_that_fills_at_the_end_leaves_the_report(tmp_path, monkeypatch, capsys, steps):
    def full() -> None:
        raise OSError(28, "No space left on device")

    during_final_state(monkeypatch, full)
    message = one_line(capsys, train(tmp_path / "run", f"--steps={steps}"))
    assert "final.safetensors: No space left on device; free space there or choose another --run-dir" in message
    assert message.endswith(f"; {tmp_path / 'run' / 'report.md'} is there\n")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == steps


def test_little_space_is_said_before_the_first_step(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    assert train(tmp_path / "enough", "--ui=plain") == 0
    assert "may take up to" not in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert train(tmp_path / "short", "--ui=plain") == 0
    lines = capsys.readouterr().out.splitlines()
    (warning,) = (i for i, line in enumerate(lines) if "may take up to" in line)
    assert "1000 B are free there" in lines[warning]
    assert warning < next(i for i, line in enumerate(lines) if line.startswith("step "))
    assert train(tmp_path / "disk", "--ui=plain", "--store=lmdb") == 0
    (warned,) = (line for line in capsys.readouterr().out.splitlines() if "may take up to" in line)
    place = tmp_path / "disk"
    assert warned.startswith(
        f"{place / 'final.safetensors'} and {place / 'store' / 'a temporary file'} may take up to "
    )
    rows, record = 1335, 64  # Adagrad, dim 8; beside a record its row, or its place
    assert format_bytes(rows * (record + 8 + record + 4)) in warned
    assert "--store-path" in warned
    assert "--store-path" not in lines[warning]


@pytest.mark.parametrize(
    ("number", "module"),
    [(signal.SIGINT, "cachedlrm.train"), (signal.SIGTERM, "cachedlrm.export"), (signal.SIGHUP, "cachedlrm.train")],
)
def test_a_signal_during_imports_prints_one_word(number, module):
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any("numpy._core" in line for line in iter(process.stderr.readline, ""))  # torch is still to come
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in error.splitlines() if not line.startswith("import time:")] == ["interrupted"]
    assert out == ""


# --- garbage


def test_a_command_looks_for_garbage_once_it_has_started():
    enabled = []
    gc.disable()
    try:
        run_program(lambda _: enabled.append(gc.isenabled()), "interrupted")
    finally:
        gc.enable()
        gc.unfreeze()
    assert enabled == [True]


# --- one line


def test_a_mistake_is_one_line_whatever_is_in_it(capsys):
    def fail(_: Interrupts) -> None:
        raise UserError("cannot read a\nb\x1b[2J\udcff\u2028; rename it")

    assert run_program(fail, "interrupted") == 2
    assert capsys.readouterr().err == "error: cannot read a?b?[2J??; rename it\n"


def test_paths_with_newlines_stay_in_their_line(tmp_path, capsys):
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / "report.md").write_text("")
    assert "a?b already holds a run" in one_line(capsys, train(tmp_path / "a\nb"))
    assert "cannot read" in one_line(capsys, export_main([str(tmp_path / "a\nb"), str(tmp_path / "out")]))


# --- streams


def shell(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell command in which "$@" is Python with arguments."""
    return subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_closed_stdout_is_a_silent_run(tmp_path):
    arguments = [*SMALL[:-1], "--steps=2", f"--run-dir={tmp_path / 'run'}"]
    done = shell('"$@" >&-', "-m", "cachedlrm.train", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 2


@pytest.mark.parametrize("module", ["cachedlrm.train", "cachedlrm.export"])
@pytest.mark.parametrize("to", ['"$@" >&-', '"$@" >/dev/full', '{ "$@"; echo $? >&2; } | true'])
def test_help_into_nowhere_ends_quietly(module, to):
    done = shell(to, "-m", module, "--help")
    assert (done.returncode, done.stderr) == (0, "0\n" if "echo" in to else "")


def test_a_closed_stderr_leaves_the_status(tmp_path):
    done = shell('"$@" 2>&-', "-m", "cachedlrm.export", str(tmp_path), "out")
    assert (done.returncode, done.stdout) == (2, "")
    done = shell('"$@" 2>/dev/full', "-m", "cachedlrm.export", str(tmp_path), "out")
    assert (done.returncode, done.stdout) == (2, "")


# --- places


def test_paths_in_utf8_work_whatever_the_locale(tmp_path):
    folder = tmp_path / "dätä"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, array in {
        "dense": rng.standard_normal((50, 3)).astype(np.float32),
        "sparse": rng.integers(0, 5, (50, 4)).astype(np.int32),
        "labels": rng.integers(0, 2, (50, 1)).astype(np.int32),
    }.items():
        np.save(folder / f"day_{name}.npy", array)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = [*SMALL[1:], f"--data=npy:{folder}", "--mini-batch-size=10", "--print-freq=1"]
    arguments.remove("--mini-batch-size=100")
    done = shell('"$@"', "-m", "cachedlrm.train", *arguments, f"--run-dir={tmp_path / 'rün'}", **plain)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "rün" / "config.toml"
    assert tomllib.loads(config.read_text(encoding="utf-8"))["data"]["data"] == f"npy:{folder}"
    assert (
        f"--data=npy:{folder}" in json.loads((tmp_path / "rün" / "report.json").read_text())["environment"]["command"]
    )
    again = shell('"$@"', "-m", "cachedlrm.train", f"--profile={config}", f"--run-dir={tmp_path / 'ägain'}", **plain)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "ägain" / "config.toml").read_bytes() == config.read_bytes()
    refused = shell('"$1" -m cachedlrm.train --run-dir="$(printf \'\\377\')"', **plain)
    assert refused.returncode == 2
    assert "is not valid UTF-8" in refused.stderr


NO_PLACE = """
import os
os.access = lambda *arguments, **options: False
import cachedlrm
print(os.environ.get("NUMBA_CACHE_DIR"))
"""


def numba_cache(code: str, temporary: Path) -> Path | None:
    """Where numba is sent."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**environment, "TMPDIR": str(temporary)},
    )  # fmt: skip
    path = done.stdout.strip()
    return None if path == "None" else Path(path)


def test_numba_gets_a_place_of_its_own_only_where_it_has_none(tmp_path):
    assert numba_cache(NO_PLACE.replace("os.access", "os.nothing"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / f"cachedlrm-numba-{os.getuid()}"
    for _ in range(2):  # the second run finds what the first has compiled
        assert numba_cache(NO_PLACE, tmp_path) == folder
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["open to others", "a link"])
def test_numba_loads_no_code_from_a_folder_that_others_can_write(tmp_path, trap):
    folder = tmp_path / f"cachedlrm-numba-{os.getuid()}"
    if trap == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    path = numba_cache(NO_PLACE, tmp_path)
    assert path not in (None, folder)
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_set_numba_cache_is_kept(monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    done = subprocess.run([sys.executable, "-c", NO_PLACE], capture_output=True, text=True, check=True)
    assert done.stdout == "/somewhere\n"


def test_a_command_under_a_profiler_ends_as_others_do():
    """The profiler prints when the interpreter ends, which `os._exit` leaves out."""
    child = (
        "import cProfile; cProfile.run('from cachedlrm.base.program import end_program; end_program(3)', sort='name')"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
    assert done.returncode == 0  # cProfile keeps the status to itself
    assert "end_program" in done.stdout


def numba_met_a_signal(*arguments: object) -> None:
    """What its dispatcher makes of a KeyboardInterrupt while it looks for the compiled code."""
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("<function _numba_unpickle> returned a result with an exception set") from error
    except SystemError as error:
        raise SystemError("CPUDispatcher returned a result with an exception set") from error


def test_a_signal_that_numba_met_is_an_interrupt(tmp_path, monkeypatch, capsys):
    assert run_program(lambda _: numba_met_a_signal(), "interrupted; nothing was written") == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    monkeypatch.setattr(train_module.Progress, "evaluated", numba_met_a_signal)  # behind the first line of metrics
    assert train(tmp_path / "run", "--steps=6", "--test-freq=4", "--print-freq=2") == 130
    assert "interrupted after step 4; " in capsys.readouterr().err
    with pytest.raises(SystemError, match="something else"):
        run_program(lambda _: (_ for _ in ()).throw(SystemError("something else")), "")


def test_a_signal_that_numba_met_in_an_evaluation_is_saved(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "evaluate", numba_met_a_signal)
        patch.setattr(Interrupts, "came", True)
        arguments = ["--steps=6", "--test-freq=4", "--checkpoint-every=100"]
        assert train(tmp_path / "run", *arguments) == 130
    assert "go on with --resume" in capsys.readouterr().err
