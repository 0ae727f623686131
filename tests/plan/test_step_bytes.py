"""What the budget accounts for a step, beside the tensors that a step really holds at its worst moment."""

import itertools
from collections.abc import Callable
from contextlib import closing
from random import Random

import pytest
import torch

from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.open import open_dataset
from cachedlrm.data.zipf import ZipfSource
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.interaction import InteractionKind
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan.step_bytes import StepShape
from cachedlrm.run.job import build_job
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.records import GroupShape, RecordLayout
from support.models import one_group, plain_features

WIDE = (
    "--data=zipf:samples=1200 --arch-embedding-size=4000-300-9000-50-800-700 --arch-sparse-feature-size=64 "
    "--arch-mlp-bot=3-64-64 --arch-mlp-top=32-1 --mini-batch-size=400 --ui=off --test-freq=-1 --prefetch-depth=0"
)
ROWS = (3000, 40, 800, 2000)
KINDS = {
    "dot": InteractionKind("dot"),
    "cat": InteractionKind("cat"),
    "dcn": InteractionKind("dcn", cross_layers=3, cross_rank=24),
    "projection": InteractionKind("projection", branches=((48, 64), (32, 16))),
}


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
    shape = StepShape(
        groups=(GroupShape(ROWS, layout),),
        num_features=len(ROWS),
        lookups_per_bag=((1,) * len(ROWS),),
        mini_batch_size=mini_batch,
        mlp_bot=(5, 64),
        mlp_top=(InteractionKind("dot").num_outputs(len(ROWS) + 1, 64), 1),
        prefetch_depth=0,
        most_staging_rows=0,
        num_mini_batches=passes,
    )
    batch = passes * mini_batch
    source = ZipfSource(ROWS, 5, 1, batch)
    cache = one_group(ROWS, layout, sum(ROWS), settings=CacheSettings(prefetch_depth=0))
    model = Dlrm(plain_features(len(ROWS), 64), (5, 64), (1,))
    trainer = Trainer(cache, model, LearningRate(0.01), make_loss("bce", (), torch.device("cpu")), mini_batch)
    (prepared,) = cache.prepare([source.read(0, batch)])
    cache.begin(prepared)  # its buffer stays
    peak = peak_bytes(lambda: trainer.step(prepared))
    vectors = 4 * batch * len(ROWS) * 64
    assert vectors < peak < 1.6 * vectors  # gradients of the whole batch beside them would take as much again
    rows = prepared.counters.working_set_rows
    parts = shape.fixed_bytes((rows,))
    assert peak <= parts["activations"] + 4 * rows * 64


FORMS = (  # without --bf16, for which the CPU's matrix library takes memory of its own
    "",
    "--qr-flag --qr-threshold=100",
    "--md-flag --md-threshold=40",
    "--weighted-pooling=learned",
    "--arch-interaction-op=cat",
    "--activation-function=gelu",
    "--mlperf-grad-accum-iter=2",
    "--loss-threshold=0.1",
    "--arch-interaction-op=dcn",
    "--arch-interaction-op=projection",
    "--pooling=mean",
    "--clip-grad-norm=0.1 --dense-optimizer=adam",
    "--clip-grad-norm=0.1 --weighted-pooling=learned --dense-weight-decay=0.1",
    "--dense-optimizer=sgd --dense-momentum=0.9",
)


def drawn_job(seed: int) -> list[str]:
    """A command line of some shape and form."""
    random = Random(seed)
    dim, samples = random.choice([1, 2, 16, 64, 128]), random.choice([1, 7, 64, 400])
    layers = [[random.choice([2, 16, 128, 256]) for _ in range(random.randint(0, 2))] for _ in range(2)]
    rows = [random.choice([3, 50, 900, 20_000]) for _ in range(random.randint(1, 8))]
    words = (
        f"--data=zipf:samples={3 * samples},hot={random.choice([1, 1, 5])} --mini-batch-size={samples} "
        f"--micro-batch-size={random.choice([samples, -(-samples // 4)])} --test-freq={random.choice([-1, 2])} "
        f"--arch-embedding-size={'-'.join(map(str, rows))} --arch-sparse-feature-size={dim} "
        f"--arch-mlp-bot={'-'.join(map(str, [3, *layers[0], dim]))} "
        f"--arch-mlp-top={'-'.join(map(str, [*layers[1], 1]))} "
        f"--optimizer={random.choice(['sgd', 'adagrad', 'rwsadagrad', 'adam'])} --ui=off --prefetch-depth=0"
    )
    form = FORMS[seed % len(FORMS)].split()
    if "--arch-interaction-op=projection" in form:
        sizes = [(random.choice([2, 200]), dim * random.choice([1, 7])) for _ in range(2)]
        form += [f"--interaction-branch{number}-layer-sizes={a}-{b}" for number, (a, b) in enumerate(sizes, 1)]
    return [*words.split(), *form]


