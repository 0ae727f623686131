"""`CachedEmbeddingBagCollection` and `CachedEmbeddingCollection`: TorchRec's collections over cached tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import free_host_bytes
from cachedlrm.base.units import format_bytes
from cachedlrm.library.engine import Choices
from cachedlrm.library.ids import FeatureIds, named_ids
from cachedlrm.library.keyed import jagged_tensor, keyed_tensor
from cachedlrm.library.lookups import Part, Routes
from cachedlrm.library.module import CachedTables
from cachedlrm.library.saved import prefix, saved_groups
from cachedlrm.library.tables import TableSet, own_init, table_of, with_features


class CachedCollection(CachedTables):
    """Named tables that may be far larger than the device, trained by an optimizer of their own.

        for batch in collection.prefetch(loader, lambda batch: batch.features):
            loss = loss_function(model(batch), batch.labels)  # calls collection(batch.features)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # the model's other parameters
            collection.step()  # the rows of the batch

    `prefetch` prepares rows ahead in a thread; without it ``forward`` prepares them when it is called. In evaluation
    mode and under ``torch.no_grad()`` ``forward`` reads the current rows, and changes neither rows nor cache. The
    tables are not an ``nn.Parameter``: ``model.parameters()`` are the other parameters alone.

    Args:
        tables: `cachedlrm.EmbeddingTable`, or TorchRec's ``EmbeddingBagConfig`` and ``EmbeddingConfig``.
        optimizer: ``sgd``, ``adagrad``, ``rwsadagrad`` (one sum a row) or ``adam`` (lazy, as torch.optim.SparseAdam).
        learning_rate: of the rows; the attribute of this name may be changed between steps.
        eps: added to the root that a gradient is divided by. Default: torch's, 1e-10, of adam 1e-8.
        weight_decay: decoupled, as torch.optim.AdamW has it; only rows of the batch decay.
        cache_rows: how many rows the device keeps. The unique rows of one step must fit.
        cache_budget: bytes of their records, instead: a number, or ``"2GiB"``.
        policy: which rows leave first: ``lru``, ``lfu``, ``lrfu``, ``lookahead``, which needs `prefetch`, or
            ``static``, which needs ``row_counts``.
        lookahead: batches that policy ``lookahead`` knows ahead.
        prefetch_depth: batches that `prefetch` prepares ahead; 0: no thread.
        accumulate: batches whose gradients one step adds up.
        store: ``host``: records that are not on the device are in memory; ``lmdb``: on disk where ``host_budget``
            does not hold them.
        store_path: folder on disk for ``lmdb``, which is room for this process and no saved state. Default: a folder
            for temporary files, which goes with the collection.
        host_budget: the most bytes of records in memory: a number, or ``"4GiB"``. Default: the free memory; with
            ``lmdb`` half of it.
        weights: initial weights of tables by name, [rows, columns], which are copied. Others begin uniform in
            ±sqrt(1 / rows), computed from ``seed`` when a row is first touched, so that tables of any size start at
            once and rows never touched take no memory.
        seed: of the initial weights.
        row_dtype: how weights are kept everywhere: ``fp32``, ``bf16`` or ``fp16``, rounded stochastically by noise that
            is a function of seed, row, column and step, so that a cached run has the bits of a resident one.
        row_state_dtype: how optimizer state is kept: ``fp32`` or ``bf16``.
        row_counts: lookups of each row of each table, by name; of policy ``static`` alone.
        report_min: count the rows that Belady's MIN would move, for `stats`.
        device: where cached rows and results are.

    Raises:
        UserError: an argument does not fit; the message names it.
    """

    _pools: bool

    def __init__(
        self,
        tables: Sequence[Any],
        *,
        optimizer: str = "adagrad",
        learning_rate: float = 0.01,
        eps: float | None = None,
        weight_decay: float = 0.0,
        cache_rows: int | None = None,
        cache_budget: int | str | None = None,
        policy: str = "lrfu",
        lookahead: int = 200,
        prefetch_depth: int = 2,
        accumulate: int = 1,
        store: str = "host",
        store_path: Path | str | None = None,
        host_budget: int | str | None = None,
        weights: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        row_dtype: str = "fp32",
        row_state_dtype: str = "fp32",
        row_counts: Mapping[str, NDArray[np.integer]] | None = None,
        report_min: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._configs = [with_features(config) for config in tables]
        table_set = TableSet([table_of(config, self._pools, row_dtype) for config in self._configs], self._pools)
        given = {
            number: weight for number, config in enumerate(self._configs) if (weight := own_init(config)) is not None
        }
        given |= {table_set.number(name): weight for name, weight in (weights or {}).items()}
        self._feature_names = [feature.name for feature in table_set.features]
        self._output_names = [feature.output for feature in table_set.features]
        of_features = [table_set.tables[feature.table] for feature in table_set.features]
        self._lengths = [table.embedding_dim for table in of_features]
        self._num_columns = sum(self._lengths)
        self._means: list[NDArray[np.bool_] | None] = []  # of each group which features are averaged; None: no one is
        for group in table_set.groups:
            means = np.array([of_features[feature].pooling == "mean" for feature in group.features])
            self._means.append(means if means.any() else None)
        labels = [f"feature {feature.name}" for feature in table_set.features]
        counts = None
        if row_counts is not None:
            counts = {table_set.number(name): np.asarray(values) for name, values in row_counts.items()}
        choices = Choices(
            optimizer=optimizer,
            eps=eps,
            weight_decay=weight_decay,
            cache_rows=cache_rows,
            cache_budget=cache_budget,
            policy=policy,
            lookahead=lookahead,
            prefetch_depth=prefetch_depth,
            seed=seed,
            device=device,
            store=store,
            store_path=store_path,
            host_budget=host_budget,
            row_counts=counts,
            report_min=report_min,
            row_dtype=row_dtype,
            row_state_dtype=row_state_dtype,
        )
        super().__init__(
            table_set,
            choices,
            Routes(table_set, labels, "correct the data or raise num_embeddings of its table"),
            weights=given,
            learning_rate=learning_rate,
            accumulate=accumulate,
        )

    def _ids(self, features: Any) -> FeatureIds:
        return named_ids(features, self._feature_names)

    def weight(self, name: str, ids: Tensor | None = None) -> Tensor:
        """Current weights of a table on the host, of all its rows or of some ``ids`` [n]: [n, columns].

        Raises:
            UserError: there is no such table or row; rows are on the move.
        """
        return self._read_weight(self._engine.tables.number(name), ids)

    # --- state, in TorchRec's names

    def _save_to_state_dict(self, destination: dict[str, Any], prefix_: str, keep_vars: bool) -> None:
        self._check_whole()
        self._check_at_rest("state_dict")
        num_bytes = sum(4 * table.num_embeddings * table.embedding_dim for table in self._engine.tables.tables)
        if num_bytes > free_host_bytes():
            raise UserError(
                f"state_dict holds whole tables, {format_bytes(num_bytes)}, and {format_bytes(free_host_bytes())} are "
                "free; call save(path), which takes no memory"
            )
        for number, table in enumerate(self._engine.tables.tables):
            destination[f"{prefix_}{self._key(table.name)}"] = self._engine.weight(number, None)

    def _key(self, table: str) -> str:
        return f"{prefix(self._engine)}.{table}.weight"

    def _load_from_state_dict(  # noqa: PLR0917 - torch.nn.Module's signature
        self,
        state_dict: dict[str, Any],
        prefix_: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes over weights. Optimizer state stays, as it does where parameters are loaded beside an optimizer."""
        self._check_whole()
        engine = self._engine
        keys = {number: f"{prefix_}{self._key(table.name)}" for number, table in enumerate(engine.tables.tables)}
        ours = {key for key in state_dict if key.startswith(prefix_)}
        unexpected_keys.extend(sorted(ours - set(keys.values())) if strict else [])
        missing_keys.extend(key for key in keys.values() if key not in state_dict)
        if not ours & set(keys.values()):
            return
        try:
            self._leave_current("load_state_dict")
            self.end_prefetch()
            weights = {
                number: state_dict[key] if key in state_dict else engine.weight(number, None)
                for number, key in keys.items()
            }
            for number, weight in weights.items():
                table = engine.tables.tables[number]
                if tuple(weight.shape) != (table.num_embeddings, table.embedding_dim):
                    raise UserError(
                        f"{keys[number]} is {list(weight.shape)}, the table is "
                        f"{[table.num_embeddings, table.embedding_dim]}"
                    )
            self._replace_weights(weights)
        except UserError as error:
            error_msgs.append(str(error))

    def _replace_weights(self, weights: Mapping[int, Tensor]) -> None:
        engine = self._engine
        saved = [(rows, records(0, len(rows)).copy()) for rows, records in saved_groups(engine)]
        with engine.whole_or_broken():
            engine.take_weights(weights)
            engine.open()
            for number, (rows, records) in enumerate(saved):
                fresh = np.empty_like(records)
                engine.cache.groups[number].init.fill(rows, fresh)
                words = engine.layouts[number].parameter_words
                records[:, :words] = fresh[:, :words]
                engine.put(number, [(rows, records)])


