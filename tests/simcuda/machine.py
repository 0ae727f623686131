"""Simulated devices: streams whose work waits in queues, events, graphs, memory, and what the host waits for."""

import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from simcuda.memory import CachingAllocator
from simcuda.races import Access, Clock, History, Part, RaceDetector, merge

SCHEDULES = ("eager", "late", "copies-first", "training-first", "random")
"""How far streams come by themselves, from call to call of the host.

- eager: everything is done at once.
- late: nothing is done until the host waits for it, and then no more than it must.
- copies-first: all streams but the default one run ahead of it, as far as events let them.
- training-first: the default stream runs ahead of the others.
- random: any stream goes on by some steps, by a seed.
"""

WORKSPACE_BYTES = 32 << 20
"""Of cuBLAS, for each stream that multiplies matrices, with ``CUBLAS_WORKSPACE_CONFIG=:4096:8``."""

_CAPTURING = "CUDA error: operation not permitted when stream is capturing"


class Mark:
    """A point that a stream's work reaches: an event as it was recorded once."""

    def __init__(self, stream: "Stream") -> None:
        self.stream = stream
        self.clock: Clock = {}
        self.is_reached = False


@dataclass(slots=True)
class Work:
    """An entry of a stream's queue.

    Attributes:
        name: for messages.
        do: what is to be done.
        access: the memory it touches, if accesses are checked.
        reaches: the mark that is reached with it.
        waits_for: the mark without which the stream does not go on.
        clock: what is known to be done before it.
    """

    name: str
    do: Callable[[], object] | None = None
    access: Access | None = None
    reaches: Mark | None = None
    waits_for: Mark | None = None
    clock: Clock = field(default_factory=dict)


class Stream:
    """As ``torch.cuda.Stream``."""

    def __init__(self, machine: "Machine", device: int) -> None:
        self.machine = machine
        self.device_index = device
        self.device = torch.device("cuda", device)
        self.number = self.stream_id = self.cuda_stream = len(machine.streams)
        self.queue: deque[Work] = deque()
        self.clock: Clock = {}
        self.graph: Graph | None = None  # that is being captured
        machine.streams.append(self)

    @property
    def is_default(self) -> bool:
        return self is self.machine.default_streams[self.device_index]

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def is_capturing(self) -> bool:
        return self.graph is not None

    def query(self) -> bool:
        return not self.queue

    def synchronize(self) -> None:
        self.machine.count_wait("Stream.synchronize")
        self.machine.drain(self)


class Event:
    """As ``torch.cuda.Event``: of the device on which it is first recorded."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._has_time = enable_timing
        self._device: int | None = None
        self.mark: Mark | None = None

    def record(self, stream: Stream | None = None) -> None:
        machine = Machine.get()
        stream = stream or machine.current_stream()
        if stream.graph is not None:
            raise RuntimeError("an event recorded during a capture is a part of the graph; the host cannot wait for it")
        if self._device not in (None, stream.device_index):
            raise RuntimeError(f"the event is of cuda:{self._device}, the stream that records it of {stream.device}")
        self._device = stream.device_index
        with machine.lock:
            self.mark = Mark(stream)
            machine.push(stream, Work("record", reaches=self.mark))

    def wait(self, stream: Stream | None = None) -> None:
        machine = Machine.get()
        if self.mark is not None:
            machine.push(stream or machine.current_stream(), Work("wait", waits_for=self.mark))

    def query(self) -> bool:
        return self.mark is None or self.mark.is_reached

    def synchronize(self) -> None:
        machine = Machine.get()
        machine.check_may_wait("Event.synchronize")
        if self.mark is not None:
            machine.count_wait("Event.synchronize")
            machine.reach(self.mark)

    def elapsed_time(self, end: "Event") -> float:
        if not (self._has_time and end._has_time):
            raise RuntimeError("both events must be created with enable_timing=True")
        if self.mark is None or end.mark is None or not (self.query() and end.query()):
            raise RuntimeError("CUDA error: device not ready")
        return 0.001


class Graph:
    """As ``torch.cuda.CUDAGraph``: what was issued during its capture, with its addresses."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.works: list[Work] = []
        self.pool: object = None
        self.thread = 0
        self.mode = ""

    def replay(self) -> None:
        machine = Machine.get()
        stream = machine.current_stream()
        machine.launches[stream.number, "graph"] += 1
        for work in self.works:
            machine.push(stream, Work(work.name, work.do, work.access))


