"""Which optimizer moves the dense parameters, and its numbers."""

from dataclasses import dataclass
from typing import Literal

from cachedlrm.store.records import OPTIMIZERS

DenseName = Literal["sgd", "adagrad", "adam", "adamw"]

_KINDS = {name: OPTIMIZERS[name] for name in ("sgd", "adagrad", "adam")} | {"adamw": OPTIMIZERS["adam"]}


def counterpart(optimizer: str) -> DenseName:
    """The layers' optimizer that goes with one of rows; Adagrad with row-wise Adagrad, as in facebookresearch/dlrm."""
    names: dict[str, DenseName] = {"sgd": "sgd", "adagrad": "adagrad", "rwsadagrad": "adagrad", "adam": "adam"}
    return names[optimizer]


@dataclass(frozen=True)
class DenseSettings:
    """An optimizer of torch.optim by name, with its numbers but for the learning rate.

    Attributes:
        name: ``sgd``, ``adagrad``, ``adam`` or ``adamw``.
        eps: added to the root that a gradient is divided by; None: the optimizer's own. sgd has none.
        momentum: of sgd.
        weight_decay: decoupled for adamw (Loshchilov and Hutter, arXiv:1711.05101); for the others times the
            parameter a part of its gradient.
    """

    name: DenseName
    eps: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def definite_eps(self) -> float:
        """`eps`, or the optimizer's own; 0 for sgd."""
        return _KINDS[self.name].eps if self.eps is None else self.eps

    @property
    def state_keys(self) -> tuple[str, ...]:
        """torch.optim's names of the state of a parameter, one tensor of its size each."""
        return ("momentum_buffer",) if self.momentum else _KINDS[self.name].state_keys

    @property
    def counts_steps(self) -> bool:
        """Whether torch.optim keeps the number of steps with the state of a parameter."""
        return self.name != "sgd"

    @property
    def temporaries(self) -> int:
        """Tensors of the size of the parameters, beside their gradient, while these move."""
        return _KINDS[self.name].temporaries
