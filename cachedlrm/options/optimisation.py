"""The options of a run's optimizers, and what they mean together."""

from dataclasses import dataclass, field, replace
from typing import Literal

from cachedlrm.base.errors import UserError
from cachedlrm.model.dense_settings import DenseName, DenseSettings, counterpart
from cachedlrm.model.learning_rate import LearningRate, Policy
from cachedlrm.options.types import Count, Epsilon, Flag, MayChange, Momentum, Norm, Positive, Power, Rate, option_group
from cachedlrm.options.types import LearningRate as LearningRateOption
from cachedlrm.store.records import OPTIMIZERS

RowOptimizer = Literal["sgd", "adagrad", "rwsadagrad", "adam"]

_DECAYING: tuple[Policy, ...] = ("linear", "cosine", "polynomial")
_POWER = 2.0  # of --lr-policy polynomial, as of the reference's decay
_ADAMW_DECAY = 0.01  # torch.optim.AdamW's default


@option_group("Optimisation", 6)
@dataclass(frozen=True)
class OptimisationOptions:
    """Optimizers of rows and layers, and the numbers they compute in."""

    optimizer: RowOptimizer | None = None
    """Optimizer of rows, and of layers unless --dense-optimizer says otherwise; lazy on rows, which move only in
    batches that look them up (adam as torch.optim.SparseAdam). Default: adagrad; sgd for reference data."""
    learning_rate: LearningRateOption | None = None
    """Learning rate of rows, and of layers unless --dense-learning-rate says otherwise. Default: 0.01; 0.003 for
    flights."""
    eps: Epsilon | None = None
    """Added to the root that a row's gradient is divided by; sgd has none. Default: 1e-10; 1e-08 for adam."""
    weight_decay: Rate = 0.0
    """Weight decay of rows: in each batch that looks a row up it loses this times the learning rate of itself before
    its gradient moves it (decoupled, as torch.optim.AdamW has it)."""
    dense_optimizer: DenseName | None = None
    """Optimizer of layers, as torch.optim has it. Default: that of rows; adagrad for rwsadagrad."""
    dense_learning_rate: LearningRateOption | None = None
    """Learning rate of layers. Default: that of rows."""
    dense_eps: Epsilon | None = None
    """--eps of layers. Default: --eps where rows have an optimizer of the same kind (rwsadagrad is adagrad, adamw is
    adam); else 1e-10, and 1e-08 for adam and adamw."""
    dense_momentum: Momentum = 0.0
    """Momentum of layers, for --dense-optimizer sgd."""
    dense_weight_decay: Rate | None = None
    """Weight decay of layers: decoupled for adamw; for the others this times a parameter is added to its gradient.
    Default: 0; 0.01 for adamw."""
    clip_grad_norm: Norm | None = None
    """Scale the gradients of a step so that the norm of all together, of layers and rows, is at most this, as
    torch.nn.utils.clip_grad_norm_ does. Default: as they are."""
    lr_policy: Policy = "reference"
    """How learning rates go after the warm-up. reference: facebookresearch/dlrm's quadratic decay, if
    --lr-num-decay-steps is above 0. constant: no decay. linear, cosine, polynomial: down to --lr-end."""
    lr_num_warmup_steps: Count = 0
    """Steps of linear warm-up; 0: none."""
    lr_decay_start_step: Count = 0
    """Step at which the decay begins. Default: the end of the warm-up; of --lr-policy reference 0."""
    lr_num_decay_steps: Count = 0
    """Steps of the decay, after which rates stay as they are. 0: the rest of the run as it is started, and none with
    --lr-policy reference."""
    lr_end: LearningRateOption | None = None
    """Learning rate of rows after a linear, cosine or polynomial decay; that of layers falls to the same share of
    where it began. Default: 0."""
    lr_power: Power | None = None
    """Power of --lr-policy polynomial; 1 is linear. Default: 2."""
    mlperf_grad_accum_iter: Positive = 1
    """Mini-batches whose gradients are added up before parameters move."""
    row_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How the weights of rows are kept on the device, in memory and on disk. bf16 and fp16 take half the bytes. A step
    is computed in 32 bits and then rounded at random, by seed, row, column and step, so that a cached run still has the
    bits of one without a cache."""
    row_state_dtype: Literal["fp32", "bf16"] = "fp32"
    """How the optimizer's state of rows is kept; bf16 is rounded likewise."""
    bf16: Flag = False
    """Train layers and interaction in bfloat16. Embeddings, parameters, losses, optimizers and evaluations stay in
    32 bits."""
    tf32: Flag = False
    """Multiply matrices in TensorFloat-32, which keeps 10 bits of a number's fraction; for GPUs that have it (RTX 30
    and later)."""
    cuda_graphs: MayChange[Flag] = False
    """Launch the forward and the backward pass of a mini-batch as one CUDA graph each: the same bits, with less work
    for the host where steps are small. Activations then keep device memory of their own."""


