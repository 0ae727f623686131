"""``--save-onnx``: a model as an ONNX graph, built node by node, in ``model.onnx``. Needs the optional package onnx.

One file, or, for more than 256 MiB of parameters, ``model.onnx`` and beside it ``model.onnx.data`` with them, written
piece by piece: protobuf takes no more than 2 GiB, and copies what it takes several times.

Inputs, as facebookresearch/dlrm names them: ``dense_x`` [batch_size, num_dense] float32, then of each sparse feature K
``offsets_K`` [batch_size] int64, ascending from 0, and ``indices_K`` [num_indices_K] int64. Output: ``pred``
[batch_size, 1] float32. Initializers have the names of the parameters in the state dict.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import nn

from cachedlrm import __version__
from cachedlrm.base.files import whole_file
from cachedlrm.export.formats.piecewise import PiecewiseTensor, piecewise
from cachedlrm.export.full_tables import FullTable
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.interaction import DotInteraction
from cachedlrm.model.learned_interaction import CrossInteraction, ProjectionInteraction
from cachedlrm.model.tables import Embedding, Table
from cachedlrm.options.architecture import Architecture, pooling_name

_OPSET = 17
_IR_VERSION = 8  # the first with this opset, so that older runtimes open the file
_MOST_BYTES_INSIDE = 1 << 28
_PAGE_BYTES = 4096  # runtimes map parameters that begin at a page


def save_onnx(path: Path, architecture: Architecture, tables: Sequence[FullTable], model: Dlrm) -> None:
    """Writes a model; files appear only when complete.

    Args:
        path: the file.
        architecture: of the model.
        tables: all of them.
        model: dense part.

    Raises:
        UserError: the file could not be written.
    """
    parameters = {name: tensor for table in tables for name, tensor in table.parameters().items()}
    parameters |= {name: piecewise(tensor) for name, tensor in model.state_dict().items()}
    if sum(4 * tensor.num_elements for tensor in parameters.values()) <= _MOST_BYTES_INSIDE:
        initializers = [_inside(name, tensor) for name, tensor in parameters.items()]
    else:
        beside = path.with_name(f"{path.name}.data")
        with whole_file(beside) as file:
            initializers = [_beside(name, tensor, file, beside.name) for name, tensor in parameters.items()]
    proto = helper.make_model(
        _graph(architecture, model, initializers),
        producer_name="cachedlrm",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    with whole_file(path) as file:
        file.write(proto.SerializeToString())


def _inside(name: str, tensor: PiecewiseTensor) -> TensorProto:
    data = b"".join(tensor.data())
    return TensorProto(name=name, dims=tensor.shape, data_type=TensorProto.FLOAT, raw_data=data)


def _beside(name: str, tensor: PiecewiseTensor, file: BinaryIO, file_name: str) -> TensorProto:
    """A reference to data that is written to ``file``."""
    file.write(bytes(-file.tell() % _PAGE_BYTES))
    place = {"location": file_name, "offset": file.tell(), "length": 4 * tensor.num_elements}
    for data in tensor.data():
        file.write(data)
    proto = TensorProto(name=name, dims=tensor.shape, data_type=TensorProto.FLOAT)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


class _Builder:
    """Nodes and constants so far. Methods return names of values."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def integers(self, *values: int) -> str:
        """A constant [n] int64."""
        return self._constant("int_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant float32."""
        return self._constant(f"float_{value!r}", np.array(value, np.float32))

    def array(self, name: str, values: NDArray[np.int64]) -> str:
        """A constant by its own name."""
        return self._constant(name, values)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(values, name))
        return name

    def filled(self, shape: str, value: float | int) -> str:
        """An array of ``shape`` (the name of an [n] int64) full of ``value``."""
        kind = TensorProto.INT64 if isinstance(value, int) else TensorProto.FLOAT
        return self.add("ConstantOfShape", shape, value=helper.make_tensor("value", kind, [1], [value]))

    def scatter_sum(self, onto: str, indices: str, values: str) -> str:
        """``values`` added into ``onto`` along its first axis, one after the other (ScatterND would not keep order)."""
        return self.add("ScatterElements", onto, indices, values, axis=0, reduction="add")


