"""Bytes that a training step holds on the device and a batch on the host, before anything is allocated."""

import itertools
from dataclasses import dataclass

from cachedlrm.model.dense_optimizer import ALIGNMENT
from cachedlrm.model.dense_settings import DenseSettings, counterpart
from cachedlrm.model.interaction import DOT, InteractionKind
from cachedlrm.store.init import DEVICE_TURN_ROWS
from cachedlrm.store.packing import turn_rows
from cachedlrm.store.records import OPTIMIZERS, GroupShape, RecordLayout

_LEAST_STAGING_ROWS = 1024
_SPARE = 1.25  # buffers grow a quarter beyond what a batch needs
# Of each stream that multiplies matrices, as CUBLAS_WORKSPACE_CONFIG of `cachedlrm.train` says: 8 of 4096 KiB.
_CUBLAS_WORKSPACE_BYTES = 32 << 20
# What torch's caching allocator keeps idle of its segments: of two streams less than one of 20 MiB, and two of 2 MiB.
# Measured: benchmarks/simulated_device.py, docs/log/plan.md.
_IDLE_SEGMENT_BYTES = 24 << 20
# A row's indices while index_copy_ sorts them, as it does with deterministic algorithms: linear, sorted, their order,
# and the sort's own copies, of int64 (aten/src/ATen/native/cuda/Indexing.cu).
_SORTED_INDEX_BYTES = 6 * 8
# Of a number while operators of the device round it: its bits, its noise, and their like; each in 32 bits.
_ROUNDED_NUMBER_BYTES = 64
_LOSS_NUMBERS = 8  # of a sample: prediction, loss and their gradients


