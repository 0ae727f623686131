"""The simulated device finds what it is for, and promises what CUDA does. A new torch that breaks it fails here."""

import gc
import queue
import threading

import numpy as np
import pytest
import torch

from simcuda import SCHEDULES, simulated_cuda
from simcuda.memory import MIB, CachingAllocator

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")


@pytest.fixture(params=SCHEDULES)
def machine(request):
    with simulated_cuda(request.param, races=True) as made:
        yield made
        torch.cuda.synchronize()
    assert not made.races.found, made.races.found


# --- torch.cuda, by each schedule


@pytest.mark.usefixtures("machine")
def test_tensors_say_where_they_are():
    made = torch.empty(2, 3, device="cuda")
    assert (made.device, made.is_cuda, made.is_cpu) == (torch.device("cuda:0"), True, False)
    assert torch.from_numpy(np.ones(3)).to("cuda").device.type == "cuda"
    assert torch.ones(3).cuda().cpu().device.type == "cpu"
    with pytest.raises(TypeError, match="cpu"):
        made.numpy()
    with pytest.raises(RuntimeError, match="same device"):
        made + torch.ones(2, 3)
    assert (made.fill_(1) + torch.tensor(2.0)).tolist() == [[3] * 3] * 2, "a scalar of the host is an argument"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("through_autograd", [False, True])
def test_a_training_step_has_the_bits_of_the_cpu(through_autograd):
    def train(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)).to(device)
        optimizer = torch.optim.Adam(layer.parameters())
        for _ in range(3):
            x = torch.arange(21.0).view(3, 7).to(device)
            if through_autograd:
                optimizer.zero_grad()
                layer(x).square().mean().backward()
                optimizer.step()
            else:
                with torch.inference_mode():
                    layer[0].weight.sub_(torch.addmm(layer[0].bias, x, layer[0].weight.t()).t() @ x, alpha=0.01)
        return [parameter.detach().cpu() for parameter in layer.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train("cpu"), train("cuda"), strict=True))


@pytest.mark.usefixtures("machine")
def test_operators_by_index_and_by_value():
    table = torch.arange(12.0).view(6, 2).cuda()
    rows = torch.tensor([4, 1], device="cuda")
    assert table[rows].tolist() == [[8, 9], [2, 3]]
    out = torch.empty(2, 2, device="cuda")
    torch.index_select(table, 0, rows, out=out)
    table.index_copy_(0, rows, out * 2)
    table[0] = 7.0
    assert table.cpu()[[0, 1, 4]].tolist() == [[7, 7], [4, 6], [16, 18]]
    assert (table > 15).nonzero().tolist() == [[4, 0], [4, 1]]
    assert table.sum().item() == float(table.cpu().sum())
    assert torch.equal(table, table.clone())


def test_events_order_two_streams(machine):
    copies = torch.cuda.Stream()
    done, read = torch.cuda.Event(), torch.cuda.Event()
    memory = torch.empty(4, device="cuda")
    copies.wait_stream(torch.cuda.current_stream())
    for step in range(5):
        with torch.cuda.stream(copies):
            if step:
                read.wait()
            memory.fill_(step)
            done.record()
        done.wait()
        total = memory.sum()
        read.record()
        assert total.item() == 4 * step
    assert machine.launches[0, "aten::sum"] == 5
    assert machine.launches[1, "aten::fill_.Scalar"] == 5


def test_pinned_copies_are_late_and_others_wait(machine):
    pinned = torch.empty(3, pin_memory=True)
    assert pinned.is_pinned()
    assert pinned.isnan().all()
    device = torch.empty(3, device="cuda")
    device.copy_(pinned.fill_(2), non_blocking=True)
    assert not machine.waits
    torch.cuda.current_stream().synchronize()
    device.copy_(torch.ones(3), non_blocking=True)
    assert machine.waits["MainThread", "copy to device"] == 1, "pageable memory is copied before the call returns"
    pinned.copy_(device, non_blocking=True)
    torch.cuda.synchronize()
    assert pinned.tolist() == [1, 1, 1]
    assert machine.copied_bytes == {"to device": 24, "to host": 12}


def test_a_graph_repeats_work_at_its_addresses(machine):
    x = torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, torch.cuda.graph_pool_handle(), torch.cuda.Stream()):
        y = (x + 1) * 2
        with pytest.raises(RuntimeError, match="capturing"):
            y.sum().item()
    before = sum(machine.launches.values())
    for value in (3, 5):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [2 * value + 2] * 3
    assert sum(machine.launches.values()) == before + 6, "fill, graph and copy"


