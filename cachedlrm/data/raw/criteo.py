"""Criteo's click logs: 40 fields between tabs, no header. Label, 13 integers, 26 categories of 8 hexadecimal digits.

Kaggle's ``train.txt`` and the Terabyte set's ``day_0`` to ``day_23`` have this form.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from cachedlrm.base.text import shown
from cachedlrm.data.raw.keys import hex_keys
from cachedlrm.data.raw.lines import LineTable, TextFormat, labels_of
from cachedlrm.data.raw.samples import Samples, UnparsableError, log_transform

NUM_DENSE, NUM_TABLES = 13, 26
_NUM_FIELDS = 1 + NUM_DENSE + NUM_TABLES


class Criteo(TextFormat):
    """Values and missing values as in facebookresearch/dlrm: `log_transform`, and 0 for a missing one.

    Args:
        block_bytes: of text in a block, about.
        has_labels: whether lines begin with a label, as those of Kaggle's ``test.txt`` do not; else labels are 0.
    """

    name = "criteo"
    dense_names = tuple(f"I{number}" for number in range(1, NUM_DENSE + 1))
    table_names = tuple(f"C{number}" for number in range(1, NUM_TABLES + 1))
    key_dtype = np.dtype(np.uint32)

    def __init__(self, block_bytes: int, has_labels: bool = True) -> None:
        super().__init__(block_bytes)
        self.has_labels = has_labels
        types = {"label": pa.int32()} if has_labels else {}
        types |= dict.fromkeys(self.dense_names, pa.int32())
        self._table = LineTable(types | dict.fromkeys(self.table_names, pa.binary()), "\t", quoted=False)

    def _parse(self, text: bytes, num_lines: int, path: Path) -> Samples:
        try:
            table = self._table.read(text, num_lines)
            labels = np.zeros(num_lines, np.int32)
            if self.has_labels:
                labels = labels_of(table.column("label").combine_chunks())
            integers = np.empty((num_lines, NUM_DENSE), np.int32)
            for column, name in enumerate(self.dense_names):
                integers[:, column] = table.column(name).fill_null(0).to_numpy()
            keys = np.empty((NUM_TABLES, num_lines), self.key_dtype)
            for number, name in enumerate(self.table_names):
                hex_keys(table.column(name).combine_chunks(), keys[number])
        except UnparsableError as error:
            raise UnparsableError(_what_is_wrong(text, self.has_labels) if num_lines == 1 else "") from error
        return Samples(log_transform(integers), labels, keys)


def lacks_label(line: bytes) -> bool:
    """Whether a line has as many fields as one without a label."""
    return line.count(b"\t") == _NUM_FIELDS - 2


def _what_is_wrong(line: bytes, has_label: bool) -> str:
    """Why the parser refused a line."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    if not has_label:
        if len(fields) != _NUM_FIELDS - 1:
            return f"{len(fields)} fields between tabs where 13 integers and 26 categories make {_NUM_FIELDS - 1}"
        fields.insert(0, b"0")
    if len(fields) != _NUM_FIELDS:
        without_label = "; a file without labels, such as Kaggle's test.txt, holds no samples to train on"
        return f"{len(fields)} fields between tabs where a label, 13 integers and 26 categories make {_NUM_FIELDS}" + (
            without_label if len(fields) == _NUM_FIELDS - 1 else ""
        )
    if fields[0] not in (b"0", b"1"):
        return f"label {_quoted(fields[0])} is neither 0 nor 1"
    for number, field in enumerate(fields[1:], 1 + has_label):
        is_integer = number <= has_label + NUM_DENSE
        try:
            value = int(field or b"0", 10 if is_integer else 16)
            good = abs(value) < 2**31 if is_integer else len(field) <= 8
        except ValueError:
            good = False
        if not good:
            wanted = "an integer of 32 bits" if is_integer else "up to 8 hexadecimal digits"
            return f"field {number}, {_quoted(field)}, is not {wanted}"
    return "it holds a character that such files never hold"


def _quoted(field: bytes) -> str:
    return f"'{shown(field[:40].decode('ascii', 'backslashreplace'))}'"
