"""The model that options describe: embeddings, their tables, and which tables share a slab."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import printable
from cachedlrm.data.lookups import Router, TablePart
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.features import FeatureVectors
from cachedlrm.model.interaction import InteractionKind
from cachedlrm.model.tables import Embedding, Table, mixed_dimensions
from cachedlrm.options.optimisation import ResolvedOptimisation
from cachedlrm.options.resolved import ResolvedModel
from cachedlrm.store.records import GroupShape, RecordLayout


@dataclass(frozen=True)
class Architecture:
    """The model of a run.

    Attributes:
        options: what it was built from.
        embeddings: one for each sparse feature.
        groups: tables with equal dimension, which share a slab, in order of first appearance.
        layouts: record columns of each group.
    """

    options: ResolvedModel
    embeddings: tuple[Embedding, ...]
    groups: tuple[tuple[Table, ...], ...]
    layouts: tuple[RecordLayout, ...]

    @property
    def shapes(self) -> tuple[GroupShape, ...]:
        """Rows and records of each group."""
        pairs = zip(self.groups, self.layouts, strict=True)
        return tuple(GroupShape(tuple(table.num_rows for table in group), layout) for group, layout in pairs)

    @property
    def mlp_bot(self) -> tuple[int, ...]:
        """Layer sizes of the bottom MLP."""
        return self.options.arch_mlp_bot

    @property
    def mlp_top(self) -> tuple[int, ...]:
        """Layer sizes of the top MLP, its input included."""
        inputs = self.interaction.num_outputs(len(self.embeddings) + 1, self.mlp_bot[-1])
        return (inputs, *self.options.arch_mlp_top)

    @property
    def interaction(self) -> InteractionKind:
        """Of the bottom MLP's output and the features' vectors."""
        options = self.options
        branches = options.interaction_branch1_layer_sizes, options.interaction_branch2_layer_sizes
        return InteractionKind(
            options.arch_interaction_op,
            itself=options.arch_interaction_itself,
            cross_layers=options.dcn_num_layers or 0,
            cross_rank=options.dcn_low_rank_dim or 0,
            branches=tuple(sizes for sizes in branches if sizes is not None),
        )

    def by_table(self, of_features: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """A number of each sparse feature, for the tables of each group."""
        of_table = {
            table.name: of_features[embedding.number] for embedding in self.embeddings for table in embedding.tables
        }
        return tuple(tuple(of_table[table.name] for table in group) for group in self.groups)

    def router(self) -> Router:
        """From batches to the lookups of each group."""
        parts = {
            table.name: TablePart(embedding.number, table.num_rows, embedding.collisions, is_remainder=bool(number))
            for embedding in self.embeddings
            for number, table in enumerate(embedding.tables)
        }
        rows = tuple(embedding.num_ids for embedding in self.embeddings)
        return Router(rows, [[parts[table.name] for table in group] for group in self.groups])

    def dlrm(self, seed: int) -> Dlrm:
        """The dense part with parameters drawn from ``seed``."""
        options, base_dim = self.options, self.mlp_bot[-1]
        return Dlrm(
            FeatureVectors(self.embeddings, self.groups, base_dim, options.qr_operation),
            mlp_bot=self.mlp_bot,
            mlp_top=self.mlp_top[1:],
            interaction=self.interaction,
            activation=options.activation_function,
            loss_threshold=options.loss_threshold,
            seed=seed,
        )


def build_architecture(options: ResolvedModel, optimisation: ResolvedOptimisation) -> Architecture:
    """The model that options describe.

    Args:
        options: of the model.
        optimisation: names the optimizer of rows and how these are kept.

    Raises:
        UserError: sizes that do not fit each other.
    """
    num_ids, dim = options.arch_embedding_size, options.arch_sparse_feature_size
    embeddings = [Embedding(number, ids, dim) for number, ids in enumerate(num_ids)]
    if options.qr_flag:
        embeddings = [_split(embedding, options) for embedding in embeddings]
    if options.md_flag:
        dims = mixed_dimensions(num_ids, dim, options.md_temperature, options.md_round_dims)
        if max(dims) != dim:
            raise UserError(
                f"--md-round-dims rounds --arch-sparse-feature-size {dim} to {max(dims)}; make it a power of two"
            )
        embeddings = [
            Embedding(number, ids, dims[number], mixed=True) if ids > options.md_threshold else embeddings[number]
            for number, ids in enumerate(num_ids)
        ]
    branches = options.interaction_branch1_layer_sizes, options.interaction_branch2_layer_sizes
    for number, sizes in enumerate(branches, 1):
        if sizes is not None and sizes[-1] % options.arch_mlp_bot[-1]:
            raise UserError(
                f"--interaction-branch{number}-layer-sizes ends in {sizes[-1]}, which must be a multiple of "
                f"{options.arch_mlp_bot[-1]}, what --arch-mlp-bot ends in; change one of them"
            )
    by_dim: dict[int, list[Table]] = {}
    for embedding in embeddings:
        for table in embedding.tables:
            by_dim.setdefault(table.dim, []).append(table)
    weighted = options.weighted_pooling == "learned"
    return Architecture(
        options,
        tuple(embeddings),
        tuple(map(tuple, by_dim.values())),
        tuple(
            RecordLayout(
                group_dim, optimisation.optimizer, weighted, optimisation.row_dtype, optimisation.row_state_dtype
            )
            for group_dim in by_dim
        ),
    )


def _split(embedding: Embedding, options: ResolvedModel) -> Embedding:
    """Quotient and remainder tables for a large embedding."""
    if embedding.num_ids > options.qr_threshold:
        return Embedding(embedding.number, embedding.num_ids, embedding.dim, options.qr_collisions)
    if options.qr_operation == "concat":
        raise UserError(
            f"--qr-operation concat makes vectors of {2 * embedding.dim}, but table {embedding.number} with "
            f"{embedding.num_ids} rows is not above --qr-threshold {options.qr_threshold} and has {embedding.dim}; "
            "lower the threshold"
        )
    return embedding


def split_parameters(
    architecture: Architecture, parameters: dict[str, NDArray[np.float32]]
) -> tuple[list[list[NDArray[np.float32]]], dict[str, NDArray[np.float32]]]:
    """Whole tables of each group, with their pooling weights as last column, and the dense parameters.

    Args:
        architecture: of the model they are of.
        parameters: by the reference's names; pooling weights, ``v_W_l.<feature>``, are 1 where there are none.
    """
    left = dict(parameters)
    groups = []
    for group in architecture.groups:
        tables = []
        for table in group:
            weights = left.pop(table.name)
            if architecture.options.weighted_pooling == "learned":
                pooling = left.pop(pooling_name(table), np.ones(len(weights), np.float32))
                weights = np.column_stack([weights, pooling])
            tables.append(weights)
        groups.append(tables)
    return groups, left


def pooling_name(table: Table) -> str:
    """The reference's name of the pooling weights of a plain table."""
    return f"v_W_l.{table.name.split('.')[1]}"


