"""Files and folders that a command names."""

import os
import random

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.inputs import find_inputs, natural_order
from support.raw_criteo import write


def test_names_are_in_natural_order():
    names = ["day", "day_0", "day_2", "day_2_b", "day_10", "day_10.gz", "week"]
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=natural_order) == names


def test_files_of_a_folder_beside_files(tmp_path):
    for name in ("z", "days/day_10", "days/day_2", "days/.hidden", "days/inside/day_0"):
        write(tmp_path / name, ["x"])
    found = find_inputs([tmp_path / "z", tmp_path / "days"])
    assert found == [tmp_path / "z", tmp_path / "days" / "day_2", tmp_path / "days" / "day_10"]


def test_paths_to_no_file_are_refused(tmp_path):
    path = write(tmp_path / "a", ["x"])
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(path)
    for names, message in (
        (["none"], "none: no such file or folder; name another path"),
        (["empty"], "empty: no files in this folder; name another one"),
        (["pipe"], "pipe: not a regular file; name another path"),
        (["a", "link"], "a file is named twice; name each once"),
    ):
        with pytest.raises(UserError) as caught:
            find_inputs([tmp_path / name for name in names])
        assert str(caught.value).endswith(message)


def test_partition_folders_are_read_and_notes_passed_over(tmp_path):
    for name in (
        "day=10/a",
        "day=2/hour=1/b",
        "day=2/hour=0/c",
        "day=2/_SUCCESS",
        "_SUCCESS",
        "_temporary/d",
        "other/e",
    ):
        write(tmp_path / "logs" / name, ["x"])
    found = [str(path.relative_to(tmp_path / "logs")) for path in find_inputs([tmp_path / "logs"])]
    assert found == ["day=2/hour=0/c", "day=2/hour=1/b", "day=10/a"]
    write(tmp_path / "days" / "monday" / "a", ["x"])
    with pytest.raises(UserError, match="days: no files in this folder; name the folders in it"):
        find_inputs([tmp_path / "days"])
