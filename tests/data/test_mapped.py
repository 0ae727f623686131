"""Members of an npz file are mapped where they lie, and all other files refused."""

import io
import zipfile

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.mapped import map_npy, map_npz

ARRAYS = {
    "0": np.arange(6, dtype=np.int32).reshape(3, 2),
    "a longer name": np.asfortranarray(np.arange(8.0).reshape(2, 4)),
    "empty": np.empty((3, 0), np.int64),
    "big-endian": np.array([1, -2, 3], ">i8"),
}


def test_members_are_the_arrays_and_are_mapped(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    found = map_npz(tmp_path / "a.npz", "b.npy", "a and b")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert all(isinstance(array, np.memmap) for name, array in found.items() if name != "empty")
    with pytest.raises(ValueError, match="read-only"):
        found["0"][0, 0] = 1


def test_members_written_by_other_means_are_found(tmp_path):
    np.save(tmp_path / "0.npy", ARRAYS["0"])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("note", b"")  # not a member of numpy's
        archive.write(tmp_path / "0.npy", "0.npy")
    with pytest.raises(UserError, match=r"a\.npz is truncated, garbled"):
        map_npz(tmp_path / "a.npz", "b.npy", "a and b")
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", strict_timestamps=False) as archive,
        archive.open("0.npy", "w", force_zip64=True) as member,
    ):
        member.write((tmp_path / "0.npy").read_bytes())
    assert np.array_equal(map_npz(tmp_path / "a.npz", "b.npy", "a and b")["0"], ARRAYS["0"])


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def compressed() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **ARRAYS)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; write its arrays with numpy.savez"),
        (b"0 1 2", "is not an .npz file"),
        (compressed(), "member 0 is compressed and cannot be mapped; .* not numpy.savez_compressed"),
        (npz(**ARRAYS)[:-30], "is truncated, garbled"),
        (npz(**ARRAYS)[:200], "is truncated, garbled"),
        (npz(x=np.array([{}], object)), "holds Python objects"),
        (npz(x=np.zeros(9)).replace(b"(9,)", b"(-9)"), "is truncated, garbled"),
        (npz(x=np.zeros(9)).replace(b"(9,), ", b"(999,)"), "is truncated, garbled"),
    ],
)
def test_what_cannot_be_mapped_is_refused(tmp_path, content, words):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        map_npz(path, "b.npy", "a and b")
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_missing_is_named_with_those_it_belongs_to(tmp_path):
    for open_file, name in ((map_npy, "a.npy"), (map_npz, "a.npz")):
        with pytest.raises(UserError, match=rf"{name} is missing but b\.npy is there; a and b belong together"):
            open_file(tmp_path / name, "b.npy", "a and b")
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=r"replace it with an \.np[yz] file"):
            open_file(tmp_path / name, "b.npy", "a and b")
