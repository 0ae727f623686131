"""Writing safetensors files of any size, tensor by tensor.

The safetensors library writes only what is in memory at once. The format is eight bytes of header length, a JSON header
and the raw little-endian data (https://github.com/huggingface/safetensors, "Format"); files are read with the library.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.files import whole_file

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""Numpy has none; what is written is its bits."""
DTYPES = {
    np.dtype("<f4"): "F32",
    np.dtype("<f2"): "F16",
    BFLOAT16: "BF16",
    np.dtype("<i8"): "I64",
    np.dtype("<i4"): "I32",
}
"""The format's names of types."""

TensorSpec = tuple[np.dtype, tuple[int, ...]]


def write_tensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    chunks: Iterable[NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
    otherwise: str = "choose another place",
) -> None:
    """Writes a safetensors file; it appears under its name only when complete.

    Args:
        path: file to write.
        specs: dtype and shape of each tensor, in the order of the data.
        chunks: the tensors' data in that order, in pieces of any size.
        metadata: strings for the header.
        otherwise: what a user can do if the file cannot be written.

    Raises:
        UserError: the file could not be written (disk full, no permission); names it.
        ValueError: the chunks do not add up to the specs.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in specs.items():
        start, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path, otherwise) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk).data.cast("B") if chunk.size else b"")
        if file.tell() != 8 + len(text) + end:
            raise ValueError(f"{path}: {file.tell() - 8 - len(text)} bytes of data for specs of {end}")
