"""The command line of prepare: which options each kind of file takes, and which exclude each other."""

from pathlib import Path

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.prepare.options import ColumnOptions, parse_command_line


def test_every_option():
    command = parse_command_line(
        [
            *("criteo", "day_0", "day_1", "--out=o", "--min-count=3", "--max-ind-range=1000", "--test-fraction=0.25"),
            *("--skip-bad-lines", "--memory=4GiB", "--threads=2", "--ui=off"),
        ]
    )
    assert (command.source, command.paths, command.columns) == ("criteo", (Path("day_0"), Path("day_1")), None)
    options = command.options
    assert (options.out, options.min_count, options.max_ind_range) == (Path("o"), 3, 1000)
    assert (options.test_fraction, options.test_files, options.skip_bad_lines) == (0.25, None, True)
    assert (options.memory, options.num_threads, options.ui) == (4 << 30, 2, "off")


def test_defaults():
    options = parse_command_line(["avazu", "train.gz", "--out", "o"]).options
    assert (options.min_count, options.max_ind_range, options.test_fraction, options.memory) == (1, -1, None, 2 << 30)
    assert options.num_threads >= 1


def test_parquet_has_columns():
    arguments = ["parquet", "a", "--out=o", "--label=click", "--dense=x,y", "--sparse=z", "--log-dense"]
    assert parse_command_line(arguments).columns == ColumnOptions(
        label="click", dense="x,y", sparse="z", log_dense=True
    )
    assert parse_command_line([one for one in arguments if "--dense" not in one]).columns.dense == ""
    with pytest.raises(UserError, match="--sparse requires an argument"):
        parse_command_line(arguments[:-2])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["criteo", "--out=o"], "criteo needs files or folders to read: python -m cachedlrm.prepare criteo PATH"),
        (["criteo", "a", "--out=o", "--test-fraction=0.1", "--test-files=1"], "exclude each other; give one of them"),
        (["criteo", "a", "--out=o", "--memory=1MiB"], "--memory 1048576 is less than the libraries alone take"),
    ],
)
def test_what_no_single_option_shows(arguments, words):
    with pytest.raises(UserError, match=words):
        parse_command_line(arguments)