# --- what must not happen


def unordered(case: str) -> object:
    """Leaves out one order; what the host sees then."""
    copies = torch.cuda.Stream()
    torch.cuda.synchronize()
    memory = torch.zeros(4, device="cuda")
    torch.cuda.synchronize()
    if case == "the reader does not wait":
        with torch.cuda.stream(copies):
            memory.fill_(1)
        return (memory + 0).tolist()
    if case == "the writer does not wait":
        result = memory + 0
        with torch.cuda.stream(copies):
            memory.fill_(1)
            copies.synchronize()
        return [1 - value for value in result.tolist()]
    if case == "the allocation is not ordered":
        memory = torch.empty(4, device="cuda")
        with torch.cuda.stream(copies):
            memory.fill_(1)
            copies.synchronize()
        return memory.tolist()
    if case == "memory is given back too early":
        with torch.cuda.stream(copies):
            result = memory + 1
        del memory
        torch.zeros(4, device="cuda")
        copies.synchronize()
        return result.tolist()
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    ["the reader does not wait", "the writer does not wait", "the allocation is not ordered",
     "memory is given back too early"],
)  # fmt: skip
def test_a_missing_order_is_found(case):
    seen = {}
    for schedule in SCHEDULES:
        with simulated_cuda(schedule, races=True) as machine:
            seen[schedule] = unordered(case)
            torch.cuda.synchronize()
            assert machine.races.found, f"{schedule}: vector clocks see it whatever was first"
    assert any(values != [1] * 4 for values in seen.values()), "some schedule shows it in the values"


def test_rows_of_one_table_may_differ():
    for other, num_races in (([2, 3], 0), ([1, 2], 1)):
        with simulated_cuda("random", seed=3, races=True) as machine:
            table = torch.zeros(6, 2, device="cuda")
            mine, theirs, values = torch.tensor([0, 1]).cuda(), torch.tensor(other).cuda(), torch.ones(2, 2).cuda()
            torch.cuda.synchronize()
            table.index_copy_(0, mine, values)
            with torch.cuda.stream(torch.cuda.Stream()):
                table.index_select(0, theirs)
            torch.cuda.synchronize()
        assert len(machine.races.found) == num_races, machine.races.found


@pytest.mark.parametrize("waits_in_thread", [False, True])
@pytest.mark.parametrize("told_by", ["queue", "semaphore", "join"])
def test_threads_tell_each_other_what_they_waited_for(told_by, waits_in_thread):
    with simulated_cuda("late", races=True) as machine:
        memory = torch.zeros(4, device="cuda")
        torch.cuda.synchronize()
        told, semaphore = queue.SimpleQueue(), threading.Semaphore(0)

        def copy() -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                memory.fill_(1)
                if waits_in_thread:
                    torch.cuda.current_stream().synchronize()
            told.put(None)
            semaphore.release()

        thread = threading.Thread(target=copy)
        thread.start()
        {"queue": told.get, "semaphore": semaphore.acquire, "join": thread.join}[told_by]()
        memory.sum()
        torch.cuda.synchronize()
        thread.join()
    assert bool(machine.races.found) != waits_in_thread


def test_pinned_memory_that_is_written_too_early_shows():
    with simulated_cuda("late"):
        pinned, device = torch.empty(3, pin_memory=True), torch.empty(3, device="cuda")
        device.copy_(pinned.fill_(1), non_blocking=True)
        pinned.fill_(2)
        assert device.tolist() == [2] * 3
        pinned.copy_(device, non_blocking=True)
        assert pinned.isnan().all(), "nor has it arrived"


def test_another_device_has_other_streams():
    with simulated_cuda("late", num_devices=2) as machine:
        made = torch.ones(3, device="cuda:1")
        assert made.device == torch.device("cuda:1")
        assert torch.empty(1, device="cuda").device == torch.device("cuda:0"), "the current one"
        assert torch.cuda.current_stream().device == torch.device("cuda:0")
        event = torch.cuda.Event()
        event.record()
        with pytest.raises(RuntimeError, match="of cuda:0"):
            event.record(torch.cuda.current_stream("cuda:1"))
        with torch.cuda.device(1):
            assert torch.cuda.current_stream() is torch.cuda.current_stream("cuda:1")
        with torch.cuda.stream(torch.cuda.Stream("cuda:1")) as _:
            assert torch.cuda.current_device() == 1
        assert torch.cuda.current_device() == 0
        with pytest.raises(RuntimeError, match="same device"):
            made + torch.ones(3, device="cuda")
        assert made.sum().item() == 3
        assert {number for number, _ in machine.launches} == {0, 1}


