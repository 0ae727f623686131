"""The batch that a model trains now: its rows' records, the vectors that autograd sees, and the step."""

import numpy as np
import torch
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.data.batch import Batch
from cachedlrm.library.ids import Ids
from cachedlrm.library.stream import Lookup
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.model.row_update import RowUpdate


class CurrentBatch:
    """A prepared batch until it is trained or left as it is.

    Args:
        cache: whose rows it uses, of one group.
        lookup: its ids.
        prepared: its rows.
    """

    def __init__(self, cache: EmbeddingCache, lookup: Lookup, prepared: PreparedBatch) -> None:
        self._cache = cache
        self._lookup = lookup
        self._prepared = prepared
        self._update: RowUpdate | None = None  # once its vectors have been asked for
        self._leaf: Tensor | None = None  # [B * T, D]; one for all calls, so that their gradients add up
        self._may_be_left = False  # no gradient is to come: it was only read, or its gradient was dropped

    def is_given(self, ids: Ids, offsets: Ids | None) -> bool:
        """Whether these are the very objects that it was prepared from."""
        return ids is self._lookup.ids and offsets is self._lookup.offsets

    def looks_up(self, host: Batch) -> bool:
        """Whether its ids are those of ``host``."""
        own = self._lookup.host
        return np.array_equal(host.rows, own.rows) and np.array_equal(host.offsets, own.offsets)

    def wait(self) -> None:
        """Lets the current stream's later work follow the moving of its rows."""
        self._prepared.admitted.wait()

    def pooled(self, trains: bool) -> Tensor:
        """Its vectors, [B * T, D]: with ``trains`` for autograd to give a gradient to, else values alone."""
        if self._leaf is None:
            with torch.inference_mode(False), torch.enable_grad():  # where it is first read, it may be trained yet
                self.wait()
                (self._update,) = self._cache.begin(self._prepared)
                self._leaf = self._update.pooled.detach().requires_grad_()
            self._may_be_left = True
        if not trains:
            return self._leaf.detach()
        self._may_be_left = False
        return self._leaf

    def zero_grad(self) -> None:
        """Drops the gradient."""
        if self._leaf is not None:
            self._leaf.grad = None
            self._may_be_left = True

    def step(self, step: RowStep) -> None:
        """Moves the rows and hands them back.

        Raises:
            UserError: there is no gradient.
        """
        if self._leaf is None:
            raise UserError("step was called before forward; call forward and backward first, once for each step")
        if self._leaf.grad is None:
            raise UserError("step was called without a gradient; call loss.backward() first")
        assert self._update is not None
        with torch.no_grad():
            self._update.step(self._leaf.grad, step)
        self._cache.finish(self._prepared, [self._update])

    def leave(self) -> None:
        """Hands the rows back as they are."""
        self.wait()
        self._cache.trained.mark(self._prepared.tensors.index)

    def check_may_be_left(self, doing: str) -> None:
        """Makes sure that no gradient is lost, present or still to come.

        Args:
            doing: the call that would lose it, for the message.

        Raises:
            UserError: one would be lost.
        """
        if self._leaf is not None and (self._leaf.grad is not None or not self._may_be_left):
            raise UserError(
                f"{doing}: the batch before was not trained; call step() after loss.backward(), or zero_grad() to "
                "leave its rows as they are"
            )
