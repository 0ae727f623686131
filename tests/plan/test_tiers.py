"""Sizes of the tiers from options and data: the step, the slots that are asked for, and what the host has left."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.data.open import open_dataset
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan import tiers as module
from cachedlrm.plan.step_bytes import StepShape
from cachedlrm.plan.tiers import MOST_STAGING_ROWS, Tiers, size_tiers, step_shape
from support.runs import SMALL

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def built(function: Callable[..., Any], *arguments: str, device: torch.device = CPU) -> Any:
    given = {argument.split("=")[0] for argument in arguments}
    options = parse_command_line([*(a for a in SMALL if a.split("=")[0] not in given), *arguments])
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    return function(options, build_architecture(options.model, options.optimisation), dataset, device)


def shape(*arguments: str, device: torch.device = CPU) -> StepShape:
    return built(step_shape, *arguments, device=device)


def sized(*arguments: str, device: torch.device = CPU) -> Tiers:
    return built(size_tiers, *arguments, device=device)


# --- the step


def test_the_step_is_that_of_the_options():
    step = shape("--mini-batch-size=50", "--micro-batch-size=10", "--mlperf-grad-accum-iter=2", "--prefetch-depth=3")
    assert (step.num_features, step.num_rows, step.lookups_per_bag) == (4, 1335, ((1, 1, 1, 1),))
    assert (step.mini_batch_size, step.micro_batch_size, step.num_mini_batches) == (50, 10, 2)
    assert (step.prefetch_depth, step.most_staging_rows) == (3, 0)
    assert shape(device=CUDA).most_staging_rows == MOST_STAGING_ROWS


def test_a_batch_has_no_more_samples_than_the_data():
    assert shape("--mini-batch-size=5000").mini_batch_size == 2000


@pytest.mark.parametrize(("every", "size"), [(10, 70), (-1, 0)])
def test_an_evaluation_has_a_size_if_there_is_one(every, size):
    assert shape("--test-mini-batch-size=70", f"--test-freq={every}").test_batch_size == size


def test_inference_has_no_training_step():
    step = shape("--inference-only", "--mini-batch-size=50")
    assert (step.mini_batch_size, step.num_mini_batches) == (1, 1)
    assert step.test_batch_size > 0
    assert sized("--inference-only").device.groups[0].quota == 1, "rows are read where they are"


# --- the slots that are asked for


def test_without_a_wish_every_row_has_a_slot():
    assert [group.quota for group in sized().device.groups] == [1335]
    assert [group.quota for group in sized("--gpu-cache-rows=300").device.groups] == [300]


def test_the_limit_is_the_budget_or_what_is_free(monkeypatch):
    monkeypatch.setattr(module, "free_device_bytes", lambda device: 12345678)
    assert sized("--gpu-cache-rows=300").device_limit == 12345678
    assert sized("--gpu-budget=2MB").device_limit == 2_000_000


def test_a_device_that_is_not_there_needs_a_budget():
    with pytest.raises(UserError, match="no CUDA device here whose free memory could be planned with; give a --gpu"):
        sized(device=CUDA)


# --- what the host has left


def test_the_host_has_left_what_maps_batches_and_a_device_in_it_do_not_take(monkeypatch):
    monkeypatch.setattr(module, "free_host_bytes", lambda: 1 << 30)
    tiers = sized("--gpu-cache-ratio=0.1", "--policy=lookahead", "--lookahead=7", "--count-rows=False")
    ahead = 7 * tiers.step.batch_host_bytes
    assert (tiers.window, tiers.host.maps, tiers.host.batches, tiers.host.free) == (7, 4 * 1335, ahead, 1 << 30)
    assert tiers.host.slots == 20 * tiers.device.num_slots
    assert tiers.host.records == (1 << 30) - tiers.host.maps - tiers.host.slots - ahead - tiers.device.total_bytes
    assert tiers.table_bytes == 1335 * (8 + 8) * 4, "weights and adagrad's sums"


def test_a_window_ends_with_the_run():
    assert sized("--policy=lookahead", "--lookahead=50", "--steps=3").window == 3


@pytest.mark.parametrize(
    ("free", "arguments", "words"),
    [
        (100, [], r"a batch takes up to .* lower --mini-batch-size"),
        (50_000, ["--mini-batch-size=1", "--arch-embedding-size=900000"], r"900,000 rows need .* --max-ind-range"),
        (
            50_000,
            ["--policy=lookahead", "--lookahead=99", "--nepochs=9"],
            r"--lookahead 99 keeps .* use --lookahead \d",
        ),
    ],
)
def test_what_does_not_fit_names_the_option(monkeypatch, free, arguments, words):
    monkeypatch.setattr(module, "free_host_bytes", lambda: free)
    with pytest.raises(UserError, match=words):
        sized("--gpu-cache-rows=300", *arguments)


def test_the_lookahead_of_the_message_fits(monkeypatch):
    monkeypatch.setattr(module, "free_host_bytes", lambda: 50_000)
    case = ["--gpu-cache-rows=300", "--policy=lookahead", "--nepochs=9", "--host-budget=100KB"]
    with pytest.raises(UserError, match="use --lookahead") as refused:
        sized(*case, "--lookahead=99")
    most = int(str(refused.value).split("use --lookahead ")[1].split()[0])
    assert sized(*case, f"--lookahead={most}").window == most
    with pytest.raises(UserError, match=f"use --lookahead {most} or less"):
        sized(*case, f"--lookahead={most + 1}")