def test_waits_are_counted_and_may_be_forbidden():
    with simulated_cuda("late") as machine:
        made = torch.ones(3, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        for wait in (lambda: made.sum().item(), made.cpu, made.nonzero, torch.cuda.current_stream().synchronize):
            with pytest.raises(RuntimeError, match="synchronizing"):
                wait()
        made.add_(1)
        torch.cuda.set_sync_debug_mode("default")
        made.sum().item()
        assert machine.waits["MainThread", "aten::_local_scalar_dense"] == 2


# --- memory


def test_memory_is_counted_and_comes_back():
    with simulated_cuda("late", total_bytes=64 * MIB) as machine:
        gc.collect()
        made = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        small = torch.empty(1000, device="cuda")
        assert torch.cuda.memory_allocated() == 3 * MIB + 4096
        assert torch.cuda.memory_reserved() == 22 * MIB
        assert torch.cuda.mem_get_info() == (42 * MIB, 64 * MIB)
        view = made[:10]
        (made.fill_(1), small.zero_().add_(1))
        assert machine.streams[0].queue
        del made, small
        assert torch.cuda.memory_allocated() == 3 * MIB
        del view
        assert torch.cuda.memory_allocated() == 0
        assert torch.cuda.max_memory_allocated() == 3 * MIB + 4096
        torch.empty(60 * MIB, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_reserved() == 60 * MIB, "idle segments made room"
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(65 * MIB, dtype=torch.uint8, device="cuda")
        assert machine.allocators[0].peak_reserved == 60 * MIB


def test_segments_are_those_of_the_caching_allocator():
    allocator = CachingAllocator(1 << 40)
    first = allocator.allocate(1, stream=0)
    assert (first.num_bytes, allocator.reserved) == (512, 2 * MIB)
    allocator.allocate(MIB, stream=0)
    assert allocator.reserved == 2 * MIB, "of the same segment"
    allocator.allocate(1, stream=1)
    assert allocator.reserved == 4 * MIB, "another stream has its own"
    middle = allocator.allocate(MIB + 1, stream=0)
    assert allocator.reserved == 24 * MIB
    last = allocator.allocate(9 * MIB, stream=0)
    assert allocator.reserved == 24 * MIB
    allocator.allocate(11 * MIB, stream=0)
    assert allocator.reserved == 36 * MIB, "a segment of its own, in whole 2 MiB"
    allocator.give_back(middle)
    allocator.give_back(last)
    whole = allocator.allocate(19 * MIB, stream=0)
    assert (whole.num_bytes, allocator.reserved) == (20 * MIB, 36 * MIB), "neighbours were joined; 1 MiB is not cut off"
    allocator.give_back(whole)
    allocator.allocate(5 * MIB, stream=0, graph_pool="graphs")
    assert allocator.reserved == 56 * MIB, "graphs have memory of their own"
    allocator.release_idle_segments()
    assert allocator.reserved == 36 * MIB
    assert allocator.peak_reserved == 56 * MIB


def test_shapes_of_any_size_without_computing():
    with simulated_cuda("eager", computes=False, total_bytes=80 << 30) as machine:
        table = torch.empty(1 << 30, 16, device="cuda")
        rows = torch.arange(1000, device="cuda")
        table.index_copy_(0, rows, table.index_select(0, rows) * 2)
        loss = torch.nn.functional.linear(table[:1000], torch.ones(3, 16, device="cuda")).sum()
        assert loss.item() == 0
        assert table.index_select(0, rows).cpu().abs().sum() == 0
        assert torch.cuda.memory_allocated() > 64 << 30
        assert machine.copied_bytes["to host"] == 64000


def test_pinned_memory_may_run_out():
    with simulated_cuda("late", pinned_bytes=3000) as machine:
        torch.empty(260, pin_memory=True)
        assert machine.most_pinned_bytes == 2048, "torch pins powers of two"
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.empty(260, pin_memory=True)


def test_torch_is_as_before_afterwards():
    before = (torch.empty, torch.Tensor.to, torch.cuda.Event, threading.Semaphore, queue.SimpleQueue)
    with simulated_cuda("late"):
        assert torch.cuda.is_available()
    assert (torch.empty, torch.Tensor.to, torch.cuda.Event, threading.Semaphore, queue.SimpleQueue) == before
    assert not torch.cuda.is_available()
