"""Forward and backward pass as two CUDA graphs: two launches in place of some sixty.

A graph repeats kernels, their arguments and their addresses as they were when it was captured ("CUDA semantics: CUDA
Graphs" in torch's documentation). So everything stays at its place: parameters and their gradients are views that
`DenseOptimizer` made, a batch is copied into buffers of its own, and results are in the same tensors each time. The
kernels are those of the eager pass, on operands aligned as there, so results have the same bits. The learning rate and
Adam's corrections are numbers of one step; their optimizer's step stays outside.

Two graphs, not one: between them the phases' clock records an event, which within a graph would be a part of it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cachedlrm.model.dense_pass import DensePass

# Eager passes before the capture, in which a library may not load or allocate as it does at its first call. As many
# as torch.cuda.make_graphed_callables makes.
_WARM_UP_PASSES = 3

Work = Callable[[], list[Tensor]]
"""Issues operators to the device; returns their results."""


class Recorder(Protocol):
    """Captures work without doing it."""

    def __call__(self, work: Work) -> Work:
        """A function that does the work again at the same addresses: its results are in the same tensors each time."""
        ...


class CudaRecorder:
    """Captures CUDA graphs that share their memory: they must be replayed in the order of their capture.

    The memory is theirs as long as they are: no other work is given it, however long it lies idle.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # The default stream cannot be captured, and torch's own for captures is shared: the destruction of another
        # graph would free the workspace of cuBLAS that these use (https://github.com/pytorch/pytorch/issues/193402).
        self._stream = torch.cuda.Stream()

    def __call__(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Meanwhile the prefetch thread moves rows on a stream of its own and may allocate, which mode "global", the
        # default, takes for an error.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            results = work()

        def replay() -> list[Tensor]:
            graph.replay()
            return results

        return replay


class GraphedPass:
    """Passes over batches of one size: eager at first, then graphs.

    Capturing executes nothing: the batch at hand is replayed right after, so each is trained once. The eager passes
    before are those of steps, too.

    Args:
        dense_pass: of a model of plain tables. That of others runs autograd, whose own thread was not warmed up.
        record: captures work.
    """

    def __init__(self, dense_pass: DensePass, record: Recorder) -> None:
        self._dense_pass = dense_pass
        self._record = record
        self._passes_left = _WARM_UP_PASSES  # to make eagerly
        self._inputs: list[Tensor] = []
        self._graphs: list[Work] = []

    def __call__(self, dense: Tensor, pooled: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Work]:
        """The loss of a batch and its backward pass, to be called before the next batch; results last until then.

        Args:
            dense: [B, num_dense].
            pooled: of each group, [B * tables, dim]; eager passes overwrite them.
            labels: [B].

        Returns:
            The scalar loss, and a function that gives the gradient of each of ``pooled`` and puts those of
            parameters in place.
        """
        inputs = [dense, labels, *pooled]
        if self._passes_left:
            self._passes_left -= 1
            forward, backward = self._works(*inputs)
            return forward()[0], backward
        if not self._graphs:
            self._inputs = [part.clone() for part in inputs]
            self._graphs = [self._record(work) for work in self._works(*self._inputs)]
        torch._foreach_copy_(self._inputs, inputs)  # one launch for all
        forward, backward = self._graphs
        return forward()[0], backward

    def _works(self, dense: Tensor, labels: Tensor, *pooled: Tensor) -> tuple[Work, Work]:
        """Forward pass and loss, and backward pass, of a batch in these tensors."""
        prediction = labels  # until there is one

        def forward() -> list[Tensor]:
            nonlocal prediction
            prediction = self._dense_pass.forward(dense, pooled)
            return [self._dense_pass.loss(prediction, labels)]

        def backward() -> list[Tensor]:
            self._dense_pass.backward(prediction, labels, adds=False)
            return list(pooled)

        return forward, backward
