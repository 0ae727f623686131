"""Files for torch.load that are written tensor by tensor."""

import zipfile

import numpy as np
import pytest
import torch

from cachedlrm.export.formats.piecewise import PiecewiseTensor, piecewise
from cachedlrm.export.formats.torch_file import write_torch_file


def test_tensors_are_written_in_pieces_and_whole_archives_result(tmp_path):
    table = np.arange(300, dtype=np.float32).reshape(100, 3)
    content = {
        "table": PiecewiseTensor((100, 3), lambda: (table[first : first + 7] for first in range(0, 100, 7))),
        "none": PiecewiseTensor((0, 3), list),
        "nested": {"number": PiecewiseTensor((), lambda: [np.array(7, np.float32)]), "list": [1, 2.5, None]},
    }
    path = tmp_path / "x.pt"
    write_torch_file(path, content)
    for mapped in (False, True):
        loaded = torch.load(path, mmap=mapped, weights_only=True)
        assert np.array_equal(loaded["table"], table)
        assert loaded["table"].data_ptr() % 64 == 0
        assert loaded["none"].shape == (0, 3)
        assert loaded["nested"]["number"].item() == 7
        assert loaded["nested"]["list"] == [1, 2.5, None]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(ValueError, match="bytes of data"):
        write_torch_file(tmp_path / "y.pt", {"x": PiecewiseTensor((101, 3), lambda: [table])})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_torch_writes_the_same_pickle_and_data(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5])}
    torch.save(tensors, tmp_path / "theirs")
    write_torch_file(tmp_path / "ours", {name: piecewise(tensor) for name, tensor in tensors.items()})
    with zipfile.ZipFile(tmp_path / "theirs") as theirs, zipfile.ZipFile(tmp_path / "ours") as ours:
        for name in ("data/0", "data/1", "byteorder", "version"):
            assert ours.read(f"archive/{name}") == theirs.read(f"theirs/{name}")
    loaded = torch.load(tmp_path / "ours", weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert loaded["a"].stride() == (3, 1)


def test_an_old_file_stays_when_the_new_one_fails(tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("old")
    with pytest.raises(ValueError, match="4 bytes of data for a tensor of shape"):
        write_torch_file(path, {"x": PiecewiseTensor((2,), lambda: [np.zeros(1, np.float32)])})
    assert path.read_text() == "old"