def _graph(architecture: Architecture, model: Dlrm, parameters: Sequence[TensorProto]) -> GraphProto:
    """The graph of a model.

    Args:
        architecture: of the model.
        model: its dense part.
        parameters: initializers of all parameters, named as in the reference's state dict.
    """
    graph = _Builder()
    inputs = [_value("dense_x", TensorProto.FLOAT, "batch_size", architecture.mlp_bot[0])]
    vectors = []
    for embedding in architecture.embeddings:
        number = embedding.number
        inputs.append(_value(f"offsets_{number}", TensorProto.INT64, "batch_size"))
        inputs.append(_value(f"indices_{number}", TensorProto.INT64, f"num_indices_{number}"))
        vectors.append(_vector(graph, architecture, model, embedding))
    dense = _mlp(graph, "bot_l", model.bot_l, "dense_x")
    interactions = _interact(graph, architecture, model, dense, vectors)
    prediction = _mlp(graph, "top_l", model.top_l, interactions)
    threshold = architecture.options.loss_threshold
    if 0.0 < threshold < 1.0:
        prediction = graph.add("Clip", prediction, graph.number(threshold), graph.number(1.0 - threshold))
    graph.nodes.append(helper.make_node("Identity", [prediction], ["pred"], name="pred"))
    return helper.make_graph(
        graph.nodes,
        "dlrm",
        inputs,
        [_value("pred", TensorProto.FLOAT, "batch_size", 1)],
        initializer=[*parameters, *graph.constants.values()],
    )