@pytest.mark.parametrize("seed", range(3 * len(FORMS)))
def test_what_is_drawn_holds_no_more_than_is_accounted(tmp_path, seed):
    options = parse_command_line(drawn_job(seed))
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    with closing(build_job(options, dataset, tmp_path)) as job:
        trainer, most_rows = job.trainer, [0] * len(job.trainer.cache.groups)

        def work() -> None:
            for batch in trainer.cache.prepare(job.schedule.batches()):
                rows = [len(lookups.slots) for lookups in batch.tensors.lookups]
                most_rows[:] = map(max, most_rows, rows)
                trainer.step(batch)
            if options.batches.test_freq > 0:
                trainer.evaluate(dataset.test, options.batches.test_mini_batch_size)

        peak, parts = peak_bytes(work), job.tiers.step.fixed_bytes(tuple(most_rows))
        held = sum(parameter.nbytes for parameter in trainer.model.parameters())
        state = [entry.values() for entry in trainer.optimizer_state().values()]
        kept = sum(tensor.nbytes for tensors in state for tensor in tensors if tensor.dim())
    assert peak <= parts["working_set"] + parts["activations"], drawn_job(seed)
    assert parts["dense"] >= 2 * held + kept, "parameters, gradients and state"


@pytest.mark.parametrize("trick", ["--qr-flag --qr-threshold=1 --qr-collisions=2", "--md-flag --md-threshold=1"])
@pytest.mark.parametrize("work", ["training", "evaluation"])
def test_combined_vectors_are_accounted_where_rows_are_few(tmp_path, trick, work):
    few = "--arch-embedding-size=8-16-4-6-8-12-4-8-64-9 --arch-sparse-feature-size=128 --arch-mlp-bot=3-128"
    many = "--mini-batch-size=2000 --test-freq=-1" if work == "training" else "--mini-batch-size=10 --test-freq=1"
    fixed = "--data=zipf:samples=16000 --arch-mlp-top=1 --ui=off --prefetch-depth=0 --test-mini-batch-size=2000"
    options = parse_command_line([*few.split(), *many.split(), *fixed.split(), *trick.split()])
    dataset = open_dataset(options.data.data, None, data_request(options))
    assert dataset.test is not None
    assert dataset.test.num_samples == 2000
    with closing(build_job(resolve(options, dataset), dataset, tmp_path)) as job:
        (batch,) = job.trainer.cache.prepare([job.schedule.read(0)])
        run = job.trainer.step if work == "training" else job.trainer.evaluate
        arguments = (batch,) if work == "training" else (dataset.test, 2000)
        peak, parts = peak_bytes(lambda: run(*arguments)), job.tiers.device.breakdown
    accounted = parts["working_set"] + parts["activations"]
    assert accounted / 3 < peak <= accounted


