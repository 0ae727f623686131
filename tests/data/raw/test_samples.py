"""Samples of several blocks, messages about a line, and the reference's logarithm."""

from pathlib import Path

import numpy as np
import torch

from cachedlrm.data.raw.columns import Schema
from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.data.raw.parquet import Parquet
from cachedlrm.data.raw.samples import BadLine, Block, Position, Samples, bad_line, log_transform


def samples(first: int, count: int) -> Samples:
    numbers = np.arange(first, first + count)
    dense, keys = numbers[:, None] * np.ones(2), np.stack([numbers, numbers + 100, numbers + 200])
    return Samples(dense.astype(np.float32), (numbers % 2).astype(np.int32), keys.astype(np.uint32))


def test_joined_samples_follow_each_other():
    parts = [samples(0, 3), samples(3, 0), samples(3, 4)]
    joined, whole = Samples.joined(parts), samples(0, 7)
    assert len(joined) == 7
    for name in ("dense", "labels", "keys"):
        values = getattr(whole, name)
        assert getattr(joined, name).dtype == values.dtype
        assert getattr(joined, name).tolist() == values.tolist()
    assert Samples.joined(parts[:1]) is parts[0]


def test_no_samples_have_the_columns_of_a_format():
    none = Samples.none(Parquet(Schema("y", ("a",), ("b", "c"))))
    assert (len(none), none.dense.shape, none.keys.shape, none.keys.dtype) == (0, (0, 1), (2, 0), np.uint64)


def test_a_block_without_its_content_keeps_its_place():
    block = Block(Path("a"), Position(), Position(10, 2), b"text", 0.5)
    without = block.with_content(None)
    assert (without.content, without.end, without.share) == (None, Position(10, 2), 0.5)
    assert without.with_content(b"text") == block


def test_a_bad_line_in_the_words_of_its_format():
    line = BadLine(7, "it is wrong")
    for format_, word in ((Criteo(1), "line"), (Parquet(Schema("y", ("a",), ("b",))), "row")):
        assert str(bad_line(format_, Path("a\nb"), line)) == (
            f"a\\nb: {word} 7: it is wrong; correct it, or leave out such {word}s with --skip-bad-lines"
        )


def test_the_logarithm_has_torch_s_bits():
    values = np.array([-5, 0, 1, 2, 10, 12345, 2**31 - 1], np.int32)
    wanted = torch.log(torch.tensor([0, 0, 1, 2, 10, 12345, 2**31 - 1]).to(torch.float32) + 1)
    assert log_transform(values).tobytes() == wanted.numpy().tobytes()
    halves = log_transform(np.array([-0.5, 0.5], np.float32))
    assert halves.tobytes() == torch.log(torch.tensor([1.0, 1.5])).numpy().tobytes()
