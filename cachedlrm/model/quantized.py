"""Models for serving in fewer bits, by torch's operators for them, as facebookresearch/dlrm uses them. On the CPU only.

MLPs: weights in int8 with one scale for a layer, and inputs in uint8 with a scale for each batch (so a prediction
depends a little on its batch); or weights in float16. Tables: 8 or 4 bits an element, and a scale and an offset for
each row: two float32 after 8 bits, two float16 after 4.
"""

import copy
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachedlrm.model.bags import bag_sizes
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.learned_interaction import CrossNet

_MLP_TYPES = {8: torch.qint8, 16: torch.float16}


def quantize_mlps(model: Dlrm, bits: int) -> Dlrm:
    """A copy of ``model`` whose linear layers, cross layers among them, have weights of 8 or 16 bits."""
    model = copy.deepcopy(model)
    net = model.interaction.layers.get("crossnet")
    if isinstance(net, CrossNet):
        model.crossnet = model.interaction.layers["crossnet"] = _LinearCrossNet(net)
    with warnings.catch_warnings():
        # torch says that torchao will replace this; its int8 is another one, which gives other numbers.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        quantized: Dlrm = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, _MLP_TYPES[bits], inplace=True)
    return quantized


class _LinearCrossNet(nn.Module):
    """A `CrossNet` of nn.Linear layers, which torch quantises."""

    def __init__(self, net: CrossNet) -> None:
        super().__init__()
        pairs = list(zip(net.W_kernels, net.V_kernels, net.bias, strict=True))
        self.inner = nn.ModuleList([_linear(v, None) for _, v, _ in pairs])
        self.outer = nn.ModuleList([_linear(w, bias) for w, _, bias in pairs])

    def forward(self, first: Tensor) -> Tensor:
        """[B, N] of the last layer, from [B, N]."""
        value = first
        for inner, outer in zip(self.inner, self.outer, strict=True):
            value = torch.addcmul(value, first, outer(inner(value)))
        return value


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer


def mlp_bytes(model: nn.Module, bits: int = 32) -> int:
    """Bytes of all layers' weights, at so many bits, and of their biases, which stay float32.

    Args:
        model: with linear layers that are not quantised.
        bits: of a weight.
    """
    return sum(parameter.numel() * (bits if parameter.dim() > 1 else 32) // 8 for parameter in model.parameters())


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of a row of ``dim`` columns at 32, 8 or 4 bits an element, with its scale and offset."""
    return {32: 4 * dim, 8: dim + 8, 4: dim // 2 + 4}[bits]


class QuantizedTables:
    """Whole tables of one dimension in 8 or 4 bits an element.

    Args:
        pieces: the tables' weights one after the other, in pieces of [n, dim] float32.
        num_rows: of all.
        dim: columns; even for 4 bits.
        bits: 8 or 4.
        pooling_weights: [num_rows] float32, factors of the rows; None: without.
    """

    def __init__(
        self,
        pieces: Iterable[NDArray[np.float32]],
        num_rows: int,
        dim: int,
        bits: int,
        pooling_weights: NDArray[np.float32] | None = None,
    ) -> None:
        operators = torch.ops.quantized
        pack = operators.embedding_bag_byte_prepack if bits == 8 else operators.embedding_bag_4bit_prepack
        self._bags = (
            operators.embedding_bag_byte_rowwise_offsets if bits == 8 else operators.embedding_bag_4bit_rowwise_offsets
        )
        self._packed = torch.empty(num_rows, row_bytes(dim, bits), dtype=torch.uint8)
        self._pooling_weights = None if pooling_weights is None else torch.from_numpy(pooling_weights)
        first = 0
        for piece in pieces:
            last = first + len(piece)
            self._packed[first:last] = pack(torch.from_numpy(np.ascontiguousarray(piece)))
            first = last

    @property
    def num_bytes(self) -> int:
        """Of the tables, their scales and their pooling weights."""
        return self._packed.nbytes + (0 if self._pooling_weights is None else self._pooling_weights.nbytes)

    def pool(self, rows: Tensor, offsets: Tensor, *, averages: bool = False) -> Tensor:
        """Sums or means of the bags' rows: [num_bags, dim].

        Args:
            rows: [L] int64 over all tables.
            offsets: [num_bags + 1] int64.
            averages: whether to take means; that of an empty bag is 0.
        """
        weights = None if self._pooling_weights is None else self._pooling_weights[rows]
        pooled: Tensor = self._bags(self._packed, rows, offsets, per_sample_weights=weights, include_last_offset=True)
        return pooled.div_(bag_sizes(offsets)) if averages else pooled
