"""The least time a training step can take on described hardware, part by part.

The roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009): a step is no faster than its arithmetic at the
device's peak rate, than the bytes it must move at the bandwidth of the device's memory, than those that must cross the
link, and than the one thread of the host that prepares batches. Only unavoidable work is counted, so a measured run
lies below the bound.
"""

import itertools
from typing import Protocol

from cachedlrm.options.resolved import Resolved
from cachedlrm.plan.step_bytes import StepShape

_FLOAT, _POSITION = 4, 4  # bytes


class Traffic(Protocol):
    """Traffic over the link; an `Expectation` of `cachedlrm.plan.prediction`."""

    @property
    def num_steps(self) -> int: ...
    @property
    def lookups(self) -> float: ...
    @property
    def fetched_rows(self) -> float: ...
    @property
    def written_back_rows(self) -> float: ...
    @property
    def record_bytes(self) -> float: ...


def step_ms(options: Resolved, step: StepShape, traffic: Traffic) -> dict[str, float]:
    """Milliseconds of a step by its bound: ``arithmetic``, ``device memory``, ``link`` or ``host``, if described.

    Args:
        options: ``hardware`` says rates in operations or bytes a second.
        step: the step.
        traffic: of the run.
    """
    hardware = options.hardware
    needs = (
        ("arithmetic", operations(step), hardware.device_flops),
        ("device memory", device_bytes(step), hardware.device_bandwidth),
        ("link", link_bytes(step, traffic), hardware.link_bandwidth),
        ("host", traffic.lookups / max(1, traffic.num_steps), hardware.host_lookup_rate),
    )
    return {name: amount / rate * 1e3 for name, amount, rate in needs if rate is not None}


def operations(step: StepShape) -> float:
    """Additions and multiplications of a step's layers and interaction, forward and backward.

    A layer multiplies three times: for its outputs, for its weights' gradients and, but for the first, for its inputs.
    """
    first, *others = itertools.pairwise(step.mlp_bot)
    layers = 2 * first[0] * first[1]
    layers += sum(3 * inputs * outputs for inputs, outputs in (*others, *itertools.pairwise(step.mlp_top)))
    interaction = 3 * step.interaction.multiplications(step.num_features + 1, step.mlp_bot[-1])
    return 2.0 * step.mini_batch_size * (layers + interaction)


def device_bytes(step: StepShape) -> float:
    """Bytes a step reads and writes on the device at least.

    The outputs of the layers are written and read again by the backward pass, the pooled embeddings too; dense
    parameters are read forward and backward, and written.
    """
    pooled = sum(len(group.table_rows) * group.layout.dim for group in step.groups)
    of_interaction = step.interaction.matrices(step.num_features + 1, step.mlp_bot[-1])
    matrices = [*itertools.pairwise(step.mlp_bot), *of_interaction, *itertools.pairwise(step.mlp_top)]
    outputs = sum(outputs for _, outputs in matrices)
    parameters = sum(inputs * outputs for inputs, outputs in matrices)
    return float(_FLOAT * (2 * step.mini_batch_size * (outputs + pooled) + 3 * parameters))


def link_bytes(step: StepShape, traffic: Traffic) -> float:
    """Bytes that cross the link in a step, in the direction that has more: both are used at once."""
    steps = max(1, traffic.num_steps)
    features = _FLOAT * step.mini_batch_size * (step.mlp_bot[0] + 1)
    down = features + (_POSITION * traffic.lookups + traffic.fetched_rows * traffic.record_bytes) / steps
    return max(down, traffic.written_back_rows * traffic.record_bytes / steps)