def describe(architecture: Architecture, names: Sequence[str] | None = None) -> list[tuple[str, str, str, str]]:
    """Rows of a table for people: part, shape, parameters, and what it does.

    Args:
        architecture: of the model.
        names: of the features, if the user gave them any.
    """
    rows = [_layer("bot_l", number, sizes) for number, sizes in enumerate(itertools.pairwise(architecture.mlp_bot))]
    for embedding in architecture.embeddings:
        for table in embedding.tables:
            parameters = table.num_rows * table.dim
            purpose = _purpose(embedding, table) + (f" of {printable(names[embedding.number])}" if names else "")
            rows.append((table.name, f"{table.num_rows:,} x {table.dim}", f"{parameters:,}", purpose))
        if embedding.mixed and embedding.dim < architecture.mlp_bot[-1]:
            shape = f"{embedding.dim} -> {architecture.mlp_bot[-1]}"
            parameters = embedding.dim * architecture.mlp_bot[-1]
            rows.append((f"emb_l.{embedding.number}.proj", shape, f"{parameters:,}", "projection"))
    rows.append(_interaction(architecture))
    rows += [_layer("top_l", number, sizes) for number, sizes in enumerate(itertools.pairwise(architecture.mlp_top))]
    return rows


def _layer(name: str, number: int, sizes: tuple[int, int]) -> tuple[str, str, str, str]:
    inputs, outputs = sizes
    return f"{name}.{2 * number}", f"{inputs:,} -> {outputs:,}", f"{inputs * outputs + outputs:,}", "fully connected"


def _interaction(architecture: Architecture) -> tuple[str, str, str, str]:
    kind, sizes = architecture.interaction, (len(architecture.embeddings) + 1, architecture.mlp_bot[-1])
    shape = f"{sizes[0]} x {sizes[1]} -> {architecture.mlp_top[0]:,}"
    parameters = sum(inputs * outputs for inputs, outputs in kind.matrices(*sizes)) + sum(kind.biases(*sizes))
    what = kind.op
    if kind.itself:
        what += ", vectors with themselves too"
    elif kind.op == "dcn":
        what += f", {kind.cross_layers} cross layers of rank {kind.cross_rank}"
    elif kind.op == "projection":
        what += ", " + " and ".join("-".join(map(str, branch)) for branch in kind.branches)
    return "interaction", shape, f"{parameters:,}", what


def _purpose(embedding: Embedding, table: Table) -> str:
    if embedding.collisions:
        return f"ids {'%' if table.name.endswith('_r') else '//'} {embedding.collisions}"
    return "embedding, mixed dimension" if embedding.mixed else "embedding"