class Allocation:
    """The device memory of one storage; it lies in host memory, and is given back with the last tensor in it.

    The caching allocator lets the next owner write at once, in the order of the stream for which the memory was made:
    earlier owners' work may still be waiting there, and so may the next one's be while another stream still reads.

    Attributes:
        storage: [n] uint8; on ``meta`` where nothing is computed.
        history: its accesses.
    """

    def __init__(self, machine: "Machine", num_bytes: int, device: int) -> None:
        self.machine = machine
        self.device = device
        self.stream = machine.current_stream(device)
        self.graph_pool = None if self.stream.graph is None else self.stream.graph.pool
        with machine.lock:
            machine.take_back()
            try:
                self.block = machine.allocators[device].allocate(num_bytes, self.stream.number, self.graph_pool)
            except MemoryError:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {num_bytes} bytes (simulated)") from None
        self.storage = torch.empty(num_bytes, dtype=torch.uint8, device="cpu" if machine.computes else "meta")
        self.history = History()
        if machine.computes:
            self.storage.fill_(0xFF)  # NaN
            if self.graph_pool is None:
                machine.push(self.stream, self.overwriting("the earlier owner's write"), counts=False)

    def overwriting(self, name: str) -> Work:
        """Work of another owner of this memory."""
        storage = self.storage
        access = Access([], [Part(storage, self.history)]) if self.machine.races else None
        return Work(name, lambda: storage.fill_(0xFF), access)

    def __del__(self) -> None:
        if hasattr(self, "history"):
            self.machine.given_back.append((self, dict(self.machine.host_clock())))


