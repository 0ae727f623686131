"""Puts a machine in the place of torch.cuda: ``with simulated_cuda(schedule="late") as machine: ...``."""

import queue
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from simcuda.machine import Event, Graph, Machine, Stream
from simcuda.races import Clock, merge
from simcuda.tensor import empty, empty_strided

_kernels: list[torch.library.Library] = []


@contextmanager
def simulated_cuda(schedule: str = "late", **settings: Any) -> Iterator[Machine]:
    """torch.cuda is a `Machine` meanwhile.

    Args:
        schedule: of `simcuda.SCHEDULES`.
        settings: of `Machine`.

    Raises:
        RuntimeError: there is a real device.
    """
    if torch.cuda.is_available():
        raise RuntimeError("this torch has a CUDA device of its own")
    if not _kernels:  # the two that factories end in; everything else comes to the tensors
        _kernels.append(torch.library.Library("aten", "IMPL"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a build with CUDA has kernels there, which nothing can run
            _kernels[0].impl("empty.memory_format", empty, "CUDA")
            _kernels[0].impl("empty_strided", empty_strided, "CUDA")
    machine = Machine(schedule, **settings)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **_functions(machine)))
        current_stream = torch.cuda.current_stream  # for torch.optim of torch 2.15
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", current_stream))
        stack.enter_context(mock.patch.multiple(torch, **_factories(machine)))
        stack.enter_context(mock.patch.multiple(torch.Tensor, **_moves(machine)))
        stack.enter_context(mock.patch.multiple(threading.Thread, **_starts(machine)))
        stack.enter_context(mock.patch.object(threading, "Semaphore", _Semaphore))
        stack.enter_context(mock.patch.object(queue, "SimpleQueue", _SimpleQueue))
        stack.enter_context(mock.patch.object(Machine, "current", machine))
        try:
            yield machine
        finally:
            machine.close()


def _functions(machine: Machine) -> dict[str, Any]:
    """Of torch.cuda."""

    def index(device: Any) -> int:
        number = device if isinstance(device, int | None) else torch.device(device).index
        return machine.current_device if number is None else number

    def allocator(device: Any = None):
        machine.take_back()
        return machine.allocators[index(device)]

    def set_sync_debug_mode(mode: int | str) -> None:
        machine.sync_debug_mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return machine.total_bytes - allocator(device).reserved, machine.total_bytes

    properties = SimpleNamespace(
        name="simulated", total_memory=machine.total_bytes, major=9, minor=0, multi_processor_count=1
    )
    return {
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "device_count": lambda: len(machine.default_streams),
        "current_device": lambda: machine.current_device,
        "set_device": lambda device: setattr(machine, "current_device", index(device)),
        "device": lambda device: machine.on_device(index(device)),
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "synchronize": lambda device=None: machine.synchronize(index(device)),
        "Stream": lambda device=None, **_: Stream(machine, index(device)),
        "stream": machine.on_stream,
        "current_stream": lambda device=None: machine.current_stream(index(device)),
        "is_current_stream_capturing": lambda: machine.current_stream(machine.current_device).is_capturing(),
        "default_stream": lambda device=None: machine.default_streams[index(device)],
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": machine.capture,
        "graph_pool_handle": object,
        "mem_get_info": mem_get_info,
        "memory_allocated": lambda device=None: allocator(device).allocated,
        "max_memory_allocated": lambda device=None: allocator(device).peak_allocated,
        "memory_reserved": lambda device=None: allocator(device).reserved,
        "max_memory_reserved": lambda device=None: allocator(device).peak_reserved,
        "reset_peak_memory_stats": lambda device=None: allocator(device).reset_peaks(),
        "set_per_process_memory_fraction": lambda fraction, device=None: allocator(device).limit(fraction),
        "empty_cache": lambda: allocator().release_idle_segments(),
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: machine.sync_debug_mode,
    }


def _factories(machine: Machine) -> dict[str, Any]:
    """Of torch, where a build without CUDA would refuse arguments."""
    plain_empty, plain_tensor, plain_arange = torch.empty, torch.tensor, torch.arange

    def pinning_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        made = plain_empty(*args, **kwargs)
        if pin_memory:
            machine.pin(made)
            made.untyped_storage().fill_(0xFF)
        return made

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        made = plain_tensor(data, *args, **kwargs)
        return made if device is None else made.to(device)

    def arange(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type == "cpu":
            return plain_arange(*args, **kwargs)
        host = plain_arange(*args, **kwargs)
        return plain_arange(*args, out=plain_empty(host.shape, dtype=host.dtype, device=device))

    return {"empty": pinning_empty, "tensor": tensor, "arange": arange}


def _moves(machine: Machine) -> dict[str, Any]:
    """Of host tensors."""
    plain_to = torch.Tensor.to

    def numbered(value: Any) -> Any:
        """A device with its number, for which C++ would ask a driver."""
        if isinstance(value, str | torch.device) and str(value) == "cuda":
            return torch.device("cuda", machine.current_device)
        return value

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return plain_to(tensor, *map(numbered, args), **{name: numbered(value) for name, value in kwargs.items()})

    def cuda(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return to(tensor, "cuda")

    return {"to": to, "cuda": cuda, "is_pinned": lambda tensor, *_: machine.is_pinned(tensor)}


# --- What one thread knows of the device, another learns when it waits for the first.


def _starts(machine: Machine) -> dict[str, Any]:
    """Of threading.Thread: who is started knows what the starter knew, who joins what the joined knew."""
    start, bootstrap, join = threading.Thread.start, threading.Thread._bootstrap_inner, threading.Thread.join
    clocks: dict[threading.Thread, Clock] = {}

    def start_knowing(thread: threading.Thread) -> None:
        clocks[thread] = dict(machine.host_clock())
        start(thread)

    def bootstrap_knowing(thread: threading.Thread) -> None:
        machine.begin_thread(clocks.get(thread, {}))
        clocks[thread] = machine.host_clock()
        bootstrap(thread)

    def join_learning(thread: threading.Thread, timeout: float | None = None) -> None:
        join(thread, timeout)
        if not thread.is_alive():
            merge(machine.host_clock(), clocks.get(thread, {}))

    return {"start": start_knowing, "_bootstrap_inner": bootstrap_knowing, "join": join_learning}


class _Semaphore(threading.Semaphore):
    """Who acquires it knows what those knew who released it."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self._clock: Clock = {}

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        done = super().acquire(*args, **kwargs)
        if Machine.current is not None:
            merge(Machine.current.host_clock(), self._clock)
        return done

    def release(self, n: int = 1) -> None:
        if Machine.current is not None:
            merge(self._clock, Machine.current.host_clock())
        super().release(n)


class _SimpleQueue(queue._PySimpleQueue):
    """Who takes an item knows what those knew who put it."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put((item, {} if Machine.current is None else dict(Machine.current.host_clock())))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item, clock = super().get(block, timeout)
        if Machine.current is not None:
            merge(Machine.current.host_clock(), clock)
        return item
