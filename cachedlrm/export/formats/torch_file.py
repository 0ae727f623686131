"""Writing ``torch.save`` files of any size, tensor by tensor; `torch.load` reads them.

torch itself writes only what is in memory at once. The format is an uncompressed zip archive with the pickled objects
in ``data.pkl`` and the raw little-endian data of tensor N in ``data/N``, which starts at a multiple of 64 bytes so that
it can be mapped into memory (https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cachedlrm.base.files import whole_file
from cachedlrm.export.formats.piecewise import PiecewiseTensor

_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30  # of a zip archive's entry, before its name
_SIZES_BYTES = 20  # the field for sizes beyond 32 bits
_PADDING = b"FB"  # identifies a field that holds nothing; torch's own name for it


def write_torch_file(path: Path, content: Mapping[str, object]) -> None:
    """Writes nested dictionaries, lists, numbers and `PiecewiseTensor`; the file appears only when complete.

    Raises:
        UserError: the file could not be written; names it.
        ValueError: pieces do not add up to their tensor's shape.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for number, tensor in enumerate(pickler.tensors):
            _write_data(file, archive, f"archive/data/{number}", tensor)
        archive.writestr("archive/version", "3\n")


def _write_data(file: BinaryIO, archive: zipfile.ZipFile, name: str, tensor: PiecewiseTensor) -> None:
    entry = zipfile.ZipInfo(name)
    start = file.tell() + _LOCAL_HEADER_BYTES + len(name) + _SIZES_BYTES + len(_PADDING) + 2
    padding = -start % _ALIGNMENT
    entry.extra = _PADDING + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as out:
        for data in tensor.data():
            out.write(data)


@dataclass(frozen=True)
class _Storage:
    """A tensor's data as the pickle describes it."""

    number: int
    num_elements: int


class _Pickler(pickle.Pickler):
    """Pickles tensors by reference to their data."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[PiecewiseTensor] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, PiecewiseTensor):
            return NotImplemented
        storage = _Storage(len(self.tensors), value.num_elements)
        self.tensors.append(value)
        strides = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(len(value.shape)))
        return torch._utils._rebuild_tensor_v2, (storage, 0, value.shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        return ("storage", torch.FloatStorage, str(value.number), "cpu", value.num_elements)