class CachedEmbeddingBagCollection(CachedCollection):
    """TorchRec's ``EmbeddingBagCollection`` over cached tables, with the optimizer of its rows.

    The rows of a bag are summed or averaged, as ``pooling`` of its table says; an empty bag is 0. The arguments are
    those of `CachedCollection`.
    """

    _pools = True

    def forward(self, features: Any) -> Any:
        """Pooled rows of each sample and feature.

        Args:
            features: see `cachedlrm.library.ids.named_ids`: a ``KeyedJaggedTensor``, or a dictionary from feature names
                to (values, offsets), ids [B] or ids [B, L]; int32 or int64, on the host.

        Returns:
            A ``KeyedTensor`` [B, sum of columns] float32, TorchRec's for a ``KeyedJaggedTensor``. A feature that is
            looked up in several tables is called ``feature@table``.

        Raises:
            UserError: ids that do not fit; other ids than those of the batch that `prefetch` handed out; the batch
                before was not trained.
        """
        return (self._not_compiled if torch.compiler.is_compiling() else self._look_up)(features)

    def _look_up(self, features: Any) -> Any:
        part, tables = self._part(None, features), self._engine.tables
        vectors = self._vectors(part)
        if len(vectors) == 1:
            pooled = self._averaged(vectors[0], part, 0).view(part.num_samples, self._num_columns)
            return keyed_tensor(features, self._output_names, self._lengths, pooled)
        blocks: list[Tensor] = [torch.empty(0)] * len(tables.features)
        for number, group in enumerate(tables.groups):
            averaged = self._averaged(vectors[number], part, number)
            of_group = averaged.view(part.num_samples, len(group.features), group.dim)  # of no samples, too
            for feature, block in zip(group.features, of_group.unbind(1), strict=True):
                blocks[feature] = block
        return keyed_tensor(features, self._output_names, self._lengths, torch.cat(blocks, dim=1))

    def _averaged(self, pooled: Tensor, part: Part, group: int) -> Tensor:
        """Sums [B * T, D] to means where tables say so."""
        means = self._means[group]
        if means is None:
            return pooled
        sizes = np.diff(part.lookups[group].offsets)
        divisors = np.where(np.tile(means, part.num_samples), np.maximum(sizes, 1), 1).astype(np.float32)
        return pooled / torch.from_numpy(divisors).to(pooled.device, non_blocking=True).unsqueeze(1)

    def embedding_bag_configs(self) -> list[Any]:
        """The tables, as they were given."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether lookups have weights: no."""
        return False