def _value(name: str, kind: int, *shape: str | int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _mlp(graph: _Builder, name: str, layers: nn.Sequential, value: str) -> str:
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            value = graph.add("Gemm", value, f"{name}.{number}.weight", f"{name}.{number}.bias", transB=1)
        elif isinstance(layer, nn.GELU):
            error = graph.add("Erf", graph.add("Mul", value, graph.number(math.sqrt(0.5))))
            half = graph.add("Mul", value, graph.number(0.5))
            value = graph.add("Mul", half, graph.add("Add", error, graph.number(1.0)))
        elif isinstance(layer, nn.SiLU):
            value = graph.add("Mul", value, graph.add("Sigmoid", value))
        else:
            operators = {nn.ReLU: "Relu", nn.Tanh: "Tanh", nn.Sigmoid: "Sigmoid"}
            value = graph.add(operators[type(layer)], value)
    return value


def _vector(graph: _Builder, architecture: Architecture, model: Dlrm, embedding: Embedding) -> str:
    """[B, D] of one sparse feature."""
    offsets, indices = f"offsets_{embedding.number}", f"indices_{embedding.number}"
    bags = _bags(graph, offsets, indices)
    if embedding.collisions:
        collisions = graph.integers(embedding.collisions)
        rows = [graph.add("Div", indices, collisions), graph.add("Mod", indices, collisions)]
    else:
        rows = [indices]
    options = architecture.options
    weighted = options.weighted_pooling == "learned"
    parts = [
        _pool(graph, table, index, bags, offsets, weighted=weighted)
        for table, index in zip(embedding.tables, rows, strict=True)
    ]
    if options.pooling == "mean":
        sizes = _sizes(graph, bags, offsets)
        parts = [graph.add("Div", part, sizes) for part in parts]
    vector = parts[0]
    if len(parts) == 2:
        operation = options.qr_operation
        attributes = {"axis": 1} if operation == "concat" else {}
        vector = graph.add({"mult": "Mul", "add": "Add", "concat": "Concat"}[operation], *parts, **attributes)
    if str(embedding.number) in model.emb_l:
        vector = graph.add("Gemm", vector, f"emb_l.{embedding.number}.proj.weight", transB=1)
    return vector


def _bags(graph: _Builder, offsets: str, indices: str) -> str:
    """The bag of each lookup, [L] int64: how many bags begin up to it, less one. Empty bags begin where others do."""
    num_lookups = graph.add("Shape", indices)
    places = graph.add("Add", num_lookups, graph.integers(1))  # bags may begin after the last lookup
    ones = graph.filled(graph.add("Shape", offsets), 1)
    starts = graph.scatter_sum(graph.filled(places, 0), offsets, ones)
    bags = graph.add("Sub", graph.add("CumSum", starts, graph.integers(0)), graph.integers(1))
    return graph.add("Slice", bags, graph.integers(0), num_lookups)


def _sizes(graph: _Builder, bags: str, offsets: str) -> str:
    """Lookups of each bag, [B, 1] float32; 1 of an empty bag, whose mean is 0."""
    ones = graph.filled(graph.add("Shape", bags), 1.0)
    counts = graph.scatter_sum(graph.filled(graph.add("Shape", offsets), 0.0), bags, ones)
    return graph.add("Unsqueeze", graph.add("Max", counts, graph.number(1.0)), graph.integers(1))


def _pool(graph: _Builder, table: Table, indices: str, bags: str, offsets: str, *, weighted: bool) -> str:
    """Sums of the bags' rows, [B, dim]."""
    rows = graph.add("Gather", table.name, indices)  # [L, dim]
    axis = graph.integers(1)
    if weighted:
        factors = graph.add("Gather", pooling_name(table), indices)
        rows = graph.add("Mul", rows, graph.add("Unsqueeze", factors, axis))
    targets = graph.add("Expand", graph.add("Unsqueeze", bags, axis), graph.add("Shape", rows))
    shape = graph.add("Concat", graph.add("Shape", offsets), graph.integers(table.dim), axis=0)
    return graph.scatter_sum(graph.filled(shape, 0.0), targets, rows)


def _interact(graph: _Builder, architecture: Architecture, model: Dlrm, dense: str, vectors: list[str]) -> str:
    """The top MLP's input from the vectors [B, D]; see `cachedlrm.model.interaction.Interaction`."""
    together = graph.add("Concat", dense, *vectors, axis=1)
    interaction, dim = model.interaction, architecture.mlp_bot[-1]
    if isinstance(interaction, CrossInteraction):
        return _cross(graph, architecture.interaction.cross_layers, together)
    if isinstance(interaction, ProjectionInteraction):
        rows, columns = (_mlp(graph, name, layers, together) for name, layers in interaction.branches.items())
        rows = graph.add("Reshape", rows, graph.integers(0, -1, dim))
        columns = graph.add("Reshape", columns, graph.integers(0, dim, -1))
        products = graph.add("MatMul", rows, columns)
        flat = graph.add("Reshape", products, graph.integers(0, architecture.mlp_top[0] - dim))
        return graph.add("Concat", dense, flat, axis=1)
    if isinstance(interaction, DotInteraction):
        num_vectors = len(vectors) + 1
        matrix = graph.add("Reshape", together, graph.integers(-1, num_vectors, dim))
        products = graph.add("MatMul", matrix, graph.add("Transpose", matrix, perm=[0, 2, 1]))
        flat = graph.add("Reshape", products, graph.integers(-1, num_vectors**2))
        pairs = graph.array("pairs", interaction.pairs.cpu().numpy())
        return graph.add("Concat", dense, graph.add("Gather", flat, pairs, axis=1), axis=1)
    return together


def _cross(graph: _Builder, num_layers: int, first: str) -> str:
    """[B, N] of the last cross layer; see `cachedlrm.model.learned_interaction.CrossNet`."""
    value = first
    for layer in range(num_layers):
        low = graph.add("Gemm", value, f"crossnet.V_kernels.{layer}", transB=1)
        factor = graph.add("Gemm", low, f"crossnet.W_kernels.{layer}", f"crossnet.bias.{layer}", transB=1)
        value = graph.add("Add", graph.add("Mul", first, factor), value)
    return value
