"""A step in one pass or in several: a loss for each mini-batch, and the same movement but for the order of sums."""

import numpy as np
import pytest
import torch

from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.batch import Batch
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.records import RecordLayout
from support.models import one_group, plain_features

ROWS, DIM, SAMPLES = (8, 8), 4, 6
CPU = torch.device("cpu")


def trained(mini: int, micro: int | None) -> tuple[list[float], Trainer]:
    """The losses of two steps of six samples, and their trainer."""
    cache = one_group(ROWS, RecordLayout(DIM, "adagrad"), 16, settings=CacheSettings(prefetch_depth=0))
    model = Dlrm(plain_features(2, DIM), (3, DIM), (5, 1), seed=2)
    trainer = Trainer(cache, model, LearningRate(0.1), make_loss("bce", (), CPU), mini, micro_batch_size=micro)
    random = np.random.default_rng(1)
    stream = [
        Batch(
            random.standard_normal((SAMPLES, 3)).astype(np.float32),
            (random.integers(0, 8, (SAMPLES, 2)) + np.array([0, 8])).reshape(-1),
            np.arange(2 * SAMPLES + 1),
            (random.random(SAMPLES) < 0.5).astype(np.float32),
        )
        for _ in range(2)
    ]
    return [loss for batch in cache.prepare(stream) for loss in trainer.step(batch).tolist()], trainer


@pytest.mark.parametrize(("mini", "micro", "num_losses"), [(6, None, 2), (6, 4, 2), (4, None, 4), (2, 1, 6)])
def test_a_loss_for_each_mini_batch(mini, micro, num_losses):
    losses, trainer = trained(mini, micro)
    assert len(losses) == num_losses
    assert trainer.is_finite()


def test_passes_of_a_mini_batch_move_as_one():
    (whole, expected), (parts, trainer) = trained(6, None), trained(6, 4)
    assert parts == pytest.approx(whole, rel=1e-5)
    rows = np.arange(16)
    found = trainer.cache.groups[0].read(rows)
    torch.testing.assert_close(found, expected.cache.groups[0].read(rows), rtol=1e-4, atol=1e-6)
    for name, parameter in trainer.model.state_dict().items():
        torch.testing.assert_close(parameter, expected.model.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_a_value_that_is_not_finite_is_found():
    _, trainer = trained(6, None)
    trainer.cache.groups[0].slab[3, 1] = torch.nan
    assert not trainer.is_finite()