@dataclass(frozen=True)
class StepShape:
    """The sizes that decide the memory of a training step.

    Attributes:
        groups: of tables.
        num_features: T, sparse features.
        lookups_per_bag: the most lookups a bag can hold in each table of each group.
        mini_batch_size: samples of a loss.
        mlp_bot: layer sizes of the bottom MLP, its input first.
        mlp_top: layer sizes of the top MLP, its (derived) input first.
        prefetch_depth: batches prepared ahead.
        most_staging_rows: rows of a staging buffer, at most; 0 on the CPU, which needs none of its own.
        micro_batch_size: samples that go through the layers at a time, at most; 0: a mini-batch.
        samples_multiplied: samples whose interaction is computed at a time, at most; 0: all that go through the layers.
        num_mini_batches: mini-batches of a step, whose gradients are added up.
        test_batch_size: samples of an evaluation step; 0: none.
        interaction: of the bottom MLP's output and the features' vectors.
        keeps_inputs: whether the activation function's backward needs its input, beside its output.
        bf16: whether layers compute on copies of their parameters of two bytes each.
        cuda_graphs: whether graphs of the passes over a mini-batch keep memory of their own.
        deterministic: whether operators by index sort their indices on CUDA.
        averages: whether the vectors of bags are means, which needs the bags' sizes.
        dense_optimizer: of layers and projections; None: the counterpart of the rows'.
        clips: whether gradients of rows are there while dense parameters move.
    """

    groups: tuple[GroupShape, ...]
    num_features: int
    lookups_per_bag: tuple[tuple[int, ...], ...]
    mini_batch_size: int
    mlp_bot: tuple[int, ...]
    mlp_top: tuple[int, ...]
    prefetch_depth: int
    most_staging_rows: int
    micro_batch_size: int = 0
    samples_multiplied: int = 0
    num_mini_batches: int = 1
    test_batch_size: int = 0
    interaction: InteractionKind = DOT
    keeps_inputs: bool = False
    bf16: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    averages: bool = False
    dense_optimizer: DenseSettings | None = None
    clips: bool = False

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        return self.mini_batch_size * self.num_mini_batches

    @property
    def pass_size(self) -> int:
        """Samples that go through the layers at a time."""
        return min(self.micro_batch_size or self.mini_batch_size, self.mini_batch_size)

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.groups)

    @property
    def working_set_bounds(self) -> tuple[int, ...]:
        """The most unique rows one batch can have, in each group."""
        return self._most_rows(self.batch_size)

    def _most_rows(self, samples: int) -> tuple[int, ...]:
        """The most unique rows that so many samples can have, in each group."""
        return tuple(
            sum(min(rows, samples * lookups) for rows, lookups in zip(group.table_rows, most, strict=True))
            for group, most in zip(self.groups, self.lookups_per_bag, strict=True)
        )

    @property
    def staging_rows(self) -> int:
        """Rows of a staging buffer: no more than a batch can move, but enough to save a whole cache in turns."""
        return min(self.most_staging_rows, max(_LEAST_STAGING_ROWS, *self.working_set_bounds))

    @property
    def batch_host_bytes(self) -> int:
        """The most bytes a batch takes on the host while policy ``lookahead`` waits with it."""
        total = 4 * self.batch_size * (self.mlp_bot[0] + 1)
        for most, rows in zip(self.lookups_per_bag, self.working_set_bounds, strict=True):
            # rows, addresses, previous (int64), offsets, next uses (int32); positions and their transpose (int32)
            total += 32 * rows + 4 * self.batch_size * len(most) + 8 * self.batch_size * sum(most)
        return total

    @property
    def pinned_bytes(self) -> int:
        """Host memory that is pinned, as torch rounds it up: staging and uploads of the largest batch; 0 on the CPU."""
        if not self.staging_rows:
            return 0
        staging = sum(4 * _power_of_two(self.staging_rows * group.layout.record_bytes) for group in self.groups)
        upload = int(_SPARE * self._upload_bytes(self.working_set_bounds)) // (self.prefetch_depth + 2)
        # A buffer that grew leaves a smaller one to torch's cache of pinned memory.
        return staging + (self.prefetch_depth + 2) * 2 * _power_of_two(upload)

    def fixed_bytes(self, working_sets: tuple[int, ...]) -> dict[str, int]:
        """Bytes of everything but the slabs, for batches of at most so many unique rows in each group.

        Buffers stay; beside them lies the memory of a training step, or of an evaluation step if that is more.
        """
        buffers = int(_SPARE * (self._upload_bytes(working_sets) + self._number_bytes(working_sets)))
        vectors, layers, rows = self._step_bytes(working_sets)
        rows = max(rows, self._packing_bytes(working_sets))
        # Parameters, and after them rows, move when the layers have given their memory back.
        moves = self._dense_temporaries
        if self.clips:
            pairs = zip(self.groups, working_sets, strict=True)
            moves += sum(4 * number * group.layout.parameter_width for group, number in pairs)
        step = rows, vectors + max(layers, moves, rows) - rows
        rows, activations = max(step, self._evaluation_bytes(working_sets), key=sum)
        staging = sum(4 * self.staging_rows * group.layout.record_bytes for group in self.groups)
        workspace = 0
        if staging:  # on CUDA; initial rows are computed there in turns, with a few int64 temporaries
            staging += max(6 * 8 * DEVICE_TURN_ROWS * group.layout.dim for group in self.groups)
            staging += max(_rounding_bytes(group.layout, DEVICE_TURN_ROWS) for group in self.groups)
            workspace = _CUBLAS_WORKSPACE_BYTES + _IDLE_SEGMENT_BYTES
            if self.deterministic:
                rows += max(_SORTED_INDEX_BYTES * number for number in working_sets)
        return {
            "staging": staging,
            "working_set": buffers + rows,
            "dense": self._dense_bytes,
            "activations": activations + workspace + (self._graph_bytes(vectors + layers) if self.cuda_graphs else 0),
        }

    def _graph_bytes(self, activations: int) -> int:
        """Bytes that the CUDA graphs of a step keep, whatever runs beside them.

        Args:
            activations: bytes of an eager step's. Pooled vectors are among them; here they are a copy, as other inputs.
        """
        return activations + 4 * self.batch_size * (self.mlp_bot[0] + 1) + _CUBLAS_WORKSPACE_BYTES

    def _upload_bytes(self, working_sets: tuple[int, ...]) -> int:
        """Bytes of the uploaded arrays of all batches in preparation."""
        one = 4 * self.batch_size * (self.mlp_bot[0] + 1)
        for group, most, rows in zip(self.groups, self.lookups_per_bag, working_sets, strict=True):
            # slots, plan's slots and rows (int64), positions and their transpose (int32)
            one += 32 * rows + 8 * self.batch_size * sum(most) + 4 * (self.batch_size * len(most) + rows)
            one += 8 * rows if group.layout.is_packed else 0  # rows, once more, for the noise
        return (self.prefetch_depth + 2) * one

    def _number_bytes(self, working_sets: tuple[int, ...]) -> int:
        """Bytes of the buffers of records' numbers."""
        pairs = zip(self.groups, working_sets, strict=True)
        return sum(4 * rows * group.layout.columns for group, rows in pairs)

    def _packing_bytes(self, working_sets: tuple[int, ...]) -> int:
        """Bytes on CUDA while records of a group become numbers, or numbers records; the CPU needs none."""
        if not self.staging_rows:
            return 0
        return max(
            max(rows * group.layout.record_bytes, _rounding_bytes(group.layout, min(rows, turn_rows(group.layout))))
            if group.layout.is_packed
            else 0
            for group, rows in zip(self.groups, working_sets, strict=True)
        )

    def _step_bytes(self, working_sets: tuple[int, ...]) -> tuple[int, int, int]:
        """Bytes of a training step: pooled vectors, activations and gradients of layers, those of rows after that."""
        row_bytes = pooled = 0
        for group, rows in zip(self.groups, working_sets, strict=True):
            layout = group.layout
            copies = 1 + OPTIMIZERS[layout.optimizer].temporaries + 2 * layout.weighted
            row_bytes += 4 * rows * layout.parameter_width * copies
            # And their gradients, in the same place. Sizes of bags are counted in int32, then kept in float32.
            pooled += self.batch_size * len(group.table_rows) * (layout.dim + (2 if self.averages else 0))
        outputs = sum(self.mlp_bot[1:]) + sum(self.mlp_top[1:])
        kept = outputs * (2 if self.keeps_inputs else 1) + self.mlp_top[0]
        kept += self._interacting(trains=True)
        # A layer's gradient by its output, and that by its activation's input or by its own.
        layers = self.pass_size * (kept + 2 * self._widest + self._combined(trains=True) + _LOSS_NUMBERS)
        # Gradients of a pass before they are added: of one layer after the other, of all projections at once.
        added = max(inputs * outputs for inputs, outputs in self._layers) + sum(self._projections)
        return 4 * pooled, 4 * (layers + self._multiplied(self.pass_size) + added), row_bytes

    def _evaluation_bytes(self, working_sets: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of an evaluation step, which keeps no activations: rows and lookups, then vectors and layers.

        Unique rows grow more slowly than samples, so a test batch of k batches has at most k times their rows.
        """
        row_bytes = pooled = 0
        times = -(-self.test_batch_size // self.batch_size)
        bounds = self._most_rows(self.test_batch_size)
        for group, lookups_per_bag, rows, bound in zip(
            self.groups, self.lookups_per_bag, working_sets, bounds, strict=True
        ):
            bags = self.test_batch_size * len(group.table_rows)
            lookups = self.test_batch_size * sum(lookups_per_bag)
            num_rows = min(times * rows, bound)
            row_bytes += num_rows * (group.layout.record_bytes + 8) + 8 * (lookups + bags)
            row_bytes += num_rows * (4 * group.layout.columns + 8) if group.layout.is_packed else 0
            pooled += bags * (group.layout.dim + (3 if self.averages else 0))  # counted in int64
        numbers = 2 * self._widest + self.mlp_bot[0] + self._combined(trains=False) + self._interacting(trains=False)
        layers = self.test_batch_size * numbers
        return row_bytes, 4 * (pooled + layers + self._multiplied(self.test_batch_size))

    def _multiplied(self, samples: int) -> int:
        """Numbers in a part's vectors, their gradient and its two terms, and their products, while it is multiplied."""
        if self.interaction.op != "dot":
            return 0
        vectors = self.num_features + 1
        products = vectors**2 + (vectors * (vectors - 1) // 2 if self.deterministic else 0)
        return min(samples, self.samples_multiplied or samples) * (3 * vectors * self.mlp_bot[-1] + products)

    def _interacting(self, trains: bool) -> int:
        """Numbers a sample has in an interaction with parameters, beside its result and the gradients of two layers."""
        kind, side_by_side = self.interaction, (self.num_features + 1) * self.mlp_bot[-1]
        if kind.op == "dcn":
            if not trains:
                return 2 * side_by_side + kind.cross_rank  # the first vectors, a layer's factor, and its inner product
            # Those and the input of each layer, whose last output is the result; on the way back one inner product.
            return 2 * kind.cross_layers * side_by_side + (kind.cross_layers + 1) * kind.cross_rank
        if kind.op == "projection":
            # On the way back beside all outputs the gradients of the last ones, of their products and of the vectors.
            last, products = sum(sizes[-1] for sizes in kind.branches), self.mlp_top[0] - self.mlp_bot[-1]
            outputs = sum(map(sum, kind.branches)) * (2 if self.keeps_inputs else 1)
            return (outputs if trains else 0) + last + products + (2 if trains else 1) * side_by_side
        return 0

    def _combined(self, trains: bool) -> int:
        """Numbers a sample has while pooled vectors are combined and projected, beside these."""
        tables = [(len(group.table_rows), group.layout.dim) for group in self.groups]
        if tables == [(self.num_features, self.mlp_bot[-1])]:
            return 0  # each is the vector of its feature
        pooled, vectors = sum(number * dim for number, dim in tables), self.num_features * self.mlp_bot[-1]
        if not trains:
            return 2 * vectors  # one by one, and all in one tensor
        # The same of a copy; on the way back its gradient, to which autograd adds one as large for each table.
        return pooled + vectors + max(vectors, 2 * pooled)

    @property
    def _widest(self) -> int:
        """Numbers that a sample has in the widest layer."""
        return max(*self.mlp_bot, *self.mlp_top, *(size for branch in self.interaction.branches for size in branch))

    @property
    def _layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each; a matrix of the interaction is one, too."""
        of_interaction = self.interaction.matrices(self.num_features + 1, self.mlp_bot[-1])
        return [*itertools.pairwise(self.mlp_bot), *of_interaction, *itertools.pairwise(self.mlp_top)]

    @property
    def _projections(self) -> list[int]:
        """Parameters of each. Tables of all the same dimension need none."""
        dim = self.mlp_bot[-1]
        narrow = [group for group in self.groups if group.layout.dim < dim and len(self.groups) > 1]
        return [group.layout.dim * dim for group in narrow for _ in group.table_rows]

    @property
    def _num_parameters(self) -> int:
        """Of layers and projections, as they lie in memory."""
        biases = *self.mlp_bot[1:], *self.interaction.biases(self.num_features + 1, self.mlp_bot[-1]), *self.mlp_top[1:]
        sizes = [*(inputs * outputs for inputs, outputs in self._layers), *biases, *self._projections]
        return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)

    @property
    def _dense_bytes(self) -> int:
        """Bytes of parameters, gradients and state, and of copies to compute on."""
        states = len(self._dense_settings.state_keys)
        return self._num_parameters * (4 * (2 + states) + (2 if self.bf16 else 0))

    @property
    def _dense_settings(self) -> DenseSettings:
        """Of the optimizer of dense parameters."""
        return self.dense_optimizer or DenseSettings(counterpart(self.groups[0].layout.optimizer))

    @property
    def _dense_temporaries(self) -> int:
        """Bytes while parameters move."""
        return 4 * self._num_parameters * self._dense_settings.temporaries


def _power_of_two(num_bytes: int) -> int:
    """The smallest one that is no less; torch pins memory in these (c10/core/CachingHostAllocator.h)."""
    return 1 << (num_bytes - 1).bit_length()


def _rounding_bytes(layout: RecordLayout, rows: int) -> int:
    """Bytes of temporaries while so many rows are rounded on the device; their records and numbers among them."""
    if not layout.is_packed:
        return 0
    return rows * (layout.record_bytes + (4 + _ROUNDED_NUMBER_BYTES) * layout.columns)
