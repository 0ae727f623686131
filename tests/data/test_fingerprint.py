"""What is noticed of data that changed, and what it costs."""

import json

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.fingerprint import Contents, difference, take_fingerprint
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest


def taken(*paths, words="--data npy:x", num_samples=5):
    """As a store has it."""
    return json.loads(json.dumps(take_fingerprint([Contents(words, num_samples, tuple(paths))])))


@pytest.fixture
def files(tmp_path):
    """One below a mebibyte and one above."""
    paths = [tmp_path / "day=1" / "small", tmp_path / "day=2" / "large"]
    for path, size in zip(paths, (5000, 3 << 20), strict=True):
        path.parent.mkdir()
        path.write_bytes(np.random.default_rng(size).bytes(size))
    return paths


def test_the_same_files_are_the_same_wherever_they_are(files, tmp_path):
    before = taken(*files)
    assert set(before["--data npy:x"]["files"]) == {"day=1/small", "day=2/large"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert (
        difference(before, taken(*[path.parent.rename(moved / path.parent.name) / path.name for path in files])) is None
    )


@pytest.mark.parametrize("place", [0, 2500, 4999])
def test_every_byte_of_a_small_file_counts(files, place):
    before = taken(*files)
    content = bytearray(files[0].read_bytes())
    content[place] ^= 1
    files[0].write_bytes(content)
    assert difference(before, taken(*files)) == "--data npy:x has changed: day=1/small holds other values"


@pytest.mark.parametrize("part", [slice(0, 1), slice(-1, None), slice(0, 3 << 17), slice(1 << 20, 3 << 19)])
def test_of_a_large_file_its_ends_and_every_longer_part_count(files, part):
    before = taken(*files)
    content = np.frombuffer(files[1].read_bytes(), np.uint8).copy()
    content[part] ^= 1
    files[1].write_bytes(content.tobytes())
    assert difference(before, taken(*files)) == "--data npy:x has changed: day=2/large holds other values"


def test_what_differs_is_named(files, tmp_path):
    before = taken(*files, num_samples=14_500)
    new = tmp_path / "day=3" / "new"
    new.parent.mkdir()
    new.write_bytes(b"x")
    files[0].write_bytes(files[0].read_bytes() + b"xx")
    assert difference(before, taken(files[0], new, num_samples=15_000)) == (
        "--data npy:x has changed: it had 14,500 samples and has 15,000, day=1/small had 5,000 bytes and has 5,002, "
        "day=2/large is gone and 1 more"
    )
    assert difference(taken(*files), taken(*files[::-1])) == "--data npy:x has changed: the files come in another order"


def test_other_words_are_other_data(files):
    assert difference(taken(files[0], words="--test-data npy:a"), taken(files[1], words="--test-data npy:b")) is None


@pytest.mark.parametrize(
    "garbled", [{"--data npy:x": 3}, {"--data npy:x": {"samples": 5}}, {"--data npy:x": {"samples": 5, "files": []}}]
)
def test_a_garbled_fingerprint_is_an_error_of_its_own(files, garbled):
    with pytest.raises(ValueError, match="does not read"):
        difference(garbled, taken(*files))


def test_a_file_that_went_is_named(tmp_path):
    with pytest.raises(UserError, match="gone cannot be read: no such file or directory"):
        taken(tmp_path / "gone")


def test_generated_data_are_their_number():
    contents = open_dataset("zipf:samples=40", None, DataRequest((9, 9), None, 1, -1)).contents
    assert take_fingerprint(contents) == {
        "--data zipf:samples=40": {"samples": 40, "files": {}},
        "--data zipf:samples=40, held-out part": {"samples": 5, "files": {}},
    }
