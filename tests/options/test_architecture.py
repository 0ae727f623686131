"""The model that options describe: which tables share a slab, and what people read of it."""

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options.architecture import Architecture, build_architecture, describe, split_parameters
from support.options import resolved

SIZES = ["--data=zipf:samples=200", "--arch-embedding-size=400-30-900-5", "--arch-mlp-bot=3-16-8"]


def architecture(*arguments: str) -> Architecture:
    options = resolved(*SIZES, *arguments)
    return build_architecture(options.model, options.optimisation)


def names(model: Architecture) -> list[list[str]]:
    return [[table.name for table in group] for group in model.groups]


def test_tables_of_one_dimension_share_a_group():
    model = architecture("--arch-mlp-top=16-1")
    assert names(model) == [[f"emb_l.{number}.weight" for number in range(4)]]
    assert (model.mlp_bot, model.mlp_top) == ((3, 16, 8), (8 + 10, 16, 1))
    assert [layout.width for layout in model.layouts] == [16]  # Adagrad's sums beside the weights


def test_a_large_table_becomes_two_small_ones():
    model = architecture("--qr-flag", "--qr-threshold=100", "--qr-collisions=4")
    assert names(model)[0][:2] == ["emb_l.0.weight_q", "emb_l.0.weight_r"]
    assert [table.num_rows for table in model.groups[0]] == [100, 4, 30, 225, 4, 5]


def test_mixed_dimensions_make_a_group_each():
    model = architecture("--md-flag", "--md-threshold=10")
    dims = [layout.dim for layout in model.layouts]
    assert len(set(dims)) == len(dims) > 1
    with pytest.raises(UserError, match="--md-round-dims rounds --arch-sparse-feature-size 6 to"):
        resolved(*SIZES[:2], "--arch-mlp-bot=3-6", "--md-flag", "--md-threshold=10", "--md-round-dims")


def test_concat_needs_every_table_split():
    with pytest.raises(UserError, match="table 1 with 30 rows is not above --qr-threshold 200"):
        architecture("--qr-flag", "--qr-operation=concat")


def test_parameters_are_split_by_group_and_pooling_weights_are_a_column():
    model = architecture("--weighted-pooling=learned")
    tables = {
        table.name: np.full((table.num_rows, 8), number, np.float32) for number, table in enumerate(model.groups[0])
    }
    groups, dense = split_parameters(
        model, {**tables, "v_W_l.1": np.full(30, 0.5, np.float32), "bot_l.0.bias": np.ones(16)}
    )
    assert [table.shape for table in groups[0]] == [(400, 9), (30, 9), (900, 9), (5, 9)]
    assert [float(table[0, -1]) for table in groups[0]] == [1, 0.5, 1, 1]
    assert list(dense) == ["bot_l.0.bias"]


def test_people_read_shapes_and_parameters():
    rows = describe(architecture("--arch-mlp-top=16-1", "--arch-interaction-itself"))
    assert rows[0] == ("bot_l.0", "3 -> 16", "64", "fully connected")
    assert rows[2] == ("emb_l.0.weight", "400 x 8", "3,200", "embedding")
    assert ("interaction", "5 x 8 -> 23", "0", "dot, vectors with themselves too") in rows
    assert rows[-1] == ("top_l.2", "16 -> 1", "17", "fully connected")
