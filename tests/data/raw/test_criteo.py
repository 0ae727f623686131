"""Criteo's lines, block by block, against a plain Python model."""

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.data.raw.samples import Position, Samples
from support.raw_criteo import bad_lines, expected, lines, write

LINES = lines(200)
BAD = bad_lines(LINES[0])


def parsed(path, skip_bad=False):
    """Samples of a file in blocks of about five lines, and the numbers of bad lines."""
    format_ = Criteo(1000)
    parts = [format_.parse(block, skip_bad) for block in format_.blocks(path, Position())]
    assert len(parts) > 5
    return Samples.joined([samples for samples, _ in parts]), [line.number for _, bad in parts for line in bad]


def assert_equal(samples: Samples, content: list[str]) -> None:
    wanted = expected(content, 0)
    assert samples.dense.tobytes() == np.ascontiguousarray(wanted.dense).tobytes()
    assert samples.labels.tolist() == wanted.labels[:, 0].tolist()
    assert samples.keys.tolist() == [
        [int(line.split("\t")[14 + table] or "0", 16) for line in content] for table in range(26)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_samples_are_what_the_model_says(tmp_path, end):
    path = tmp_path / "train.txt"
    path.write_bytes(end.join(LINES).encode())
    samples, bad = parsed(path)
    assert bad == []
    assert_equal(samples, LINES)


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(tmp_path, line):
    path = write(tmp_path / "train.txt", [*LINES[:133], line, *LINES[133:], line])
    with pytest.raises(UserError) as caught:
        parsed(path)
    assert str(caught.value).startswith(f"{path}: line 134: {BAD[line]}")
    assert str(caught.value).endswith("; correct it, or leave out such lines with --skip-bad-lines")


def test_bad_lines_are_left_out(tmp_path):
    content = [line for pair in zip(BAD, LINES, strict=False) for line in pair] + LINES[len(BAD) :] + list(BAD)
    samples, bad = parsed(write(tmp_path / "train.txt", content), skip_bad=True)
    assert_equal(samples, LINES)
    assert bad == [*range(1, 2 * len(BAD), 2), *range(len(content) - len(BAD) + 1, len(content) + 1)]
