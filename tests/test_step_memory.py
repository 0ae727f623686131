"""What the budget accounts for a step, beside the tensors that a step really holds at its worst moment."""

import itertools
from collections.abc import Callable

import pytest
import torch

from cachedlrm.budget import GroupShape, Workload
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.zipf import ZipfSource
from cachedlrm.model.dlrm import Dlrm, num_interactions
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.store.records import RecordLayout
from cachedlrm.trainer import Trainer
from models import one_group, plain_features

ROWS = (3000, 40, 800, 2000)


def peak_bytes(work: Callable[[], None]) -> int:
    """The most bytes that torch's allocator had given out at once during ``work``, beyond those before it."""
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profile:
        work()
    allocations = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in allocations))


def test_accumulated_gradients_take_the_place_of_the_vectors():
    # Nearly all of the step is vectors: of a large batch, and gradients of the eighth part that is under way.
    layout, passes, mini_batch = RecordLayout(64, "sgd"), 8, 64
    workload = Workload(
        groups=(GroupShape(ROWS, layout),),
        num_features=len(ROWS),
        lookups_per_bag=1,
        mini_batch_size=mini_batch,
        mlp_bot=(5, 64),
        mlp_top=(num_interactions(len(ROWS), 64, "dot", False), 1),
        prefetch_depth=0,
        staging_rows=0,
        num_mini_batches=passes,
    )
    batch = passes * mini_batch
    source = ZipfSource(ROWS, 5, 1, batch)
    cache = one_group(ROWS, layout, sum(ROWS), settings=CacheSettings(prefetch_depth=0))
    model = Dlrm(plain_features(len(ROWS), 64), (5, 64), (1,))
    trainer = Trainer(cache, model, LearningRate(0.01), make_loss("bce", (), torch.device("cpu")), mini_batch)
    (prepared,) = cache.prepare([source.read(0, batch)])
    cache.gather(prepared)  # its buffer stays
    peak = peak_bytes(lambda: trainer.step(prepared))
    vectors = 4 * batch * len(ROWS) * 64
    assert vectors < peak < 1.6 * vectors  # gradients of the whole batch beside them would take as much again
    parts = workload.fixed_bytes((prepared.counters.working_set_rows,))
    assert peak <= parts["activations"]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
@pytest.mark.parametrize(
    ("dim", "hot", "batch", "activation", "interaction"),
    [(16, 1, 256, "relu", "dot"), (64, 8, 64, "relu", "dot"), (8, 2, 200, "gelu", "cat"), (32, 1, 300, "tanh", "cat")],
)
def test_a_step_holds_no_more_than_is_accounted(dim, hot, batch, activation, interaction, optimizer):
    layout = RecordLayout(dim, optimizer)
    bot, top = (5, 96, dim), (64, 32, 1)
    workload = Workload(
        groups=(GroupShape(ROWS, layout),),
        num_features=len(ROWS),
        lookups_per_bag=hot,
        mini_batch_size=batch,
        mlp_bot=bot,
        mlp_top=(num_interactions(len(ROWS), dim, interaction, False), *top),
        prefetch_depth=0,
        staging_rows=0,
        test_batch_size=2 * batch,
        dot=interaction == "dot",
        keeps_inputs=activation in ("gelu", "silu"),
    )
    source = ZipfSource(ROWS, 5, 1, 4 * batch, hot)
    cache = one_group(ROWS, layout, sum(ROWS), settings=CacheSettings(prefetch_depth=0))
    model = Dlrm(plain_features(len(ROWS), dim), bot, top, interaction, activation=activation)
    trainer = Trainer(cache, model, LearningRate(0.01), make_loss("bce", (), torch.device("cpu")), batch)
    most_rows = []

    def work() -> None:
        for prepared in cache.prepare(source.read(start, start + batch) for start in range(0, 4 * batch, batch)):
            most_rows.append(prepared.counters.working_set_rows)
            trainer.step(prepared)
        trainer.evaluate(source, 2 * batch)

    peak = peak_bytes(work)
    parts = workload.fixed_bytes((max(most_rows),))
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    accounted = parts["working_set"] + parts["activations"] + parts["dense"] - parameters
    assert peak <= accounted
    assert peak > accounted / 4, "so much more than needed would waste the card"
