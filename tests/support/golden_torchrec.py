"""``python tests/support/golden_torchrec.py OUT``: the runs in ``tests/golden/torchrec``, made anew.

Needs torchrec 1.8.0 and fbgemm-gpu-cpu 1.8.0 (docs/hand_over.md). Of each case OUT gets data, initial parameters as a
model file with our names, and ``case.json``: the command line without paths, and the loss of every step.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS, DIM, DENSE, BATCH, STEPS = (300, 40, 1000, 7, 150), 8, 4, 64, 30
HOTS = (3, 1, 5, 2, 1)  # of fixed bags
NUM_SAMPLES, NUM_TABLES = BATCH * STEPS, len(ROWS)
OPTIMIZERS = {
    "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run: interaction, bags (``one``, ``fixed`` or ``ragged``), and optimizers of torch.optim by name."""

    interaction: str
    bags: str
    rows: tuple[str, dict[str, float]]
    layers: tuple[str, dict[str, float]]
    pooling: str = "sum"
    clip: float | None = None


SGD, ADAGRAD = ("sgd", {"lr": 0.1}), ("adagrad", {"lr": 0.02, "eps": 1e-8})
CASES = {
    "dot_onehot_sgd": Case("dot", "one", SGD, SGD),
    "dcn_onehot_sgd": Case("dcn", "one", SGD, SGD),
    "dcn_ragged_adagrad": Case("dcn", "ragged", ADAGRAD, ADAGRAD),
    "projection_onehot_sgd": Case("projection", "one", SGD, SGD),
    "dot_fixed_split": Case("dot", "fixed", ("adagrad", {"lr": 0.05, "eps": 1e-8}), ("adam", {"lr": 0.002})),
    "dot_ragged_mean_sgd": Case("dot", "ragged", ("sgd", {"lr": 0.2}), ("sgd", {"lr": 0.2}), pooling="mean"),
    "dcn_fixed_adamw": Case("dcn", "fixed", SGD, ("adamw", {"lr": 0.002, "weight_decay": 0.05})),
    "dot_onehot_clip": Case("dot", "one", ("sgd", {"lr": 0.5}), ("sgd", {"lr": 0.5}), clip=0.05),
    "dot_onehot_momentum": Case(
        "dot", "one", SGD, ("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.001})
    ),
}  # fmt: skip


def draw_bags(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all bags, skewed to low numbers, [L] int32, and the bags' lengths [samples, tables]."""
    if kind == "one":
        lengths = np.ones((NUM_SAMPLES, NUM_TABLES), np.int64)
    elif kind == "fixed":
        lengths = np.tile(np.array(HOTS), (NUM_SAMPLES, 1))
    else:
        lengths = rng.integers(0, 8, (NUM_SAMPLES, NUM_TABLES))
    values = [(rng.random(k) ** 3 * ROWS[t]).astype(np.int32) for row in lengths for t, k in enumerate(row)]
    return np.concatenate(values), lengths


def write_ids(folder: Path, kind: str, values: np.ndarray, lengths: np.ndarray) -> None:
    """In one of the three forms that ``npy:`` reads."""
    if kind == "one":
        np.save(folder / "day_0_sparse.npy", values.reshape(-1, NUM_TABLES))
    elif kind == "fixed":
        samples, ends = values.reshape(-1, sum(HOTS)), np.cumsum(HOTS)
        tables = {str(t): np.ascontiguousarray(samples[:, end - HOTS[t] : end]) for t, end in enumerate(ends)}
        np.savez(folder / "day_0_sparse_multi_hot.npz", **tables)
    else:
        np.save(folder / "day_0_sparse_values.npy", values)
        offsets = np.concatenate(([0], np.cumsum(lengths.ravel()))).astype(np.int64)
        np.save(folder / "day_0_sparse_offsets.npy", offsets)


def build(case: Case) -> torch.nn.Module:
    """TorchRec's model."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType  # noqa: PLC0415 - only here
    from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection  # noqa: PLC0415

    tables = [
        EmbeddingBagConfig(
            name=f"t{t}", embedding_dim=DIM, num_embeddings=rows, feature_names=[f"f{t}"],
            pooling=PoolingType.MEAN if case.pooling == "mean" else PoolingType.SUM,
        )
        for t, rows in enumerate(ROWS)
    ]  # fmt: skip
    sizes = EmbeddingBagCollection(tables=tables), DENSE, [16, DIM], [16, 1]
    if case.interaction == "dcn":
        return DLRM_DCN(*sizes, 2, 5)
    if case.interaction == "projection":
        return DLRM_Projection(*sizes, [24, 2 * DIM], [24, 3 * DIM])
    return DLRM(*sizes)


def our_name(name: str) -> str:
    """Our name of a parameter of TorchRec's."""
    parts = name.split(".")
    if "embedding_bags" in name:
        return f"emb_l.{parts[-2][1:]}.weight"
    if name.startswith("dense_arch"):
        return f"bot_l.{2 * int(parts[3])}.{parts[-1]}"
    if "crossnet" in name:
        return ".".join(parts[1:])
    if "interaction_branch" in name:
        return f"{parts[1].removeprefix('interaction_')}_l.{2 * int(parts[4])}.{parts[-1]}"
    return f"top_l.{2 * int(parts[4]) if name.startswith('over_arch.model.0') else 2}.{parts[-1]}"


def in_our_order(weight: torch.Tensor) -> torch.Tensor:
    """The first top layer's weight, [out, D + pairs]: from pairs (0, 1), (0, 2) ... to (1, 0), (2, 0), (2, 1) ..."""
    vectors = NUM_TABLES + 1
    place = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(*np.triu_indices(vectors, 1), strict=True))}
    return weight[:, [*range(DIM), *(DIM + place[j, i] for i in range(vectors) for j in range(i))]]