class Machine:
    """Devices, and a host that issues work to them; one machine at a time.

    Args:
        schedule: of `SCHEDULES`.
        seed: of schedule ``random``.
        races: whether accesses are checked for an order between streams.
        num_devices: ``cuda:0`` and on.
        total_bytes: of each device's memory.
        pinned_bytes: of host memory that can be pinned.
        computes: whether work is done at all. If not, tensors have a shape and take memory of the device, but have no
            elements; the host reads zeros.

    Attributes:
        races: what the detector found, or None.
        launches: how often work was issued, by the number of the stream (0: the default one) and its name.
        waits: how often the host waited, by thread and reason.
        copied_bytes: by direction: ``to device``, ``to host``, ``on device``.
        most_pinned_bytes: the most that was pinned, in powers of two as torch takes it.
    """

    current: "Machine | None" = None

    def __init__(
        self,
        schedule: str = "late",
        *,
        seed: int = 0,
        races: bool = False,
        num_devices: int = 1,
        total_bytes: int = 8 << 30,
        pinned_bytes: int = 8 << 30,
        computes: bool = True,
    ) -> None:
        assert schedule in SCHEDULES
        self.schedule = schedule
        self.computes = computes
        self.lock = threading.RLock()
        self.races = RaceDetector() if races else None
        self.launches: Counter[tuple[int, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copied_bytes: Counter[str] = Counter()
        self.sync_debug_mode = 0
        self.total_bytes, self.pinned_bytes = total_bytes, pinned_bytes
        self.pinned: dict[int, torch.Tensor] = {}  # by address; kept, so that no other storage gets it
        self.most_pinned_bytes = 0
        self.streams: list[Stream] = []
        self.default_streams = [Stream(self, device) for device in range(num_devices)]
        self.allocators = [CachingAllocator(total_bytes) for _ in range(num_devices)]
        self.given_back: deque[tuple[Allocation, Clock]] = deque()
        self._have_workspace: set[Stream] = set()
        self._random = random.Random(seed)
        self._local = threading.local()
        self._host_clocks: dict[int, Clock] = {}

    @classmethod
    def get(cls) -> "Machine":
        """The machine that takes the place of torch.cuda now."""
        assert cls.current is not None, "this is for simulated_cuda"
        return cls.current

    # --- what is current in a thread

    @property
    def current_device(self) -> int:
        return getattr(self._local, "device", 0)

    @current_device.setter
    def current_device(self, device: int) -> None:
        self._local.device = device

    def current_stream(self, device: int | None = None) -> Stream:
        """This thread's stream of a device, or of the current one."""
        device = self.current_device if device is None else device
        return getattr(self._local, "streams", {}).get(device, self.default_streams[device])

    @contextmanager
    def on_stream(self, stream: Stream | None) -> Iterator[None]:
        """As ``torch.cuda.stream``: makes a stream, and its device, current."""
        if stream is None:
            yield
            return
        device, streams = self.current_device, getattr(self._local, "streams", {})
        self._local.streams = {**streams, stream.device_index: stream}
        self.current_device = stream.device_index
        try:
            yield
        finally:
            self._local.streams, self.current_device = streams, device

    @contextmanager
    def on_device(self, device: int) -> Iterator[None]:
        """As ``torch.cuda.device``."""
        before, self.current_device = self.current_device, device
        try:
            yield
        finally:
            self.current_device = before

    def host_clock(self) -> Clock:
        """What this thread knows to be done."""
        return self._host_clocks.setdefault(threading.get_ident(), {})

    def begin_thread(self, clock: Clock) -> None:
        """This thread begins with what its parent knew."""
        self._host_clocks[threading.get_ident()] = dict(clock)

    # --- work

    def push(self, stream: Stream, work: Work, *, counts: bool = True) -> None:
        """Issues work to a stream; ``counts``: it is the program's, so that streams may go on meanwhile."""
        if stream.graph is not None:
            if work.do is None:
                raise RuntimeError("an event of another stream cannot be waited for in this capture")
            if counts:
                stream.graph.works.append(work)
            return
        if not self.computes:
            work.do = None
        with self.lock:
            if self.given_back:
                self.take_back()
            self._enqueue(stream, work, self.host_clock())
            if counts:
                self._settle(stream)

    def _enqueue(self, stream: Stream, work: Work, host_clock: Clock) -> None:
        merge(stream.clock, host_clock)
        if work.waits_for is not None:
            merge(stream.clock, work.waits_for.clock)
        else:
            stream.clock[stream.number] = stream.clock.get(stream.number, 0) + 1
        work.clock = dict(stream.clock)
        if work.reaches is not None:
            work.reaches.clock = work.clock
        stream.queue.append(work)

    def take_back(self) -> None:
        """Memory whose tensors are gone may be written by its next owner. Garbage collection comes at any time, so
        `Allocation` only puts it down."""
        while self.given_back:
            allocation, clock = self.given_back.popleft()
            self.allocators[allocation.device].give_back(allocation.block)
            if self.computes and allocation.graph_pool is None:
                self._enqueue(allocation.stream, allocation.overwriting("the next owner's write"), clock)

    def _settle(self, stream: Stream) -> None:
        """Streams go on while the host does."""
        if self.schedule == "eager":
            self._run(stream, None)
        elif self.schedule == "random":
            for _ in range(self._random.choice((0, 0, 0, 1, 2, 9))):
                self._step(self._random.choice(self.streams))
        elif self.schedule in ("copies-first", "training-first"):
            for other in self.streams:
                if other.is_default == (self.schedule == "training-first"):
                    while self._step(other):
                        pass

    def _step(self, stream: Stream) -> bool:
        """Does the next work of a stream; False if there is none that may be done."""
        if not stream.queue or (stream.queue[0].waits_for is not None and not stream.queue[0].waits_for.is_reached):
            return False
        work = stream.queue.popleft()
        if work.do is not None:
            if self.races is not None and work.access is not None:
                self.races.check(work.name, work.access, work.clock, stream.number)
            if torch.is_inference_mode_enabled():
                work.do()
            else:
                with torch.inference_mode():
                    work.do()
        if work.reaches is not None:
            work.reaches.is_reached = True
        return True

    def _run(self, stream: Stream, until: Mark | None) -> None:
        """Does a stream's work until a mark, or all of it, and of other streams as much as it waits for."""
        while stream.queue and not (until is not None and until.is_reached):
            if not self._step(stream):
                mark = stream.queue[0].waits_for
                assert mark is not None
                self._run(mark.stream, mark)

    # --- the host waits

    def reach(self, mark: Mark) -> None:
        """The host waits for a mark."""
        with self.lock:
            if self.schedule == "random":
                self._settle(mark.stream)
            self._run(mark.stream, mark)
            merge(self.host_clock(), mark.clock)

    def drain(self, stream: Stream) -> None:
        """The host waits for all work of a stream."""
        with self.lock:
            self.take_back()
            self._run(stream, None)
            merge(self.host_clock(), stream.clock)

    def synchronize(self, device: int) -> None:
        """The host waits for all work of a device."""
        self.count_wait("synchronize")
        with self.lock:
            for stream in self._random.sample(self.streams, len(self.streams)):
                if stream.device_index == device:
                    self.drain(stream)

    def check_may_wait(self, what: str) -> None:
        """Raises:
        RuntimeError: a graph is being captured, by this thread or in mode ``global``.
        """
        for graph in [stream.graph for stream in self.streams]:
            if graph is not None and (graph.mode == "global" or graph.thread == threading.get_ident()):
                raise RuntimeError(f"{_CAPTURING} ({what})")

    def count_wait(self, what: str) -> None:
        """The host is going to wait.

        Raises:
            RuntimeError: a graph is being captured, or ``torch.cuda.set_sync_debug_mode`` forbids it, which knows of
                operators and streams, but not of events and devices.
        """
        self.check_may_wait(what)
        self.waits[threading.current_thread().name, what] += 1
        if self.sync_debug_mode == 2 and what not in ("synchronize", "Event.synchronize"):
            raise RuntimeError(f"called a synchronizing CUDA operation ({what})")

    def give_workspace(self, stream: Stream) -> None:
        """Takes the memory that cuBLAS works in, once for a stream (aten/src/ATen/cuda/CublasHandlePool.cpp)."""
        with self.lock:
            if stream not in self._have_workspace:
                self._have_workspace.add(stream)
                pool = None if stream.graph is None else stream.graph.pool
                self.allocators[stream.device_index].allocate(WORKSPACE_BYTES, stream.number, pool)

    # --- graphs

    @contextmanager
    def capture(
        self, graph: Graph, pool: object = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """As ``torch.cuda.graph``."""
        stream = stream or Stream(self, self.current_device)
        self.synchronize(self.current_device)
        self.allocators[self.current_device].release_idle_segments()
        assert not stream.is_default, "the default stream cannot be captured"
        graph.pool, graph.thread, graph.mode = pool or object(), threading.get_ident(), capture_error_mode
        with self.on_stream(stream):
            stream.graph = graph
            try:
                yield
            finally:
                stream.graph = None

    # --- host memory

    def pin(self, tensor: torch.Tensor) -> None:
        """Makes the memory of a host tensor pinned.

        Raises:
            RuntimeError: the host can pin no more.
        """
        self.check_may_wait("pinning memory")
        size = tensor.untyped_storage().nbytes()
        pinned = 1 << (size - 1).bit_length() if size else 0
        if self.most_pinned_bytes + pinned > self.pinned_bytes:
            raise torch.AcceleratorError("CUDA error: out of memory (simulated: no more memory can be pinned)")
        self.most_pinned_bytes += pinned
        if size:
            self.pinned[tensor.untyped_storage().data_ptr()] = tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def close(self) -> None:
        """Drops everything that nobody waited for."""
        for stream in self.streams:
            stream.graph = None
            stream.queue.clear()
