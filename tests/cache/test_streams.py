"""Orders between streams that one computer's results rarely show, each on a simulated device that does show them."""

import threading

import pytest
import torch

from cachedlrm import CachedEmbeddingBags
from cachedlrm.cache.streams import AtRest, Event, StoppedError, TrainedBatches
from cachedlrm.train import main
from simcuda import SCHEDULES, simulated_cuda
from support.runs import parameters, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates a device")

CPU = torch.device("cpu")


def test_batches_of_an_earlier_process_are_waited_for_by_nobody():
    trained = TrainedBatches(CPU, history=3)
    trained.begin(7)
    for index in range(7):
        trained.wait(index)
    waiting = threading.Thread(target=trained.wait, args=(7,), daemon=True)
    waiting.start()
    assert waiting.is_alive()
    trained.mark(7)
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_a_stop_wakes_who_waits():
    trained = TrainedBatches(CPU, history=3)
    trained.stop()
    with pytest.raises(StoppedError):
        trained.wait(0)


@pytest.mark.timeout(120)
def test_a_run_goes_on_after_more_batches_than_the_ring_has_buffers(cuda, tmp_path):
    options = ["--device=cuda", "--prefetch-depth=2", "--gpu-cache-rows=420", "--checkpoint-every=7", "--test-freq=-1"]
    assert train(tmp_path / "run", *options, "--steps=14") == 0
    assert main([f"--resume={tmp_path / 'run'}", "--ui=off", "--steps=20"]) == 0
    assert train(tmp_path / "whole", *options, "--steps=20") == 0
    resumed, whole = parameters(tmp_path / "run", True), parameters(tmp_path / "whole", True)
    assert all((resumed[name] == whole[name]).all() for name in whole)


@pytest.mark.parametrize("evaluates_first", [False, True])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_evaluation_inside_the_loop_reads_its_own_rows(schedule, depth, evaluates_first):
    """All its rows are on the device: nothing is copied that would make the host wait."""

    def read(device: str) -> list[torch.Tensor]:
        stream = [torch.arange(4 * first, 4 * first + 4).view(4, 1) for first in range(8)]
        seen = []
        with CachedEmbeddingBags([64], 4, cache_rows=8, optimizer="sgd", prefetch_depth=depth, device=device) as bags:
            for number, ids in enumerate(bags.prefetch(stream, lambda batch: batch, pause_every=2)):
                with torch.no_grad():
                    if number == 1 and evaluates_first:
                        seen.append(bags(stream[0]))
                bags(ids).sum().backward()
                bags.step()
                with torch.no_grad():
                    if number == 1 and not evaluates_first:
                        seen.append(bags(stream[0]))
            return [vectors.cpu() for vectors in seen] + [bags.weight(0)]

    with simulated_cuda(schedule, races=True) as machine:
        on_device = read("cuda")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(on_device, read("cpu"), strict=True))
    assert not machine.races.found


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_memory_is_ready_before_it_is_used(schedule, deterministic):
    """Slab and staging are made on the training stream and first used on the other."""

    def created(device: str) -> torch.Tensor:
        with CachedEmbeddingBags([64], 4, cache_rows=8, prefetch_depth=0, device=device) as bags:
            bags(torch.arange(4).view(4, 1)).sum().backward()
            bags.step()
            return bags.weight(0)

    torch.use_deterministic_algorithms(deterministic)
    try:
        with simulated_cuda(schedule, races=True) as machine:
            on_device = created("cuda")
        assert torch.equal(on_device, created("cpu"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not machine.races.found


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tables_on_another_device_than_the_current_one(schedule, depth):
    def trained(device: str) -> torch.Tensor:
        stream = [torch.arange(number, number + 12, 3).view(4, 1) for number in range(20)]
        with CachedEmbeddingBags(
            [64], 4, cache_rows=9, optimizer="adagrad", prefetch_depth=depth, device=device
        ) as bags:
            for ids in bags.prefetch(stream, lambda batch: batch):
                bags(ids).sin().sum().backward()
                bags.step()
            assert bags.counters.evicted_rows
            return bags.weight(0)

    with simulated_cuda(schedule, races=True, num_devices=2) as machine:
        on_device = trained("cuda:1")
        assert torch.cuda.current_device() == 0
        assert not torch.cuda.max_memory_allocated(0)
    assert torch.equal(on_device, trained("cpu"))
    assert not machine.races.found


def test_an_event_is_of_the_streams_of_its_device():
    with simulated_cuda("late", num_devices=2):
        event, made = Event(torch.device("cuda:1")), torch.zeros(3, device="cuda:1")
        made.add_(1)
        event.record()
        event.synchronize()
        made.add_(1)
        event.wait()
        event.record()


def test_a_reader_that_meets_the_preparation_of_a_batch_is_an_error():
    at_rest, errors = AtRest(), []

    def read() -> None:
        try:
            with at_rest:
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with at_rest, at_rest:  # whoever reads may read within
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert errors == ["rows were read or saved while a batch was being prepared; pause the prefetch first"]
    read()
    assert len(errors) == 1