def arguments(case: Case) -> list[str]:
    """The command line of the same run here."""
    (rows, of_rows), (layers, of_layers) = case.rows, case.layers
    found = [
        f"--arch-embedding-size={'-'.join(map(str, ROWS))}", f"--arch-sparse-feature-size={DIM}",
        f"--arch-mlp-bot={DENSE}-16-{DIM}", "--arch-mlp-top=16-1", "--loss-function=bce", f"--mini-batch-size={BATCH}",
        "--print-freq=1", f"--arch-interaction-op={case.interaction}", f"--optimizer={rows}",
        f"--learning-rate={of_rows['lr']}",
    ]  # fmt: skip
    if case.interaction == "dcn":
        found += ["--dcn-num-layers=2", "--dcn-low-rank-dim=5"]
    if case.interaction == "projection":
        found += [f"--interaction-branch{n}-layer-sizes=24-{(n + 1) * DIM}" for n in (1, 2)]
    if case.pooling == "mean":
        found += ["--pooling=mean"]
    if "eps" in of_rows:
        found += [f"--eps={of_rows['eps']}"]
    if case.layers != case.rows:
        found += [f"--dense-optimizer={layers}", f"--dense-learning-rate={of_layers['lr']}"]
        given = [key for key in ("weight_decay", "momentum") if key in of_layers]
        found += [f"--dense-{key.replace('_', '-')}={of_layers[key]}" for key in given]
    return found if case.clip is None else [*found, f"--clip-grad-norm={case.clip}"]


def features_of(values: np.ndarray, lengths: np.ndarray, step: int) -> Any:
    """The ids of a step as TorchRec takes them, table after table."""
    from torchrec import KeyedJaggedTensor  # noqa: PLC0415 - only here

    ends = np.concatenate(([0], np.cumsum(lengths.ravel())))
    first = step * BATCH * NUM_TABLES
    bags = [
        values[ends[first + n * NUM_TABLES + t] : ends[first + n * NUM_TABLES + t + 1]]
        for t in range(NUM_TABLES)
        for n in range(BATCH)
    ]
    of_step = lengths[step * BATCH : (step + 1) * BATCH]
    return KeyedJaggedTensor(
        [f"f{t}" for t in range(NUM_TABLES)],
        torch.from_numpy(np.concatenate(bags).astype(np.int64)),
        lengths=torch.from_numpy(np.ascontiguousarray(of_step.T).ravel()),
    )


def run(folder: Path, name: str) -> list[float]:
    """Writes a case; the losses."""
    case, rng = CASES[name], np.random.default_rng([1, sorted(CASES).index(name)])
    folder.mkdir(parents=True, exist_ok=True)
    dense = rng.random((NUM_SAMPLES, DENSE), dtype=np.float32)
    values, lengths = draw_bags(rng, case.bags)
    labels = rng.random(NUM_SAMPLES) < 0.3
    np.save(folder / "day_0_dense.npy", dense)
    np.save(folder / "day_0_labels.npy", labels[:, None].astype(np.int32))
    write_ids(folder, case.bags, values, lengths)
    model = build(case)
    parameters = {our_name(name): parameter for name, parameter in model.named_parameters()}
    for key in sorted(parameters):
        shape = tuple(parameters[key].shape)
        drawn = rng.standard_normal(shape) * (0.3 if len(shape) == 1 else (2 / sum(shape)) ** 0.5)
        parameters[key].data.copy_(torch.from_numpy(drawn.astype(np.float32)))
    state = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    if case.interaction == "dot":
        state["top_l.0.weight"] = in_our_order(state["top_l.0.weight"])
    torch.save({"state_dict": state, "opt_state_dict": {}}, folder / "model.pt")
    tables = [parameter for key, parameter in parameters.items() if key.startswith("emb_l")]
    layers = [parameter for key, parameter in parameters.items() if not key.startswith("emb_l")]
    optimizers = [
        OPTIMIZERS[kind](moved, **settings) for (kind, settings), moved in ((case.rows, tables), (case.layers, layers))
    ]
    losses = []
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        logits = model(torch.from_numpy(dense[part]), features_of(values, lengths, step)).squeeze(-1)
        targets = torch.from_numpy(labels[part].astype(np.float32))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if case.clip is not None:
            torch.nn.utils.clip_grad_norm_([*tables, *layers], case.clip)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    (folder / "case.json").write_text(json.dumps({"args": arguments(case), "losses": losses}, indent=1))
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in CASES:
        print(each, *run(Path(sys.argv[1]) / each, each)[:: STEPS - 1])
