"""Tensors that say they are on ``cuda`` and lie in host memory; their operators wait in the queues of streams."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simcuda.machine import Allocation, Machine, Work
from simcuda.races import Access, Part

aten = torch.ops.aten
_READ_BY_HOST = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
_SIZED_BY_VALUES = (aten.nonzero.default, aten.masked_select.default, aten._unique2.default)
_UNFILLED = (aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default)
_ALIASES = (aten._unsafe_view.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default)
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)  # indices of the host will do
_SORTING = (aten.index_add_.default, aten.index_copy_.default)
_BY_CUBLAS = ("addmm", "baddbmm", "bmm", "mm")
_OF_FACTORIES = ("device", "pin_memory", "layout")  # arguments that say nothing here


class DeviceTensor(Tensor):
    """A tensor on a simulated device.

    To C++ it is on ``meta``, for which a build without CUDA has all it needs.

    Attributes:
        host: its elements, as the device sees them when it comes to them. The program must not.
        allocation: the memory that ``host`` is in.
    """

    host: Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, host: Tensor, allocation: Allocation) -> "DeviceTensor":
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made = Tensor._make_wrapper_subclass(cls, host.shape, device="meta", **layout)
        made.host, made.allocation = host, allocation
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    device = property(lambda self: torch.device("cuda", self.allocation.device))
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return self.allocation.device

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "DeviceTensor") -> None:
        assert self.shape == other.shape
        self.host, self.allocation = other.host, other.allocation

    def __setitem__(self, index, value) -> None:
        if isinstance(value, int | float):  # C++ would make a tensor on meta of it; for CUDA it is an argument
            self[index].fill_(value)
        else:
            super().__setitem__(index, value)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def numpy(self, *_: Any, **__: Any):
        raise TypeError("can't convert cuda device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> list:
        return self.cpu().tolist()

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return aten._to_copy(self, dtype=dtype, device=device, non_blocking=non_blocking)
        assert device is None or device.index in (None, self.allocation.device), "no copies between simulated devices"
        if dtype in (None, self.dtype) and not copy:
            return self
        return aten._to_copy(self, dtype=dtype)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({list(self.shape)}, {self.dtype}, {self.device})"

    __str__ = __repr__

    def __deepcopy__(self, memo):
        raise NotImplementedError


def allocate(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: int) -> DeviceTensor:
    """Memory of a device, with nothing in it."""
    num_elements = 0 if 0 in size else 1 + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    allocation = Allocation(Machine.get(), num_elements * dtype.itemsize, device)
    return DeviceTensor(allocation.storage.view(dtype).as_strided(size, stride), allocation)


def empty(size: Sequence[int], dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> DeviceTensor:
    """``aten::empty`` on CUDA."""
    stride, step = [], 1
    for extent in reversed(size):
        stride.append(step)
        step *= max(extent, 1)
    return empty_strided(size, stride[::-1], dtype, device)


def empty_strided(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype | None = None, device: Any = None, **_: Any
) -> DeviceTensor:
    """``aten::empty_strided`` on CUDA."""
    index = None if device is None else torch.device(device).index
    index = Machine.get().current_device if index is None else index
    return _filled(allocate(size, stride, dtype or torch.get_default_dtype(), index))


def _filled(made: DeviceTensor) -> DeviceTensor:
    """As torch has it with deterministic algorithms: by a kernel on the current stream."""
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        is_real = made.dtype.is_floating_point
        made.fill_(float("nan") if is_real else made.dtype == torch.bool or torch.iinfo(made.dtype).max)
    return made


class _Operator:
    """What an operator does with its arguments, by its schema."""

    def __init__(self, func: Any) -> None:
        arguments = func._schema.arguments
        self.written = [
            (place, argument.name)
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.has_results = bool(func._schema.returns)
        self.is_view = func in _ALIASES or (func.is_view and not self.written)
        self.is_composite = func._can_decompose() and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        )

    def written_tensors(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        return list(_tensors([args[i] if i < len(args) else kwargs.get(name) for i, name in self.written]))


_operators: dict[Any, _Operator] = {}
_results: dict[Any, Any] = {}  # shapes, strides and types of results, by operator and arguments


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _on_host(value: Any) -> Any:
    """Arguments, with the elements of device tensors in their place."""
    if isinstance(value, DeviceTensor):
        return value.host
    if isinstance(value, list | tuple):
        return type(value)([_on_host(part) for part in value])
    return value


def dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Carries out a call of an operator, or issues it to the current stream of its tensors' device."""
    operator = _operators.get(func) or _operators.setdefault(func, _Operator(func))
    if func is aten.copy_.default:
        out = _copy(*args, **kwargs)
    elif func is aten._to_copy.default and kwargs.get("device") is not None and kwargs["device"].type == "cpu":
        out = _to_host(*args, **kwargs)
    elif operator.is_composite and (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
        out = parts
    elif operator.is_view:
        out = _view(func, args, kwargs)
    else:
        out = _compute(operator, func, args, {name: kwargs[name] for name in kwargs if name not in _OF_FACTORIES})
    return out


def _compute(operator: _Operator, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    machine = Machine.get()
    tensors = list(_tensors([*args, *kwargs.values()]))
    device = _device(func, tensors)
    stream = machine.current_stream(device)
    host_args, host_kwargs = _on_host(args), {name: _on_host(value) for name, value in kwargs.items()}
    has_mask = func in _INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
    if func in _READ_BY_HOST or func in _SIZED_BY_VALUES or has_mask:
        machine.count_wait(func.name())
        machine.drain(stream)
        if not machine.computes:
            assert func is aten._local_scalar_dense.default, f"{func} needs values, and nothing is computed"
            return torch.zeros((), dtype=tensors[0].dtype).item()
        out = func(*host_args, **host_kwargs)
        return _to_device(out, device) if isinstance(out, Tensor) else out
    if func in _UNFILLED:
        return _filled(_like_results(func, args, kwargs, device))
    if stream.graph is None:
        machine.launches[stream.number, func.name()] += 1
    if func._schema.name.removeprefix("aten::") in _BY_CUBLAS:
        machine.give_workspace(stream)
    if torch.are_deterministic_algorithms_enabled() and func in _SORTING:
        _sort_indices(func, *args)
    if operator.written:
        written = operator.written_tensors(args, kwargs)
        places = [_on_host(tensor) for tensor in written]  # not the tensors: work does not keep memory
        shapes = [place.shape for place in places]

        def update() -> None:
            func(*host_args, **host_kwargs)
            assert [place.shape for place in places] == shapes, f"{func} resizes its result"

        access = _access(func, args, tensors, written) if machine.races else None
        machine.push(stream, Work(func.name(), update, access))
        return (written[0] if len(written) == 1 else tuple(written)) if operator.has_results else None
    out = _like_results(func, args, kwargs, device)
    outs = list(_tensors([out]))
    results = [part.host for part in outs]

    def compute() -> None:
        for place, result in zip(results, _tensors([func(*host_args, **host_kwargs)]), strict=True):
            if place.shape == result.shape:  # the further results of embedding_bag are others on the CPU
                place.copy_(result)

    machine.push(stream, Work(func.name(), compute, _access(func, args, tensors, outs) if machine.races else None))
    return out


def _sort_indices(func: Any, target: Tensor, dim: int, indices: Tensor, source: Tensor) -> None:
    """Memory of operators that become index_put_ with deterministic algorithms, while it is taken.

    See index_add_cuda_impl, index_copy_out and index_put_with_sort_kernel of aten/src/ATen/native: linear indices,
    sorted ones and their order, the sort's own copies, and of index_add_ the source times alpha.
    """
    device = indices.allocation.device
    taken = [allocate((len(indices),), (1,), torch.int64, device) for _ in range(6)]
    if func is aten.index_add_.default:
        taken.append(allocate((source.numel(),), (1,), source.dtype, device))


def _view(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    base = args[0]
    out = func(base.host, *args[1:], **kwargs)
    if base.is_inference() == torch.is_inference_mode_enabled():
        return _wrapped(out, base.allocation)
    with torch.inference_mode(base.is_inference()):  # a view is what its base is
        return _wrapped(out, base.allocation)


def _wrapped(out: Any, allocation: Allocation) -> Any:
    return DeviceTensor(out, allocation) if isinstance(out, Tensor) else [DeviceTensor(t, allocation) for t in out]


def _device(func: Any, tensors: Sequence[Tensor]) -> int:
    """The device that all tensors are on. Scalars, and indices of the host, are copied to it."""
    devices = {tensor.allocation.device for tensor in tensors if isinstance(tensor, DeviceTensor)}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices} ({func})")
    for place, tensor in enumerate(tensors):
        if isinstance(tensor, DeviceTensor) or (tensor.ndim == 0 and func not in _INDEXING):
            continue
        if func in _INDEXING and place:
            Machine.get().count_wait(f"{func.name()} with indices of the host")
            continue
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda and cpu! ({func})")
    return devices.pop()


def _access(func: Any, args: Sequence[Any], tensors: Sequence[Tensor], written: Sequence[Tensor]) -> Access:
    """All of every tensor, but of a table whose rows are gathered or scattered only those rows."""
    if func in (aten.index_select.out, aten.index_select.default) and args[1] == 0:
        table, rows = tensors[:2]
        return Access([_part(table, rows), _part(rows)], [_part(t) for t in written])
    if func is aten.index_copy_.default and args[1] == 0:
        table, rows, records = tensors
        return Access([_part(rows), _part(records)], [_part(table, rows)])
    return Access(
        [_part(t) for t in tensors if isinstance(t, DeviceTensor)],
        [_part(t) for t in written if isinstance(t, DeviceTensor)],
    )


def _part(tensor: Tensor, rows: Tensor | None = None) -> Part:
    assert isinstance(tensor, DeviceTensor)
    return Part(tensor.host, tensor.allocation.history, _on_host(rows))


def _like_results(func: Any, args: Sequence[Any], kwargs: dict[str, Any], device: int) -> Any:
    """Memory for an operator's results, whose shapes the ``meta`` device knows."""
    key = (func, _shapes(args), _shapes(tuple(kwargs.items())))
    if key not in _results:
        out = func(*_on_meta(args), **{name: _on_meta(value) for name, value in kwargs.items()})
        shapes = [(tuple(part.shape), part.stride(), part.dtype) for part in _tensors([out])]
        _results[key] = shapes[0] if isinstance(out, Tensor) else tuple(shapes)
    found = _results[key]
    if isinstance(found[-1], torch.dtype):
        return allocate(*found, device)
    return tuple(allocate(*shape, device) for shape in found)


def _shapes(value: Any) -> Any:
    """What results' shapes depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple([_shapes(part) for part in value])
    return float if isinstance(value, float) else (type(value), value)


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, list | tuple):
        return type(value)([_on_meta(part) for part in value])
    return value


def _to_device(host: Tensor, device: int) -> DeviceTensor:
    """A result whose size was unknown."""
    made = allocate(host.shape, host.contiguous().stride(), host.dtype, device)
    place = made.host
    Machine.get().push(made.allocation.stream, Work("result", lambda: place.copy_(host)), counts=False)
    return made


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Within a device, or between it and the host: late with pinned memory, else done when the call returns."""
    machine = Machine.get()
    to_device, from_device = isinstance(target, DeviceTensor), isinstance(source, DeviceTensor)
    name = "on device" if to_device and from_device else "to device" if to_device else "to host"
    device = _device(aten.copy_, [tensor for tensor in (target, source) if isinstance(tensor, DeviceTensor)])
    stream = machine.current_stream(device)
    where, what = _on_host(target), _on_host(source)
    reads, writes = [_part(source)] if from_device else [], [_part(target)] if to_device else []
    is_late = non_blocking and machine.is_pinned(source if to_device else target)
    waits = name != "on device" and not is_late
    if waits:
        machine.count_wait(f"copy {name}")
    if stream.graph is None:
        machine.copied_bytes[name] += what.numel() * what.element_size()
        machine.launches[stream.number, f"copy {name}"] += 1
    if not to_device:  # until the copy arrives
        where.fill_(float("nan") if machine.computes and where.dtype.is_floating_point else 0)
    machine.push(stream, Work(f"copy {name}", lambda: where.copy_(what), Access(reads, writes)))
    if waits:
        machine.drain(stream)
    return target


def _to_host(source: DeviceTensor, dtype: torch.dtype | None = None, non_blocking: bool = False, **_: Any) -> Tensor:
    out = torch.empty(source.shape, dtype=dtype or source.dtype, pin_memory=non_blocking)
    return _copy(out, source, non_blocking)