@pytest.mark.parametrize("work", ["training", "evaluation"])
@pytest.mark.parametrize(
    "interaction",
    [
        "--arch-interaction-op=dcn --dcn-num-layers=3 --dcn-low-rank-dim=160",
        "--arch-interaction-op=projection --interaction-branch1-layer-sizes=512-640 "
        "--interaction-branch2-layer-sizes=640",
    ],
    ids=["dcn", "projection"],
)
def test_an_interaction_is_accounted_where_it_is_nearly_all(tmp_path, interaction, work):
    options = parse_command_line(
        [
            *["--data=zipf:samples=4000", "--arch-embedding-size=40-30-90-50-80-70-40-30-90-50", "--ui=off"],
            *["--arch-sparse-feature-size=64", "--arch-mlp-bot=3-64", "--arch-mlp-top=64-1", "--optimizer=sgd"],
            *f"--mini-batch-size={400 if work == 'training' else 40} --test-mini-batch-size=400".split(),
            *f"--test-freq={-1 if work == 'training' else 1} --prefetch-depth=0".split(),
            *interaction.split(),
        ]
    )
    dataset = open_dataset(options.data.data, None, data_request(options))
    with closing(build_job(resolve(options, dataset), dataset, tmp_path)) as job:
        batches = job.trainer.cache.prepare(job.schedule.batches())
        job.trainer.step(next(batches))  # its buffers stay
        batch = next(batches)
        run = job.trainer.step if work == "training" else job.trainer.evaluate
        arguments = (batch,) if work == "training" else (dataset.test, 400)
        peak, parts = peak_bytes(lambda: run(*arguments)), job.tiers.device.breakdown
    accounted = parts["activations"]
    assert accounted / 2 < peak <= accounted + parts["working_set"]
    vectors = 4 * 400 * 11 * 64
    assert peak > (7 if work == "training" else 4) * vectors, "the interaction is not nearly all"


def test_a_pass_over_fewer_samples_holds_less(tmp_path):
    def peak(arguments: str) -> int:
        options = parse_command_line([*WIDE.split(), *arguments.split()])
        dataset = open_dataset(options.data.data, None, data_request(options))
        with closing(build_job(resolve(options, dataset), dataset, tmp_path)) as job:
            (batch,) = job.trainer.cache.prepare([job.schedule.read(0)])
            job.trainer.cache.begin(batch)  # its buffer stays
            return peak_bytes(lambda: job.trainer.step(batch))

    vectors = 4 * 400 * 6 * 64
    whole, passes = peak("--optimizer=sgd"), peak("--optimizer=sgd --micro-batch-size=20")
    assert vectors < passes < 1.5 * vectors  # beside the vectors a twentieth of the rest
    assert whole > 2 * vectors


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
@pytest.mark.parametrize(
    ("dim", "hot", "batch", "activation", "interaction", "row_dtype"),
    [
        (16, 1, 256, "relu", "dot", "fp32"),
        (64, 8, 64, "relu", "dot", "fp32"),
        (8, 2, 200, "gelu", "cat", "fp32"),
        (32, 1, 300, "tanh", "cat", "bf16"),
        (32, 1, 300, "relu", "dcn", "fp32"),
        (16, 2, 200, "gelu", "projection", "fp16"),
    ],
)
def test_a_step_holds_no_more_than_is_accounted(dim, hot, batch, activation, interaction, row_dtype, optimizer):
    layout = RecordLayout(dim, optimizer, row_dtype=row_dtype)
    bot, top, kind = (5, 96, dim), (64, 32, 1), KINDS[interaction]
    shape = StepShape(
        groups=(GroupShape(ROWS, layout),),
        num_features=len(ROWS),
        lookups_per_bag=((hot,) * len(ROWS),),
        mini_batch_size=batch,
        mlp_bot=bot,
        mlp_top=(kind.num_outputs(len(ROWS) + 1, dim), *top),
        prefetch_depth=0,
        most_staging_rows=0,
        test_batch_size=2 * batch,
        interaction=kind,
        keeps_inputs=activation in ("gelu", "silu"),
    )
    source = ZipfSource(ROWS, 5, 1, 4 * batch, hot)
    cache = one_group(ROWS, layout, sum(ROWS), settings=CacheSettings(prefetch_depth=0))
    model = Dlrm(plain_features(len(ROWS), dim), bot, top, kind, activation=activation)
    trainer = Trainer(cache, model, LearningRate(0.01), make_loss("bce", (), torch.device("cpu")), batch)
    most_rows = []

    def work() -> None:
        for prepared in cache.prepare(source.read(start, start + batch) for start in range(0, 4 * batch, batch)):
            most_rows.append(prepared.counters.working_set_rows)
            trainer.step(prepared)
        trainer.evaluate(source, 2 * batch)

    peak = peak_bytes(work)
    parts = shape.fixed_bytes((max(most_rows),))
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    accounted = parts["working_set"] + parts["activations"] + parts["dense"] - parameters
    assert peak <= accounted
    assert peak > accounted / 4, "so much more than needed would waste the card"
