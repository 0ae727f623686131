"""The command: which store it finds, and mistakes in the call."""

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.check.__main__ import find_store, main
from support.runs import one_line


def test_the_store_of_a_run_or_the_folder_itself(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for folder in (tmp_path / "store", elsewhere):
        folder.mkdir()
        (folder / "data.mdb").touch()
    assert find_store(elsewhere) == elsewhere
    assert find_store(tmp_path) == tmp_path / "store"
    (tmp_path / "config.toml").write_text(f"[store]\nstore-path = '{elsewhere}'\n")
    assert find_store(tmp_path) == elsewhere, "config.toml says where"
    (elsewhere / "data.mdb").unlink()
    with pytest.raises(UserError, match=r"holds no store \(data.mdb is missing\)"):
        find_store(elsewhere)


def test_mistakes_in_the_call(tmp_path, capsys):
    for arguments in ([], ["a", "b"], ["--bogus", "a"], [""], [str(tmp_path)], ["a\nb\x1b[2J"]):
        one_line(capsys, main(arguments))
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Usage: python -m cachedlrm.check STORE" in capsys.readouterr().out
    (tmp_path / "config.toml").write_text("[store]\nstore-path = 'nowhere'\n")
    assert "nowhere holds no store" in one_line(capsys, main([str(tmp_path)]))
    (tmp_path / "config.toml").write_text("[store]\nstore-path = 3\n")
    assert "config.toml is garbled; name the folder of the store" in one_line(capsys, main([str(tmp_path)]))
