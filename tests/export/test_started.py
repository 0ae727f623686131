"""How rows begin that nobody touched, through a chain of runs; the runs are in tests/promises/test_start_from.py."""

from dataclasses import replace

import numpy as np
import torch

from cachedlrm.export.final_state import Beginning
from cachedlrm.export.started import own_beginning, untouched_rows
from support.options import resolved

SIZES = ((40, 3), (50, 3), (50, 9))


def options_of(sizes: tuple[int, ...], seed: int):
    text = "-".join(map(str, sizes))
    return resolved(f"--arch-embedding-size={text}", f"--numpy-rand-seed={seed}", "--data=zipf:samples=100")


def weights(options, beginnings=()) -> list[np.ndarray]:
    (init,) = untouched_rows(options, tuple(beginnings), torch.device("cpu"))
    sizes = options.model.arch_embedding_size
    out = np.empty((sum(sizes), 32), np.float32)  # adagrad's state beside the weight
    init.fill(np.arange(sum(sizes)), out)
    return np.split(out, np.cumsum(sizes)[:-1])


def test_each_row_begins_as_in_the_first_run_that_had_it():
    runs = [options_of(sizes, seed) for seed, sizes in enumerate(SIZES)]
    alone = [weights(options) for options in runs]
    beginnings = [own_beginning(options) for options in runs]
    assert beginnings[1] == Beginning((50, 3), 1, "counter")
    first, second = weights(runs[2], beginnings[:2])
    assert np.array_equal(first, np.concatenate([alone[0][0], alone[1][0][40:]]))
    assert np.array_equal(second, np.concatenate([alone[0][1], alone[2][1][3:]]))


def test_a_run_whose_tables_do_not_grow_adds_nothing():
    runs = [options_of(SIZES[0], seed) for seed in (1, 2)]
    later = weights(runs[1], [own_beginning(runs[0])])
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(later, weights(runs[0]), strict=True))


def test_a_loaded_models_rows_are_all_saved(tmp_path):
    options = options_of(SIZES[0], 1)
    loaded = replace(options, inference=replace(options.inference, load_model=tmp_path / "m.pt"))
    assert own_beginning(loaded).init == "saved"
    assert untouched_rows(loaded, (), torch.device("cpu")) == (None,)
