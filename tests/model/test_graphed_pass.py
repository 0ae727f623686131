"""The logic around CUDA graphs, on the host: a recorder here runs captured work again, into the same tensors."""

import itertools
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.data.open import open_dataset
from cachedlrm.model.dense_optimizer import DenseOptimizer
from cachedlrm.model.dense_pass import DensePass
from cachedlrm.model.dense_settings import DenseSettings
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.graphed_pass import GraphedPass
from cachedlrm.model.losses import make_loss
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.config import Options
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.run import job as job_module
from cachedlrm.run.job import build_job
from cachedlrm.train import main
from support.models import HostRecorder, plain_features
from support.runs import MODEL

SMALL = [
    "--data=zipf:samples=950",  # ten batches an epoch, the last of which is smaller
    "--nepochs=2",
    *MODEL,
    "--arch-sparse-feature-size=8",
    "--mini-batch-size=100",
    "--ui=off",
]


def with_graphs(options: Options) -> Options:
    return replace(options, optimisation=replace(options.optimisation, cuda_graphs=True))


def trained(tmp_path, *arguments: str, graphs: bool = False) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Losses, everything that was trained, and evicted rows."""
    options = parse_command_line([*SMALL, *arguments])
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    losses, evicted = [], 0
    with closing(build_job(with_graphs(options) if graphs else options, dataset, tmp_path)) as job:
        for batch in job.trainer.cache.prepare(job.schedule.batches()):
            losses.append(job.trainer.step(batch).item())
            evicted += batch.counters.evicted_rows
        state = dict(job.trainer.model.state_dict())
        for name, entry in job.trainer.optimizer_state().items():
            state |= {f"{name} {key}": value for key, value in entry.items()}
        for number, group in enumerate(job.trainer.cache.groups):
            state[f"rows {number}"] = group.read(np.arange(1335))
            job.trainer.cache.flush()
            state[f"records {number}"] = torch.from_numpy(group.records(np.arange(group.book.num_addresses)))
    return losses, state, evicted


@pytest.mark.parametrize(
    "arguments",
    [
        ["--optimizer=sgd", "--loss-threshold=0.2", "--activation-function=gelu"],
        ["--optimizer=adagrad", "--arch-interaction-op=cat", "--weighted-pooling=learned"],
        [
            "--optimizer=rwsadagrad",
            "--arch-interaction-op=dcn",
            "--loss-function=wbce",
            "--loss-weights=0.3-2",
            "--lr-num-warmup-steps=9",
        ],
        ["--optimizer=adam", "--bf16", "--loss-function=mse"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_graphs_train_the_same_bits(tmp_path, monkeypatch, arguments):
    recorder = HostRecorder()
    monkeypatch.setattr(job_module, "CudaRecorder", lambda: recorder)
    eager, state, _ = trained(tmp_path, *arguments)
    losses, graphed, evicted = trained(tmp_path, *arguments, "--gpu-cache-rows=420", graphs=True)
    assert evicted > 0
    assert losses == eager
    assert state.keys() == graphed.keys()
    assert all(torch.equal(state[name], graphed[name]) for name in state)
    # Of 18 whole batches three are trained eagerly, and two smaller ones; each other one is a forward and a backward.
    assert recorder.replays == [0, 1] * 15


def test_one_batch_at_a_time_in_the_same_tensors():
    model = Dlrm(plain_features(3, 4), (5, 8, 4), (6, 1))
    optimizer = DenseOptimizer(DenseSettings("sgd"), model)
    dense_pass = DensePass(model, optimizer.grads, make_loss("bce", (), torch.device("cpu")))
    graphed, random = GraphedPass(dense_pass, HostRecorder()), torch.Generator().manual_seed(2)
    results, inputs, copies = [], [], []
    for number in range(6):
        dense, vectors = torch.randn(9, 5, generator=random), torch.randn(27, 4, generator=random)
        labels = torch.randint(0, 2, (9,), generator=random).float()
        copy = vectors.clone()
        inputs += [dense, labels] if number < 3 else [dense, vectors, labels]
        copies += [tensor.clone() for tensor in inputs[len(copies) :]]
        loss, backward = graphed(dense, [vectors], labels)
        grads = backward()
        results.append((loss, *grads))
        found = [tensor.clone() for tensor in (loss, *grads, *optimizer.grads.values())]
        prediction = dense_pass.forward(dense, [copy])
        expected = [dense_pass.loss(prediction, labels), copy]
        dense_pass.backward(prediction, labels, adds=False)
        expected += optimizer.grads.values()
        assert all(itertools.starmap(torch.equal, zip(found, expected, strict=True))), number
    # A graph has inputs of its own: those of the batch that was captured belong to the upload.
    assert all(itertools.starmap(torch.equal, zip(inputs, copies, strict=True)))
    addresses = [tuple(tensor.data_ptr() for tensor in result) for result in results]
    assert len(set(addresses[:4])) == 4
    assert addresses[3] == addresses[4] == addresses[5]


def test_memory_of_its_own_is_in_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "CudaRecorder", HostRecorder)
    options = parse_command_line(SMALL)
    dataset = open_dataset(options.data.data, None, data_request(options))
    options, parts = resolve(options, dataset), []
    for given in (options, with_graphs(options)):
        with closing(build_job(given, dataset, tmp_path)) as job:
            parts.append(job.tiers.device.breakdown)
    eager, graphed = parts
    assert graphed.pop("activations") > 2 * eager.pop("activations")
    assert graphed == eager


@pytest.mark.skipif(torch.cuda.is_available(), reason="they are taken there")
def test_graphs_are_for_cuda(tmp_path, capsys):
    assert main([*SMALL, "--cuda-graphs", "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--cuda-graphs is for CUDA and this run is on the CPU; drop it" in message
    profile = tmp_path / "graphs.toml"
    profile.write_text("[optimisation]\ncuda-graphs = true\n")
    arguments = [*SMALL, "--steps=1", f"--profile={profile}", f"--run-dir={tmp_path / 'run'}"]
    assert main(arguments) == 2
    assert main([*arguments, "--cuda-graphs=False"]) == 0, "as the message says"


def test_graphs_are_of_whole_steps(tmp_path):
    options = with_graphs(parse_command_line([*SMALL, "--micro-batch-size=30"]))
    dataset = open_dataset(options.data.data, None, data_request(options))
    with pytest.raises(UserError, match="--micro-batch-size 30 divides them; raise it to --mini-batch-size 100"):
        resolve(options, dataset, torch.device("cuda"))
    whole = replace(options, batches=replace(options.batches, micro_batch_size=100))
    assert resolve(whole, dataset, torch.device("cuda")).optimisation.cuda_graphs


def test_a_resumed_run_may_drop_and_add_them(tmp_path):
    (tmp_path / "config.toml").write_text("[optimisation]\ncuda-graphs = true\n")
    assert parse_command_line(["--resume", str(tmp_path)]).optimisation.cuda_graphs
    assert not parse_command_line(["--resume", str(tmp_path), "--cuda-graphs=False"]).optimisation.cuda_graphs
    (tmp_path / "config.toml").write_text("[optimisation]\nbf16 = true\n")
    assert parse_command_line(["--resume", str(tmp_path), "--cuda-graphs"]).optimisation.cuda_graphs
