"""Files of tensors, read back with the library whose format they are in; and writing that fails."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from cachedlrm.base.errors import UserError
from cachedlrm.export.formats.safetensors_file import write_tensors

F4, I4, I8 = np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i8")
SPECS = {"weight": (F4, (2, 3)), "rows": (I8, (2,))}
CHUNKS = [np.arange(6, dtype=F4), np.array([7, -8], I8)]


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(str(path), framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def test_what_is_written_is_read(tmp_path):
    write_tensors(tmp_path / "out", SPECS, CHUNKS, {"from": "here"})
    tensors, metadata = read_tensors(tmp_path / "out")
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == SPECS
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["rows"].tolist() == [7, -8]
    assert metadata == {"from": "here"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_layout_byte_by_byte(tmp_path):
    write_tensors(tmp_path / "out", {"a": (I4, (2,))}, [np.array([1, 2], I4)])
    header = b'{"a": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'
    header += b" " * (-len(header) % 8)
    data = bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert (tmp_path / "out").read_bytes() == len(header).to_bytes(8, "little") + header + data


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from([F4, I4, I8]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    ),
    cut=st.integers(1, 7),
)
def test_data_in_pieces_of_any_size(tmp_path_factory, arrays, cut):
    path = tmp_path_factory.mktemp("pieces") / "out"
    expected = {
        name: np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape) for name, (dtype, shape) in arrays.items()
    }
    pieces = [array.reshape(-1)[i : i + cut] for array in expected.values() for i in range(0, array.size, cut)]
    write_tensors(path, {name: (array.dtype, array.shape) for name, array in expected.items()}, pieces)
    tensors, _ = read_tensors(path)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].shape == array.shape
        assert (tensors[name] == array).all()


def test_pieces_need_not_be_contiguous(tmp_path):
    columns = np.arange(12, dtype=F4).reshape(3, 4)
    write_tensors(tmp_path / "out", {"w": (F4, (3, 2)), "t": (F4, (4, 3))}, [columns[:, 1:3], columns.T])
    tensors, _ = read_tensors(tmp_path / "out")
    assert (tensors["w"] == columns[:, 1:3]).all()
    assert (tensors["t"] == columns.T).all()


@pytest.mark.parametrize(
    "chunks", [[], CHUNKS[:1], [*CHUNKS, np.zeros(1, F4)], [CHUNKS[0], CHUNKS[1][:1]]], ids=["none", "1", "3", "short"]
)
def test_a_wrong_number_of_bytes_leaves_nothing(tmp_path, chunks):
    with pytest.raises(ValueError, match="specs of 40"):
        write_tensors(tmp_path / "out", SPECS, chunks)
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_when_it_is_complete_and_not_before(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def chunks():
        assert path.read_bytes() == b"old"
        yield from CHUNKS
        assert path.read_bytes() == b"old"

    write_tensors(path, SPECS, chunks())
    assert read_tensors(path)[0]["rows"].tolist() == [7, -8]


def test_an_error_of_the_data_leaves_the_old_file(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def chunks():
        yield CHUNKS[0]
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        write_tensors(path, SPECS, chunks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# A file that may not grow beyond 4 KiB stands in for a full disk: the write fails half-way.
FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from cachedlrm.base.errors import UserError
from cachedlrm.export.formats.safetensors_file import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_tensors(Path(sys.argv[1]), {"a": (np.dtype("<f4"), (100, 100))}, iter(np.zeros((100, 100), np.float32)))
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_the_users_error_and_leaves_nothing(tmp_path):
    path = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert "raise the limit on file sizes" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "no-such-folder/out",
        "folder",
        "file/out",
        "n" * 250,
    ],
    ids=["missing folder", "is a folder", "folder is a file", "long name"],
)
def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="cannot write"):
        write_tensors(tmp_path / name, SPECS, CHUNKS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_tensors_read_back(tmp_path):
    path = tmp_path / "x.safetensors"
    table, rows = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([7, 9])
    specs = {
        "table": (np.dtype(np.float32), (4, 3)),
        "rows": (np.dtype(np.int64), (2,)),
        "none": (np.dtype("f4"), (0, 3)),
    }
    write_tensors(path, specs, [table[:1], table[1:], rows, table[:0]], {"format": "1"})
    with safe_open(str(path), "numpy") as file:
        assert (file.get_tensor("table") == table).all()
        assert (file.get_tensor("rows") == rows).all()
        assert file.get_tensor("none").shape == (0, 3)
        assert file.metadata() == {"format": "1"}
    with pytest.raises(ValueError, match="bytes of data"):
        write_tensors(tmp_path / "y", specs, [table])
    with pytest.raises(UserError, match="cannot write"):
        write_tensors(tmp_path / "missing" / "y", specs, [table])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
