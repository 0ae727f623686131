"""What open options become: by the data, by each other and by the machine; and what fits no data."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import usable_processors
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request
from support.options import resolved
from support.runs import SMALL

REFERENCE = ["--data=reference", "--arch-embedding-size=40-30"]


def test_defaults_follow_the_data():
    options = resolved("--data=zipf:samples=5000")
    assert options.model.arch_mlp_bot == (13, 512, 256, 64, 16)
    assert (options.model.arch_mlp_top, options.model.arch_sparse_feature_size) == ((512, 256, 1), 16)
    assert len(options.model.arch_embedding_size) == 26
    assert (options.model.loss_function, options.store.init) == ("bce", "counter")
    assert (options.optimisation.optimizer, options.optimisation.learning_rate) == ("adagrad", 0.01)
    assert (options.batches.mini_batch_size, options.cache.gpu_cache_ratio) == (2048, 1.0)


def test_defaults_of_the_reference():
    options = resolved(*REFERENCE, "--data-size=3")
    assert (options.model.arch_mlp_bot, options.model.arch_mlp_top) == ((4, 3, 2), (4, 2, 1))
    assert (options.model.loss_function, options.store.init, options.optimisation.optimizer) == (
        "mse",
        "reference",
        "sgd",
    )
    assert (options.batches.mini_batch_size, options.batches.test_freq) == (1, -1)


def test_a_size_given_in_bytes_or_rows_is_the_only_one():
    assert resolved(*SMALL, "--gpu-cache-rows=7").cache.gpu_cache_ratio is None
    assert resolved(*SMALL, "--gpu-budget=1GiB").cache.gpu_cache_ratio is None


def test_rows_have_32_bits_unless_asked_and_state_is_of_optimizers_that_keep_some():
    optimisation = resolved(*SMALL).optimisation
    assert (optimisation.row_dtype, optimisation.row_state_dtype) == ("fp32", "fp32")
    assert resolved(*SMALL, "--row-state-dtype=bf16").optimisation.row_state_dtype == "bf16"
    with pytest.raises(UserError, match="--row-state-dtype bf16: --optimizer sgd keeps no state of rows; drop it"):
        resolved(*SMALL, "--row-state-dtype=bf16", "--optimizer=sgd")


def test_an_automatic_budget_is_what_a_device_profile_leaves():
    options = resolved(*SMALL, "--gpu-budget=auto", "--device-memory=4GiB", "--device-reserved=1GiB", "--device=cpu")
    assert (options.cache.gpu_budget, options.cache.predict) == (3 << 30, True)
    with pytest.raises(UserError, match=r"--device-reserved 4\.0 GiB leaves nothing of --device-memory 4\.0 GiB"):
        resolved(*SMALL, "--gpu-budget=auto", "--device-memory=4GiB", "--device-reserved=4GiB")


def test_the_oracle_counts_what_it_is_compared_with():
    assert resolved(*SMALL, "--policy=oracle").cache.report_min
    assert not resolved(*SMALL, "--policy=oracle", "--inference-only").cache.report_min


def test_ten_evaluations_a_run_unless_asked():
    assert resolved(*SMALL, "--nepochs=5").batches.test_freq == 10  # of 100 steps
    assert resolved(*SMALL, "--nepochs=5", "--test-freq=-1").batches.test_freq == -1


def test_an_evaluation_at_the_end_of_each_epoch():
    options = [*SMALL, "--nepochs=3", "--test-freq=epoch"]
    assert resolved(*options).batches.test_freq == 20
    assert resolved(*options, "--num-batches=7").batches.test_freq == 7
    assert resolved(*options, "--steps=4").batches.test_freq == 20  # one at the end alone


@pytest.mark.parametrize(
    ("batch", "threads", "prefetch_depth"), [(8, 1, 0), (128, 1, 2), (2048, usable_processors(), 2)]
)
def test_a_step_takes_all_processors_and_a_thread_beside_where_it_is_worth_them(batch, threads, prefetch_depth):
    # The default layers multiply 0.47 million times a sample.
    arguments = ["--data=zipf:samples=5000", f"--mini-batch-size={batch}", "--device=cpu"]
    options = resolved(*arguments)
    assert (options.run.threads, options.cache.prefetch_depth) == (threads, prefetch_depth)
    options = resolved(*arguments, "--prefetch-depth=5", "--threads=3")
    assert (options.run.threads, options.cache.prefetch_depth) == (3, 5)


@pytest.mark.parametrize(("asked", "tested", "expected"), [(7, -1, (7, 7)), (500, -1, (100, 100)), (7, 30, (7, 30))])
def test_passes_and_evaluations_have_a_mini_batch_at_most_unless_asked(asked, tested, expected):
    batches = resolved(*SMALL, f"--micro-batch-size={asked}", f"--test-mini-batch-size={tested}").batches
    assert (batches.micro_batch_size, batches.test_mini_batch_size) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-ind-range=9", *REFERENCE], "--max-ind-range 9: facebookresearch/dlrm folds the ids of data sets only"),
        (["--data-size=5"], "--data-size belongs to --data reference and --data is zipf; drop one of them"),
    ],
)
def test_what_the_generators_do_not_take(arguments, words):
    with pytest.raises(UserError, match=words):
        data_request(parse_command_line(arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SMALL, "--store-path=x"], "--store-path x is for rows on disk; add --store lmdb or --checkpoint-every"),
        ([*SMALL, "--inference-only", "--store=lmdb"], "--store lmdb is for training"),
        ([*SMALL, "--inference-only", "--checkpoint-every=5"], "--checkpoint-every 5 is for training"),
        ([*SMALL, "--save-predictions", "--test-freq=-1"], "--save-predictions .* --test-freq is -1: never"),
        ([*SMALL, "--save-predictions", "--steps=0"], "a run of no steps has none; raise --steps"),
    ],
)
def test_what_the_run_cannot_do(arguments, words):
    with pytest.raises(UserError, match=words):
        resolved(*arguments)


def test_evaluations_need_held_out_samples(tmp_path):
    np.save(tmp_path / "a_dense.npy", np.zeros((8, 2), np.float32))
    np.save(tmp_path / "a_sparse.npy", np.zeros((8, 3), np.int32))
    np.save(tmp_path / "a_labels.npy", np.zeros((8, 1), np.int32))
    data = f"--data=npy:{tmp_path}"
    assert resolved(data).batches.test_freq == -1
    for option in ("--test-freq=5", "--test-freq=epoch", "--save-predictions"):
        words = option.replace("=", " ")
        with pytest.raises(UserError, match=f"{words}: --data npy:.* holds out no samples.* name them by --test-data"):
            resolved(data, option)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they are taken there")
@pytest.mark.parametrize("option", ["--tf32", "--cuda-graphs"])
def test_what_is_for_cuda(option):
    with pytest.raises(UserError, match=f"{option} is for CUDA and this run is on the CPU; drop it"):
        resolved(*SMALL, option)


@pytest.mark.parametrize(
    ("profile", "given", "device"),
    [("laptop-cpu", [], "cpu"), ("rtx3050-4gb", [], "cuda"), ("rtx3050-4gb", ["--device=cpu"], "cpu")],
)
def test_a_run_takes_the_device_that_is_described_where_there_is_one(monkeypatch, profile, given, device):
    arguments = [*SMALL, f"--profile={profile}", *given]
    assert resolved(*arguments).run.device == ("cuda" if torch.cuda.is_available() and device == "cuda" else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("cachedlrm.options.resolve.free_device_bytes", lambda device: 1 << 40)
    assert resolved(*arguments).run.device == device
