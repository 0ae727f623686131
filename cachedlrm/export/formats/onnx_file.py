"""``--save-onnx``: a model as ``model.onnx``. Needs the optional package onnx.

One file, or, for more than 256 MiB of parameters, ``model.onnx`` and beside it ``model.onnx.data`` with them, written
piece by piece: protobuf takes no more than 2 GiB, and copies what it takes several times.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from onnx import TensorProto, helper

from cachedlrm import __version__
from cachedlrm.base.files import whole_file
from cachedlrm.export.formats.onnx_graph import IR_VERSION, OPSET, build_graph
from cachedlrm.export.formats.piecewise import PiecewiseTensor, piecewise
from cachedlrm.export.full_tables import FullTable
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.options.architecture import Architecture

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
        build_graph(architecture, model, initializers),
        producer_name="cachedlrm",
        producer_version=__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
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