@dataclass(frozen=True, kw_only=True)
class ResolvedOptimisation(OptimisationOptions):
    """Optimizers, by name and rate. What the options of layers leave open follows those of rows."""

    optimizer: RowOptimizer = field()
    learning_rate: LearningRateOption = field()

    @property
    def dense(self) -> DenseSettings:
        """The layers' optimizer."""
        name = self.dense_optimizer or counterpart(self.optimizer)
        own = DenseSettings(name)
        eps = self.eps if own.state_keys == OPTIMIZERS[self.optimizer].state_keys else None
        decay = _ADAMW_DECAY if name == "adamw" else 0.0
        decay = decay if self.dense_weight_decay is None else self.dense_weight_decay
        return DenseSettings(name, self.dense_eps or eps, self.dense_momentum, decay)

    @property
    def names(self) -> str:
        """Of the optimizers; one where that of layers goes with that of rows."""
        layers = self.dense.name
        return self.optimizer if layers == counterpart(self.optimizer) else f"{self.optimizer} and {layers}"

    @property
    def row_rate(self) -> LearningRate:
        """The learning rate of rows, by step."""
        return self._rate(self.learning_rate)

    @property
    def dense_rate(self) -> LearningRate:
        """That of layers."""
        return self._rate(self.learning_rate if self.dense_learning_rate is None else self.dense_learning_rate)

    def _rate(self, base: float) -> LearningRate:
        return LearningRate(
            base,
            num_warmup_steps=self.lr_num_warmup_steps,
            decay_start_step=self.lr_decay_start_step,
            num_decay_steps=self.lr_num_decay_steps,
            policy=self.lr_policy,
            end=self.lr_end / self.learning_rate * base if self.lr_end else 0.0,
            power=_POWER if self.lr_power is None else self.lr_power,
        )


def check_decay(options: OptimisationOptions) -> None:
    """Checks that a decay does not begin before the warm-up has ended.

    Raises:
        UserError: it does; names both.
    """
    start, warmup = options.lr_decay_start_step, options.lr_num_warmup_steps
    decays = options.lr_num_decay_steps if options.lr_policy == "reference" else start
    if decays and start < warmup:
        raise UserError(
            f"--lr-decay-start-step {start} lies before the end of the warm-up, --lr-num-warmup-steps {warmup}; let "
            "the decay start there or later"
        )


def definite(options: ResolvedOptimisation, num_steps: int) -> ResolvedOptimisation:
    """With the steps at which rates decay, which a resumed run keeps though it may be longer.

    Args:
        options: of the run.
        num_steps: times that parameters are to move in it.

    Raises:
        UserError: options that do not fit each other.
    """
    _check(options)
    if options.lr_policy not in _DECAYING:
        return options
    start = options.lr_decay_start_step or max(1, options.lr_num_warmup_steps)
    # Where the run ends before, a resumed and longer one may still decide.
    length = options.lr_num_decay_steps or max(0, num_steps - start + 1)
    return replace(options, lr_decay_start_step=start, lr_num_decay_steps=length)


def _check(options: ResolvedOptimisation) -> None:
    """Refuses options that mean nothing beside the others.

    Raises:
        UserError: there is one; names both.
    """
    dense, policy = options.dense, f"--lr-policy {options.lr_policy}"
    rows, layers = f"--optimizer {options.optimizer}", f"--dense-optimizer {dense.name}"
    decays = options.lr_policy in _DECAYING
    for option, value, means_nothing, why in (
        ("--eps", options.eps, options.optimizer == "sgd", f"{rows} has none; of layers it is --dense-eps"),
        ("--dense-eps", options.dense_eps, dense.name == "sgd", f"{layers} has none"),
        ("--dense-momentum", options.dense_momentum, dense.name != "sgd", f"{layers} has none; sgd has"),
        ("--lr-end", options.lr_end, not decays, f"{policy} does not decay to it; linear, cosine, polynomial do"),
        ("--lr-power", options.lr_power, options.lr_policy != "polynomial", f"{policy} has none; polynomial has"),
        ("--lr-num-decay-steps", options.lr_num_decay_steps, options.lr_policy == "constant", f"{policy} has no decay"),
        ("--lr-decay-start-step", options.lr_decay_start_step, options.lr_policy == "constant", f"{policy} has none"),
    ):
        if value and means_nothing:
            raise UserError(f"{option} {value}: {why}; drop it")
    if options.lr_end and options.lr_end > options.learning_rate:
        raise UserError(
            f"--lr-end {options.lr_end} is above --learning-rate {options.learning_rate}, and rates fall; lower it"
        )
    of_layers = ("--dense-learning-rate", options.dense_rate.base, "--dense-weight-decay", dense.weight_decay)
    of_rows = ("--learning-rate", options.learning_rate, "--weight-decay", options.weight_decay)
    for rate_option, rate, option, decay in (of_rows, *([of_layers] if dense.name == "adamw" else [])):
        if rate * decay >= 1:
            raise UserError(
                f"{option} {decay} times {rate_option} {rate} takes away all of a parameter in a step; lower one"
            )
