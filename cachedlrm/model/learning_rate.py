"""The learning rate of each step."""

from dataclasses import dataclass

_LEAST = 1e-7  # while decaying


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, a plateau, quadratic decay: facebookresearch/dlrm's ``LRPolicyScheduler``, as a pure function.

    As there, with a decay the plateau stays at the last rate of the warm-up (one part in ``num_warmup_steps`` below
    the base), and the rate stays at its last value after the decay.

    Attributes:
        base: the rate without a schedule.
        num_warmup_steps: steps of linear warm-up; 0: none.
        decay_start_step: step (from 1) at which the decay begins.
        num_decay_steps: steps of decay; 0: none.
    """

    base: float
    num_warmup_steps: int = 0
    decay_start_step: int = 0
    num_decay_steps: int = 0

    def __call__(self, step: int) -> float:
        """The rate of step ``step``, from 1."""
        warmup, start, length = self.num_warmup_steps, self.decay_start_step, self.num_decay_steps
        if step < warmup:
            return self.base * (1.0 - (warmup - step) / warmup)
        if length == 0:
            return self.base
        if step < start:
            return self.base if warmup < 2 else self(warmup - 1)
        decayed = min(step - start, length - 1)
        return max(_LEAST, self.base * ((length - decayed) / length) ** 2)
