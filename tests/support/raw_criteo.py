"""Small files in Criteo's form, and what prepare must make of them: a plain Python model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cachedlrm.prepare.__main__ import main

MASK = 2**64 - 1


def lines(count: int, seed: int = 0) -> list[str]:
    """Lines with missing fields, negative integers, skewed categories, and categories of 1 to 8 digits."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        integers = [str(int(rng.exponential(40)) - 2) if rng.random() < 0.8 else "" for _ in range(13)]
        categories = [f"{int(rng.zipf(1.3)) * 2654435761 % 2**32:x}" if rng.random() < 0.85 else "" for _ in range(25)]
        made.append("\t".join([str(int(rng.random() < 0.3)), *integers, *categories, f"{rng.integers(2**32):08x}"]))
    return made


def write(path: Path, content: Sequence[str]) -> Path:
    """A file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in content))
    return path


def mix(key: int) -> int:
    """The finaliser of SplitMix64."""
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & MASK
    key = (key ^ key >> 27) * 0x94D049BB133111EB & MASK
    return key ^ key >> 31


MISSING = int.from_bytes(b"missing!", "big")
"""The key of a missing value."""


def missing(key: int | None) -> int:
    """The key of an integer that may be missing."""
    return MISSING if key is None else key % 2**64


def hashed(text: str) -> int:
    """The key of a text that spells no whole number."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return mix(value)


def bad_lines(line: str) -> dict[str, str]:
    """Lines that do not parse, made from one that does, and what is wrong with each."""
    fields = line.split("\t")

    def changed(number: int, field: str) -> str:
        return "\t".join([*fields[: number - 1], field, *fields[number:]])

    return {
        "": "1 fields between tabs where a label, 13 integers and 26 categories make 40",
        "\t".join(fields[:-1]): "39 fields",
        "\t".join([*fields, "1"]): "41 fields",
        changed(1, ""): "label '' is neither 0 nor 1",
        changed(1, "2"): "label '2' is neither 0 nor 1",
        changed(1, "1.0"): "label '1.0'",
        changed(5, "1.5"): "field 5, '1.5', is not an integer of 32 bits",
        changed(14, str(2**31)): "field 14, '2147483648', is not an integer of 32 bits",
        changed(15, "xyz"): "field 15, 'xyz', is not up to 8 hexadecimal digits",
        changed(40, "123456789"): "field 40, '123456789', is not up to 8 hexadecimal digits",
        changed(40, "12\x00"): r"field 40, '12\x00'",
        changed(20, '"ab"'): "field 20",
        changed(20, "é"): r"field 20, '\xc3\xa9'",
        changed(40, "ab\rcd"): "field 40",
    }


@dataclass
class Expected:
    """Arrays of an output."""

    dense: np.ndarray
    labels: np.ndarray
    sparse: np.ndarray
    table_rows: list[int]
    counts: list[int]
    vocabulary: list[int]


def number(columns: list[list[int]], num_train: int, min_count: int = 1):
    """Rows of every sample, rows of each table, counts and vocabulary, of columns of keys."""
    sparse, table_rows, counts, vocabulary = [], [], [], []
    for column in columns:
        counter = Counter(column[:num_train])
        kept = sorted((key for key in counter if counter[key] >= min_count), key=lambda k: (-counter[k], mix(k)))
        rows = {key: row for row, key in enumerate(kept, 1)}
        sparse.append([rows.get(key, 0) for key in column])
        table_rows.append(1 + len(kept))
        counts += [sum(count for count in counter.values() if count < min_count), *(counter[key] for key in kept)]
        vocabulary += [0, *kept]
    return np.array(sparse, np.int32).T, table_rows, counts, vocabulary


def expected(content: Sequence[str], num_test: int, min_count: int = 1, max_ind_range: int = -1) -> Expected:
    """What facebookresearch/dlrm makes of lines, but rows by frequency with row 0 for what has none."""
    fields = [line.split("\t") for line in content]
    integers = np.array([[int(field or "0") for field in line[1:14]] for line in fields], np.int32)
    integers[integers < 0] = 0
    dense = torch.log(torch.tensor(integers, dtype=torch.float) + 1).numpy()
    columns = [[int(line[14 + table] or "0", 16) for line in fields] for table in range(26)]
    if max_ind_range > 0:
        columns = [[key % max_ind_range for key in column] for column in columns]
    labels = np.array([[int(line[0])] for line in fields], np.int32)
    return Expected(dense, labels, *number(columns, len(content) - num_test, min_count))


def prepare(*arguments: object) -> int:
    """The exit status of the command."""
    return main([*map(str, arguments), "--ui=off"])


def assert_equal(out: Path, wanted: Expected, num_test: int) -> None:
    """Asserts that an output has these arrays, in these types."""
    num_train = len(wanted.labels) - num_test
    for folder, name, part in ((out, "train", slice(0, num_train)), (out / "test", "test", slice(num_train, None))):
        if name == "test" and not num_test:
            assert not folder.exists()
            continue
        for array, dtype in (("dense", np.float32), ("sparse", np.int32), ("labels", np.int32)):
            made = np.load(folder / f"{name}_{array}.npy")
            assert made.dtype == dtype
            assert np.array_equal(made, getattr(wanted, array)[part]), (name, array)
    assert np.load(out / "counts.npy").tolist() == wanted.counts
    assert np.load(out / "vocabulary.npy").tolist() == wanted.vocabulary


def contents(folder: Path) -> dict[str, bytes]:
    """All files of an output."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
