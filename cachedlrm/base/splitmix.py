"""SplitMix64 in torch's operators, for any device: the bits of `cachedlrm.base.kernels.mix`."""

from torch import Tensor

from cachedlrm.base.kernels import MULTIPLIER_1, MULTIPLIER_2

_BITS = 64


def as_int64(value: int) -> int:
    """The two's complement reading of 64 bits, as torch has no unsigned arithmetic."""
    value &= (1 << _BITS) - 1
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


def shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's ``>>`` on int64 copies the sign."""
    return (value >> bits) & ((1 << (_BITS - bits)) - 1)


def mix_tensor(value: Tensor) -> Tensor:
    """`cachedlrm.base.kernels.mix` of int64 that stand for 64 bits without sign."""
    value = (value ^ shift_right(value, 30)) * as_int64(MULTIPLIER_1)
    value = (value ^ shift_right(value, 27)) * as_int64(MULTIPLIER_2)
    return value ^ shift_right(value, 31)
