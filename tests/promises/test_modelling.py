"""Every modelling option, cached and uncached with ``==``, and beside a trainer of plain torch modules."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from cachedlrm.export.__main__ import export
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.tables import mixed_dimensions
from cachedlrm.train import main

ROWS = (900, 30, 2000, 7)
COMMON = [
    "--data=zipf:samples=1500,hot=3",
    f"--arch-embedding-size={'-'.join(map(str, ROWS))}",
    "--mini-batch-size=50",
    "--learning-rate=0.05",
    "--print-freq=1",
    "--test-freq=7",
    "--threads=1",
    "--ui=off",
]
DOT = ["--arch-mlp-bot=4-16-8", "--arch-mlp-top=16-1"]
OPTIONS = {
    "plain": DOT,
    "mean": [*DOT, "--pooling=mean", "--micro-batch-size=20"],
    "pooling-fixed": [*DOT, "--weighted-pooling=fixed"],
    "pooling-learned": [*DOT, "--weighted-pooling=learned"],
    "qr-mult": [*DOT, "--qr-flag", "--qr-threshold=100"],
    "qr-add": [*DOT, "--qr-flag", "--qr-threshold=100", "--qr-collisions=3", "--qr-operation=add"],
    "qr-concat": [*DOT, "--qr-flag", "--qr-threshold=5", "--qr-operation=concat", "--arch-sparse-feature-size=4"],
    "md": [*DOT, "--md-flag", "--md-threshold=10"],
    "md-rounded": [*DOT, "--md-flag", "--md-threshold=10", "--md-round-dims", "--md-temperature=0.5"],
    "accumulation": [*DOT, "--mlperf-grad-accum-iter=4"],
    "schedule": [*DOT, "--lr-num-warmup-steps=8", "--lr-decay-start-step=12", "--lr-num-decay-steps=10"],
    "loss": [*DOT, "--loss-function=wbce", "--loss-weights=0.4-1.6", "--loss-threshold=0.05"],
    "cat": ["--arch-mlp-bot=4-16-8", "--arch-mlp-top=16-1", "--arch-interaction-op=cat", "--activation-function=gelu"],
    "itself": [*DOT, "--arch-interaction-itself", "--activation-function=tanh", "--loss-function=mse"],
    "dcn": [*DOT, "--arch-interaction-op=dcn", "--dcn-num-layers=2", "--dcn-low-rank-dim=5"],
    "projection": [
        *[*DOT, "--arch-interaction-op=projection", "--interaction-branch1-layer-sizes=12-16"],
        "--interaction-branch2-layer-sizes=24",
    ],
    "reference-init": [*DOT, "--init=reference", "--md-flag", "--md-threshold=10"],
}


def run(directory: Path, *arguments: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The report of a run and its final parameters with optimizer state."""
    assert main([*COMMON, *arguments, f"--run-dir={directory}"]) == 0
    export(directory, directory / "model.safetensors", with_optimizer_state=True)
    return json.loads((directory / "report.json").read_text()), load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def resident_run(tmp_path_factory):
    """`run` by name of the options and optimizer, with all rows resident."""
    return cache(
        lambda name, optimizer: run(
            tmp_path_factory.mktemp("resident") / "run", *OPTIONS[name], f"--optimizer={optimizer}"
        )
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
@pytest.mark.parametrize("name", OPTIONS)
def test_cached_is_uncached(name, optimizer, tmp_path, resident_run):
    arguments = [*OPTIONS[name], f"--optimizer={optimizer}"]
    resident, expected = resident_run(name, optimizer)
    policy = ["lru", "lfu", "lrfu", "static", "lookahead"][sum(map(ord, name + optimizer)) % 5]
    small = ["--gpu-cache-rows=150", f"--policy={policy}", "--lookahead=4", f"--prefetch-depth={len(name) % 4}"]
    cached, parameters = run(tmp_path / "cached", *arguments, *small)
    assert len(cached["losses"]) == cached["steps"] == 30
    assert cached["losses"] == resident["losses"]
    assert cached["auc"] == resident["auc"]
    assert parameters.keys() == expected.keys()
    assert all((parameters[key] == expected[key]).all() for key in expected)
    for counter in ("evicted_rows", "written_back_rows", "fetched_rows"):
        assert cached[counter] > 0


class PlainDlrm(nn.Module):
    """The reference's model in plain torch, written from its documentation: lists of modules, one bag at a time."""

    def __init__(self, weights: dict[str, np.ndarray], arguments: list[str]) -> None:
        super().__init__()
        self.parameters_by_name = {
            name: nn.Parameter(torch.from_numpy(values.copy())) for name, values in weights.items()
        }
        self.arguments = arguments

    def _mlp(self, name: str, x: torch.Tensor, last: nn.Module) -> torch.Tensor:
        layers = sorted(int(key.split(".")[1]) for key in self.parameters_by_name if key.startswith(f"{name}."))
        numbers = sorted(set(layers))
        activation = {"gelu": nn.GELU(), "tanh": nn.Tanh()}
        chosen = next((a.split("=")[1] for a in self.arguments if a.startswith("--activation")), "relu")
        for number in numbers:
            weight, bias = (self.parameters_by_name[f"{name}.{number}.{part}"] for part in ("weight", "bias"))
            x = x @ weight.T + bias
            x = last(x) if number == numbers[-1] else activation.get(chosen, nn.ReLU())(x)
        return x

    def _bag(self, feature: int, ids: list[int]) -> torch.Tensor:
        p, name = self.parameters_by_name, f"emb_l.{feature}"
        index = torch.tensor(ids, dtype=torch.long)
        if f"{name}.weight_q" in p:
            collisions = len(p[f"{name}.weight_r"])
            quotient = p[f"{name}.weight_q"][index // collisions].sum(0)
            remainder = p[f"{name}.weight_r"][index % collisions].sum(0)
            operation = next((a.split("=")[1] for a in self.arguments if a.startswith("--qr-operation")), "mult")
            if operation == "concat":
                return torch.cat([quotient, remainder])
            return quotient + remainder if operation == "add" else quotient * remainder
        if f"{name}.embs.weight" in p:
            vector = p[f"{name}.embs.weight"][index].sum(0)
            return p[f"{name}.proj.weight"] @ vector if f"{name}.proj.weight" in p else vector
        rows = p[f"{name}.weight"][index]
        if f"v_W_l.{feature}" in p:
            rows = rows * p[f"v_W_l.{feature}"][index].unsqueeze(1)
        return rows.sum(0) / (max(1, len(ids)) if "--pooling=mean" in self.arguments else 1)

    def forward(self, dense: torch.Tensor, bags: list[list[list[int]]]) -> torch.Tensor:
        """``bags``: ids of each sample and feature."""
        chosen = next((a.split("=")[1] for a in self.arguments if a.startswith("--activation")), "relu")
        end = {"gelu": nn.GELU(), "tanh": nn.Tanh()}.get(chosen, nn.ReLU())
        bottom = self._mlp("bot_l", dense, end)
        vectors = torch.stack([torch.stack([self._bag(f, ids) for f, ids in enumerate(sample)]) for sample in bags])
        together = torch.cat([bottom.unsqueeze(1), vectors], dim=1)
        if "--arch-interaction-op=cat" in self.arguments:
            interactions = together.flatten(1)
        elif "--arch-interaction-op=dcn" in self.arguments:
            interactions = first = together.flatten(1)
            for layer in range(2):
                w, v, b = (self.parameters_by_name[f"crossnet.{n}.{layer}"] for n in ("W_kernels", "V_kernels", "bias"))
                interactions = first * (interactions @ v.T @ w.T + b) + interactions
        elif "--arch-interaction-op=projection" in self.arguments:
            rows, columns = (self._mlp(f"branch{n}_l", together.flatten(1), nn.ReLU()) for n in (1, 2))
            products = rows.view(len(dense), 2, 8) @ columns.view(len(dense), 8, 3)
            interactions = torch.cat([bottom, products.flatten(1)], dim=1)
        else:
            offset = 1 if "--arch-interaction-itself" in self.arguments else 0
            count = together.shape[1]
            products = torch.einsum("bid,bjd->bij", together, together)
            pairs = [products[:, i, j] for i in range(count) for j in range(i + offset)]
            interactions = torch.cat([bottom, torch.stack(pairs, dim=1)], dim=1)
        threshold = 0.05 if "--loss-threshold=0.05" in self.arguments else 0.0
        prediction = self._mlp("top_l", interactions, nn.Sigmoid()).squeeze(1)
        return prediction.clamp(threshold, 1 - threshold) if threshold else prediction


@pytest.mark.parametrize("name", OPTIONS)
def test_plain_torch_gives_the_same_losses(name, tmp_path, resident_run):
    arguments = [*OPTIONS[name], "--optimizer=sgd"]
    initial = run(tmp_path / "initial", *arguments, "--steps=0")[1]
    report, final = resident_run(name, "sgd")
    model = PlainDlrm(initial, arguments)
    losses = plain_losses(model, arguments)
    assert report["losses"] == pytest.approx(losses, rel=1e-5)
    for key, values in model.parameters_by_name.items():
        np.testing.assert_allclose(final[key], values.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=key)


def plain_losses(model: PlainDlrm, arguments: list[str]) -> list[float]:
    """Trains with stochastic gradient descent on the samples of `COMMON`."""
    from cachedlrm.data.zipf import ZipfSource  # noqa: PLC0415 - the samples, not the trainer

    source = ZipfSource(ROWS, 4, 123, 1500, 3)
    accumulate = 4 if "--mlperf-grad-accum-iter=4" in arguments else 1
    schedule = "--lr-num-warmup-steps=8" in arguments
    parameters = list(model.parameters_by_name.values())
    losses = []
    first_rows = np.cumsum([0, *ROWS])
    for step in range(30):
        batch = source.read(50 * step, 50 * step + 50)
        bags = [
            [
                [
                    int(row - first_rows[f])
                    for row in batch.rows[batch.offsets[b * 4 + f] : batch.offsets[b * 4 + f + 1]]
                ]
                for f in range(4)
            ]
            for b in range(50)
        ]
        labels = torch.from_numpy(batch.labels)
        prediction = model(torch.from_numpy(batch.dense), bags)
        if "--loss-function=mse" in arguments:
            loss = ((prediction - labels) ** 2).mean()
        else:
            weights = torch.where(labels > 0, 1.6, 0.4) if "--loss-function=wbce" in arguments else torch.ones(50)
            loss = (weights * -(labels * prediction.log() + (1 - labels) * (1 - prediction).log())).mean()
        loss.backward()
        losses.append(loss.item())
        if (step + 1) % accumulate == 0 or step == 29:
            rate = reference_rate(step + 1) if schedule else 0.05
            with torch.no_grad():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.sub_(rate * parameter.grad)
                        parameter.grad = None
    return losses


def reference_rate(step: int) -> float:
    """The reference's policy for a warm-up of 8 steps and a decay of 10 from step 12, worked out by hand."""
    if step < 8:
        return 0.05 * step / 8
    if step < 12:
        return 0.05 * 7 / 8  # where the warm-up ended
    return 0.05 * max(1, 22 - step) ** 2 / 100


def test_the_learning_rate_by_hand():
    rate = LearningRate(1.0, 4, 6, 2)
    assert [rate(step) for step in range(1, 10)] == [0.25, 0.5, 0.75, 0.75, 0.75, 1.0, 0.25, 0.25, 0.25]
    assert [LearningRate(0.5)(step) for step in (1, 100)] == [0.5, 0.5]
    assert [LearningRate(1.0, 4, 4)(step) for step in (3, 4, 5)] == [0.75, 1.0, 1.0]
    assert LearningRate(1.0, 0, 3, 2)(2) == 1.0
    assert LearningRate(1e-7, 0, 0, 10)(9) == 1e-7  # never below, while decaying


def test_mixed_dimensions_by_hand():
    # The smallest table keeps the base; one of 16 times its rows gets 16 ** -0.5 of it, and none less than 1.
    assert mixed_dimensions([160, 10, 10**7], 8, 0.5, round_dims=False) == (2, 8, 1)
    assert mixed_dimensions([10, 40, 90], 8, 0.5, round_dims=False) == (8, 4, 3)
    assert mixed_dimensions([10, 40, 90], 8, 0.5, round_dims=True) == (8, 4, 4)
    assert mixed_dimensions([10, 40, 90], 8, 0.0, round_dims=False) == (8, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--qr-flag", "--md-flag"], ["--qr-flag", "--md-flag", "exclude"]),
        (["--pooling=mean", "--weighted-pooling=learned"], ["--pooling mean", "--weighted-pooling learned"]),
        (["--qr-flag", "--weighted-pooling=learned"], ["--qr-flag", "--weighted-pooling learned"]),
        (["--md-flag", "--weighted-pooling=fixed"], ["--md-flag", "--weighted-pooling fixed"]),
        (["--arch-mlp-bot=4-8", "--arch-sparse-feature-size=4"], ["8", "4", "--arch-mlp-bot"]),
        (
            ["--qr-flag", "--qr-operation=concat", "--arch-mlp-bot=4-8", "--arch-sparse-feature-size=8"],
            ["8", "16", "concat"],
        ),
        (["--qr-flag", "--qr-operation=concat", "--arch-mlp-bot=4-8"], ["table 1", "30", "--qr-threshold 200"]),
        (["--md-flag", "--md-round-dims", "--arch-mlp-bot=4-12"], ["--md-round-dims", "12", "16"]),
        (["--lr-num-warmup-steps=5", "--lr-decay-start-step=3", "--lr-num-decay-steps=2"], ["5", "3"]),
        (["--loss-weights=1.0-2.0"], ["--loss-weights 1.0-2.0", "wbce"]),
        (["--loss-function=wbce", "--loss-weights=1.0"], ["--loss-weights", "1.0"]),
        (["--data-size=5"], ["--data-size", "--data reference"]),
        (["--dcn-num-layers=2"], ["--dcn-num-layers", "--arch-interaction-op dcn", "this is dot"]),
        (["--arch-interaction-op=projection"], ["needs --interaction-branch1-layer-sizes"]),
        (
            [
                *["--arch-interaction-op=projection", "--interaction-branch1-layer-sizes=12-16"],
                *["--interaction-branch2-layer-sizes=20", *DOT],
            ],
            ["--interaction-branch2-layer-sizes ends in 20", "multiple of 8", "--arch-mlp-bot"],
        ),
        (["--arch-interaction-op=dcn", "--arch-interaction-itself"], ["--arch-interaction-itself", "this is dcn"]),
        (["--use-gpu"], ["--use-gpu", "--device cuda"]),
        (["--mlperf-logging"], ["--mlperf-logging", "not carried over"]),
        (["--local_rank=0"], ["--local_rank", "not carried over"]),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, words, capsys, tmp_path):
    assert main([*COMMON, *arguments, f"--run-dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()
