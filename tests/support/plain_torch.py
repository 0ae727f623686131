"""An independent DLRM trainer: torch.nn.EmbeddingBag tables and torch.optim, sharing no code with the package's engine.

It receives initial parameters as tensors and returns losses and final parameters, so it can stand beside any run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cachedlrm.data.batch import Batch

torch.sparse.check_sparse_tensor_invariants.disable()  # torch.optim builds valid ones; without a choice it warns


class RwsAdagrad:
    """Row-wise Adagrad on sparse gradients, from its definition in facebookresearch/dlrm's optim/rwsadagrad.py."""

    def __init__(self, tables, lr, eps=1e-10):
        self.tables, self.eps = list(tables), eps
        self.param_groups = [{"lr": lr}]
        self.sums = [torch.zeros(len(table)) for table in self.tables]

    def step(self):
        for table, sums in zip(self.tables, self.sums, strict=True):
            grad = table.grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
            with torch.no_grad():
                sums[rows] += values.pow(2).mean(dim=1)
                update = values / (sums[rows].sqrt() + self.eps).unsqueeze(1)
                table.add_(torch.sparse_coo_tensor(rows[None], update, table.shape), alpha=-self.param_groups[0]["lr"])

    def zero_grad(self):
        for table in self.tables:
            table.grad = None


def _mlp(state: dict, name: str, last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    index = 0
    while f"{name}.{index}.weight" in state:
        outputs, inputs = state[f"{name}.{index}.weight"].shape
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(state[f"{name}.{index}.weight"])
            linear.bias.copy_(state[f"{name}.{index}.bias"])
        layers += [linear, nn.ReLU()]
        index += 2
    layers[-1] = last
    return nn.Sequential(*layers)


def _bag_pooling(table: torch.Tensor, ids: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """nn.EmbeddingBag's function, with sparse gradients."""
    starts = sizes.cumsum(0) - sizes
    return nn.functional.embedding_bag(ids, table, starts, mode="sum", sparse=True)


def _ordered_pooling(table: torch.Tensor, ids: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The same from nn.Embedding's function, whose backward adds gradients in the order of the lookups."""
    bags = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return torch.zeros(len(sizes), table.shape[1]).index_add(0, bags, nn.functional.embedding(ids, table))


def train_plain(
    batches: list[Batch],
    tables: list[torch.Tensor],
    dense: dict[str, torch.Tensor],
    optimizer: str,
    lr: float,
    interaction: str = "dot",
    ordered: bool = True,
    *,
    row_settings: dict[str, float] | None = None,
    weight_decay: float = 0.0,
    layers: Callable[[list[nn.Parameter]], Any] | None = None,
    clip: float | None = None,
    rates: Callable[[int], tuple[float, float]] | None = None,
    kept: Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[list[float], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of every step, final tables and final dense parameters.

    SGD subtracts the gradients of nn.EmbeddingBag from a row one by one, in the order of its lookups. The others sum
    them first: with ``ordered`` in that order, without by nn.EmbeddingBag, which sorts the lookups with a sort that is
    not stable, so that sums of three or more differ in the last bits.

    ``row_settings`` are of the rows' optimizer, as torch calls them; ``weight_decay`` is of the rows of the batch,
    decoupled; ``layers`` makes the optimizer of dense parameters, by default the rows'; ``clip`` is the most that the
    norm of all gradients may be; ``rates`` gives those of rows and of dense parameters by step, from 1; ``kept`` gives
    what is kept of rows after a step, from its number, that of the table, the rows' numbers there and their weights.
    """
    pooling = _ordered_pooling if ordered and (optimizer != "sgd" or clip) else _bag_pooling
    more = row_settings or {}
    parameters = [nn.Parameter(table.clone()) for table in tables]
    bot, top = _mlp(dense, "bot_l", nn.ReLU()), _mlp(dense, "top_l", nn.Sigmoid())
    row_optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=lr),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=lr, **more),
        "rwsadagrad": lambda p: RwsAdagrad(p, lr, **more),
        "adam": lambda p: torch.optim.SparseAdam(p, lr=lr, **more),
    }[optimizer](parameters)
    counterpart = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}.get(optimizer, torch.optim.Adagrad)
    of_layers = [*bot.parameters(), *top.parameters()]
    dense_optimizer = counterpart(of_layers, lr=lr) if layers is None else layers(of_layers)
    losses = []
    for step, batch in enumerate(batches, 1):
        if rates is not None:
            for moving, rate in zip((row_optimizer, dense_optimizer), rates(step), strict=True):
                moving.param_groups[0]["lr"] = rate
        lookups = list(_lookups_by_table(batch, [len(table) for table in tables]))
        pooled = [pooling(p, ids, sizes) for p, (ids, sizes) in zip(parameters, lookups, strict=True)]
        prediction = top(_interact(bot(torch.from_numpy(batch.dense)), pooled, interaction)).squeeze(1)
        loss = nn.functional.binary_cross_entropy(prediction, torch.from_numpy(batch.labels))
        row_optimizer.zero_grad()
        dense_optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([*parameters, *of_layers], clip)
        for parameter, (ids, _) in zip(parameters, lookups, strict=True):
            with torch.no_grad():
                parameter[ids.unique()] *= 1 - (lr if rates is None else rates(step)[0]) * weight_decay
            if not parameter.grad.is_sparse:  # the lazy optimizers take sparse gradients
                rows = ids.unique()
                parameter.grad = torch.sparse_coo_tensor(rows[None], parameter.grad[rows], parameter.shape)
        row_optimizer.step()
        dense_optimizer.step()
        for table, (ids, _) in enumerate(lookups if kept is not None else ()):
            with torch.no_grad():
                rows = ids.unique()
                parameters[table][rows] = kept(step, table, rows, parameters[table][rows])
        losses.append(loss.item())
    final_dense = {f"bot_l.{k}": v for k, v in bot.state_dict().items()}
    final_dense |= {f"top_l.{k}": v for k, v in top.state_dict().items()}
    return losses, [parameter.detach() for parameter in parameters], final_dense


def _lookups_by_table(batch: Batch, table_rows: list[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids local to the table, and lookups of each of its bags."""
    first_row = 0
    for table, rows in enumerate(table_rows):
        bags = range(table, len(batch.offsets) - 1, len(table_rows))
        spans = [torch.from_numpy(batch.rows[batch.offsets[bag] : batch.offsets[bag + 1]]) for bag in bags]
        yield torch.cat(spans) - first_row, torch.tensor([len(span) for span in spans])
        first_row += rows


def _interact(x: torch.Tensor, pooled: list[torch.Tensor], interaction: str) -> torch.Tensor:
    vectors = torch.stack([x, *pooled], dim=1)
    if interaction == "cat":
        return vectors.flatten(1)
    products = vectors @ vectors.transpose(1, 2)
    lower = [(i, j) for i in range(vectors.shape[1]) for j in range(i)]
    return torch.cat([x, products[:, [i for i, _ in lower], [j for _, j in lower]]], dim=1)