class CachedEmbeddingCollection(CachedCollection):
    """TorchRec's ``EmbeddingCollection`` over cached tables, with the optimizer of its rows.

    Rows are not pooled, as models of sequences need them. The arguments are those of `CachedCollection`.
    """

    _pools = False

    def forward(self, features: Any) -> dict[str, Any]:
        """Rows of each lookup.

        Args:
            features: see `cachedlrm.library.ids.named_ids`: a ``KeyedJaggedTensor``, or a dictionary from feature names
                to (values, offsets), ids [B] or ids [B, L]; int32 or int64, on the host.

        Returns:
            A ``JaggedTensor`` of each feature, [lookups, columns] float32, TorchRec's for a ``KeyedJaggedTensor``. A
            feature that is looked up in several tables is called ``feature@table``.

        Raises:
            UserError: ids that do not fit; other ids than those of the batch that `prefetch` handed out; the batch
                before was not trained.
        """
        found: dict[str, Any] = (self._not_compiled if torch.compiler.is_compiling() else self._look_up)(features)
        return found

    def _look_up(self, features: Any) -> dict[str, Any]:
        part, tables = self._part(None, features), self._engine.tables
        vectors, bounds, num_samples = self._vectors(part), part.bounds, part.num_samples
        assert bounds is not None
        found: dict[int, Any] = {}
        for group, of_group in zip(tables.groups, vectors, strict=True):
            first = 0
            for feature in group.features:
                offsets = bounds[feature * num_samples : (feature + 1) * num_samples + 1]
                count = int(offsets[-1] - offsets[0])
                on_device = torch.from_numpy(offsets - offsets[0]).to(self.device)
                found[feature] = jagged_tensor(features, of_group[first : first + count], on_device)
                first += count
        return {name: found[feature] for feature, name in enumerate(self._output_names)}

    def embedding_configs(self) -> list[Any]:
        """The tables, as they were given."""
        return self._configs

    def embedding_dim(self) -> int:
        """Columns of the first table."""
        return self._engine.tables.tables[0].embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        """Names of the results, table by table."""
        tables = self._engine.tables
        return [
            [feature.output for feature in tables.features if feature.table == number]
            for number in range(len(tables.tables))
        ]

    def need_indices(self) -> bool:
        """Whether results hold the ids: no."""
        return False
