"""The learning rate of each step."""

import math
from dataclasses import dataclass
from typing import Literal

Policy = Literal["reference", "constant", "linear", "cosine", "polynomial"]

_LEAST = 1e-7  # while policy ``reference`` decays


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, a plateau, and a decay by policy, as a pure function.

    - ``constant``: none.
    - ``linear``, ``cosine``, ``polynomial``: from ``base`` to ``end``, as torch.optim.lr_scheduler's LinearLR,
      CosineAnnealingLR (Loshchilov and Hutter, arXiv:1608.03983, without restarts) and PolynomialLR have them: the step
      at which the decay begins still has ``base``, that after its last has ``end``, where the rate stays.
    - ``reference``: facebookresearch/dlrm's ``LRPolicyScheduler``, a quadratic decay to zero. As there, with a decay
      the plateau stays at the last rate of the warm-up (one part in ``num_warmup_steps`` below the base), and the rate
      stays at that of the last step of the decay.

    Attributes:
        base: the rate without a schedule.
        num_warmup_steps: steps of linear warm-up; 0: none.
        decay_start_step: step (from 1) at which the decay begins.
        num_decay_steps: steps of decay; 0: none.
        policy: how the rate decays.
        end: of ``linear``, ``cosine`` and ``polynomial``.
        power: of ``polynomial``: the share that is left of the decay is raised to it.
    """

    base: float
    num_warmup_steps: int = 0
    decay_start_step: int = 0
    num_decay_steps: int = 0
    policy: Policy = "reference"
    end: float = 0.0
    power: float = 2.0

    def __call__(self, step: int) -> float:
        """The rate of step ``step``, from 1."""
        warmup, start, length = self.num_warmup_steps, self.decay_start_step, self.num_decay_steps
        if step < warmup:
            return self.base * (1.0 - (warmup - step) / warmup)
        if length == 0:
            return self.base
        if self.policy == "reference":
            if step < start:
                return self.base if warmup < 2 else self(warmup - 1)
            decayed = min(step - start, length - 1)
            return max(_LEAST, self.base * ((length - decayed) / length) ** 2)
        left = self._left(min(max(step - start, 0), length) / length)
        return self.base * left + self.end * (1.0 - left)

    def _left(self, passed: float) -> float:
        """The share of the way from ``end`` to ``base`` that is left when a share of the decay has passed."""
        if self.policy == "cosine":
            return (1.0 + math.cos(math.pi * passed)) / 2.0
        return math.pow(1.0 - passed, self.power if self.policy == "polynomial" else 1.0)
