"""The batch that a model trains now: its rows' records, the vectors that autograd sees, and the step."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.library.lookups import JoinedBatch, Part, join
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.model.row_update import RowUpdate


class CurrentBatch:
    """A prepared batch until it is trained or left as it is.

    It has one part, or several whose gradients make one step.

    Args:
        cache: whose rows it uses.
        batch: what it looks up.
        prepared: its rows.

    Attributes:
        in_hand: number of the part that the user has.
    """

    def __init__(self, cache: EmbeddingCache, batch: JoinedBatch, prepared: PreparedBatch) -> None:
        self._cache = cache
        self._prepared = prepared
        self._parts = list(batch.parts)
        self._num_prepared = len(self._parts)  # parts after these were read, and not prepared
        self._updates: list[RowUpdate] = []  # of each group, once its vectors have been asked for, until they are moved
        self._moved: list[RowUpdate] = []
        # Of each part and group [bags, D]; the same for all calls, so that their gradients add up.
        self._leaves: list[list[Tensor] | None] = [None] * len(self._parts)
        self._may_be_left = False  # no gradient is to come: it was only read, or its gradient was dropped
        self.in_hand = 0

    @property
    def num_parts(self) -> int:
        """Parts so far."""
        return len(self._parts)

    def find(self, part: Part) -> int | None:
        """The number of the part that looks up the same, the one in hand first; None: there is none."""
        numbers = [self.in_hand, *(number for number in range(len(self._parts)) if number != self.in_hand)]
        return next((number for number in numbers if part.equals(self._parts[number])), None)

    def wait(self) -> None:
        """Lets the current stream's later work follow the moving of its rows."""
        self._prepared.admitted.wait()

    def add(self, part: Part, vectors: Sequence[Tensor]) -> int:
        """Takes in a part whose ``vectors``, [bags, D] of each group, were read where they are; its number.

        It is in hand from then on.
        """
        self._parts.append(part)
        self._leaves.append([_leaf(of_group) for of_group in vectors])
        self.in_hand = len(self._parts) - 1
        return self.in_hand

    def vectors(self, number: int, trains: bool) -> list[Tensor]:
        """The vectors of a part, [bags, D] of each group: with ``trains`` for autograd to give gradients to."""
        leaves = self._leaves[number]
        if leaves is None:
            if torch.is_inference_mode_enabled():
                with torch.inference_mode(False):  # where it is first read, it may be trained yet
                    leaves = self._new_leaves(number)
            else:
                leaves = self._new_leaves(number)
            self._leaves[number] = leaves
            if not trains and all(of is None or of is leaves for of in self._leaves):
                self._may_be_left = True
        if trains:
            self._may_be_left = False
            return leaves
        return [leaf.detach().clone() for leaf in leaves]  # which the user may change in place

    def _new_leaves(self, number: int) -> list[Tensor]:
        if not self._updates:
            self.wait()
            self._updates = self._cache.begin(self._prepared)
        if len(self._parts) == 1:
            return [update.pooled.requires_grad_() for update in self._updates]
        bags = [slice(*self._bags(group, number)) for group in range(len(self._updates))]
        return [_leaf(update.pooled[of]) for update, of in zip(self._updates, bags, strict=True)]

    def _bags(self, group: int, number: int) -> tuple[int, int]:
        """The first bag of a part among those of a group, and the first after it."""
        ends = [0, *accumulate(len(part.lookups[group].offsets) - 1 for part in self._parts)]
        return ends[number], ends[number + 1]

    def leaves(self) -> list[Tensor]:
        """All vectors that gradients were asked for."""
        return [leaf for of_part in self._leaves if of_part is not None for leaf in of_part]

    def zero_grad(self) -> None:
        """Drops the gradient."""
        for leaf in self.leaves():
            leaf.grad = None
        self._may_be_left = bool(self.leaves())

    @property
    def has_gradient(self) -> bool:
        """Whether ``backward`` brought one."""
        return _any_gradient(self.leaves())

    def part_has_gradient(self, number: int) -> bool:
        """Whether ``backward`` brought one for the vectors of a part."""
        return _any_gradient(self._leaves[number] or ())

    def check_step(self) -> None:
        """Makes sure that there is something to step by.

        Raises:
            UserError: there is no gradient, or not of all parts yet.
        """
        leaves = self.leaves()
        if not _any_gradient(leaves):
            if not leaves:
                raise UserError("step was called before forward; call forward and backward first, once for each step")
            raise UserError("step was called without a gradient; call loss.backward() first")
        if self.in_hand < self._num_prepared - 1:
            raise UserError(
                f"step was called after batch {self.in_hand + 1} of {self._num_prepared}; prefetch prepares as many "
                "batches for one step as accumulate says: step after the last of them, or lower accumulate"
            )

    def wider(self) -> JoinedBatch | None:
        """All parts as one batch, if some are not prepared."""
        return join(self._parts) if len(self._parts) > self._num_prepared else None

    def prepare_again(self, batch: JoinedBatch, prepared: PreparedBatch) -> None:
        """Takes rows that were prepared for all its parts, in the place of those it has, which it hands back."""
        prepared.admitted.wait()
        updates = self._cache.begin(prepared)
        # Together: an interrupt before leaves parts that are to be prepared once more.
        self._prepared, self._num_prepared, self._updates = prepared, len(batch.parts), updates
        self.in_hand = self._num_prepared - 1

    def gradients(self) -> list[Tensor | None]:
        """The gradient of all bags of each group, [bags, D]; None where ``backward`` brought none."""
        if len(self._leaves) == 1:
            return [leaf.grad for leaf in self.leaves()]
        found: list[Tensor | None] = []
        for group in range(len(self._updates)):
            leaves = [None if of_part is None else of_part[group] for of_part in self._leaves]
            grads = [None if leaf is None else leaf.grad for leaf in leaves]
            if all(grad is None for grad in grads):
                found.append(None)
                continue
            parts = [
                grad if grad is not None else self._no_gradient(group, number) for number, grad in enumerate(grads)
            ]
            found.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return found

    def _no_gradient(self, group: int, number: int) -> Tensor:
        first, last = self._bags(group, number)
        return torch.zeros_like(self._updates[group].pooled[first:last])

    def row_gradients(self) -> list[Tensor]:
        """The gradient of the rows of each group, [rows, columns], where ``backward`` brought any."""
        with torch.no_grad():
            return [
                update.sum_by_row(gradient)
                for update, gradient in zip(self._updates, self.gradients(), strict=True)
                if gradient is not None
            ]

    def move(self, step: RowStep) -> None:
        """Moves copies of the rows, for `hand_back`; those of the cache are as they were. Call `check_step` first."""
        if not self._updates:  # a call of before was interrupted, and may have moved some
            self._updates = self._cache.begin(self._prepared)
        gradients = self.gradients()
        self._moved, self._updates = self._updates, []
        for update, gradient in zip(self._moved, gradients, strict=True):
            if gradient is not None:
                # A gradient of backward(create_graph=True) has a graph of its own.
                update.step(gradient.detach() if gradient.requires_grad else gradient, step)

    def hand_back(self) -> None:
        """Hands the rows back as `move` left them, all that an interrupted call of before did not."""
        if not self._cache.trained.includes(self._prepared.tensors.index):
            self._cache.finish(self._prepared, self._moved)

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
        if self.leaves() and (self.has_gradient or not self._may_be_left):
            raise UserError(
                f"{doing}: the batch before was not trained; call step() after loss.backward(), or zero_grad() to "
                "leave its rows as they are"
            )


class Progress:
    """How far a module's training is: an object beside it, as nn.Module looks twice at all that is set on it.

    Attributes:
        steps: taken.
        counters: of the batches so far.
        next_batch: its number; none is used twice.
        num_loops: begun by `prefetch`.
        current: the batch in training.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.counters = CacheCounters()
        self.next_batch = 0
        self.num_loops = 0
        self.current: CurrentBatch | None = None

    def finish_step(self, number: int) -> None:
        """Step ``number`` is taken: its rows go back. After an interrupted call of it, the rest is done."""
        if self.current is not None:
            self.current.hand_back()
            self.steps = number
            self.current = None


def _any_gradient(leaves: Iterable[Tensor]) -> bool:
    for leaf in leaves:  # noqa: SIM110 - every step asks, and a generator takes longer
        if leaf.grad is not None:
            return True
    return False


def _leaf(vectors: Tensor) -> Tensor:
    return vectors.detach().requires_grad_()
