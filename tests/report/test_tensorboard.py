"""``--tensorboard``: the numbers of metrics.jsonl, read back from the event files."""

import json
import signal
import struct
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cachedlrm import train as train_module
from cachedlrm.base.errors import UserError
from cachedlrm.report import tensorboard as scalars
from cachedlrm.report.event_file import EventFile, crc32c
from cachedlrm.report.tensorboard import Scalars, tag
from cachedlrm.run.directory import RunDirectory
from cachedlrm.train import main
from support.runs import one_line, train

OPTIONS = ["--gpu-cache-rows=300", "--print-freq=3", "--test-freq=6"]  # 20 steps

MESSAGES = {  # as tensorflow/core/util/event.proto and framework/summary.proto have them
    "Event": {
        1: ("wall_time", "DOUBLE"), 2: ("step", "INT64"), 3: ("file_version", "STRING"), 5: ("summary", "Summary"),
        7: ("session_log", "SessionLog"),
    },
    "Summary": {1: ("value", "Value")},
    "Value": {1: ("tag", "STRING"), 2: ("simple_value", "FLOAT")},
    "SessionLog": {1: ("status", "INT32")},
}  # fmt: skip


def event_message() -> type:
    """``Event``, built by the protocol buffers' own library."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="events.proto", package="t", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in fields.items():
            label = kinds.LABEL_REPEATED if field == "value" else kinds.LABEL_OPTIONAL
            if kind in MESSAGES:
                message.field.add(
                    name=field, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".t.{kind}"
                )
            else:
                message.field.add(name=field, number=number, label=label, type=getattr(kinds, f"TYPE_{kind}"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


EVENT = event_message()


class Line(NamedTuple):
    step: int
    wall_time: float
    values: dict[str, float]


def unmasked(data: bytes) -> int:
    rotated = (struct.unpack("<I", data)[0] - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def events_of(path: Path) -> list:
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = data[12 : 12 + length]
        assert unmasked(data[8:12]) == crc32c(data[:8])
        assert unmasked(data[12 + length : 16 + length]) == crc32c(event)
        events.append(EVENT.FromString(event))
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    return events[1:]


def lines_of(run: Path) -> list[Line]:
    """What the files of a run hold, without what a later process of the run has taken back."""
    lines: list[Line] = []
    for path in sorted((run / "tensorboard").iterdir()):
        for event in events_of(path):
            if event.HasField("session_log"):
                assert event.session_log.status == 1  # START
                lines = [line for line in lines if line.step < event.step]
            else:
                values = {value.tag: value.simple_value for value in event.summary.value}
                lines.append(Line(event.step, event.wall_time, values))
    return lines


def expected(run: Path) -> list[tuple[int, dict[str, float]]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        (row["step"], {tag(k): float(np.float32(v)) for k, v in row.items() if k != "step" and v is not None})
        for row in rows
    ]


def without_times(run: Path) -> list[tuple[int, dict[str, float]]]:
    return [(line.step, line.values) for line in lines_of(run)]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was interrupted behind lines that it then lost, and went on."""
    run = tmp_path_factory.mktemp("resumed") / "run"
    assert train(run, *OPTIONS, "--tensorboard", "--checkpoint-every=6", "--steps=6") == 0
    before = scalars.EventFile(next((run / "tensorboard").iterdir()).with_suffix(".1"))
    for step in (7, 9):  # of a process that was killed before its next checkpoint
        before.add_scalars(step, 1.0, {"learning/loss": 99.0})
    before.close()
    assert main([f"--resume={run}", "--ui=off", "--steps=20"]) == 0
    return run


def test_checksums_are_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_every_number_of_every_line_is_a_scalar(tmp_path):
    run = tmp_path / "run"
    assert train(run, *OPTIONS, "--tensorboard") == 0
    assert without_times(run) == expected(run)
    assert [line.step for line in lines_of(run)] == [3, 6, 9, 12, 15, 18, 20]
    first, last = lines_of(run)[0], lines_of(run)[-1]
    assert "learning/auc" not in first.values, "before the first evaluation"
    assert {
        "learning/loss",
        "learning/auc",
        "cache/hit_ratio",
        "phases/plan_ms",
        "memory/host_bytes",
    } < last.values.keys()
    assert first.wall_time < last.wall_time


def test_a_run_that_goes_on_repeats_no_step(resumed):
    assert len(list((resumed / "tensorboard").iterdir())) == 3
    assert without_times(resumed) == expected(resumed)


def test_tensorboard_reads_the_same(resumed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    events = accumulator(str(resumed / "tensorboard"), {"scalars": 0}).Reload()
    lines = expected(resumed)
    assert set(events.Tags()["scalars"]) == set().union(*(values for _, values in lines))
    for name in events.Tags()["scalars"]:
        wanted = [(step, values[name]) for step, values in lines if name in values]
        assert [(event.step, event.value) for event in events.Scalars(name)] == wanted


def test_a_run_that_goes_on_elsewhere_has_the_lines_before_too(resumed, tmp_path):
    run = tmp_path / "run"
    assert main([f"--resume={resumed}", f"--run-dir={run}", "--ui=off", "--steps=22"]) == 0
    assert without_times(run) == expected(run)
    assert [line.step for line in lines_of(run)] == [3, 6, 9, 12, 15, 18, 20, 22]
    times = [line.wall_time for line in lines_of(run)]
    assert times == sorted(times)


def test_an_interrupted_run_has_all_its_lines(tmp_path, monkeypatch):
    step_of = train_module.Progress.trained

    def trained(self, batch, losses):
        step_of(self, batch, losses)
        if self.steps == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_module.Progress, "trained", trained)
    assert train(tmp_path / "run", *OPTIONS, "--tensorboard") == 130
    assert without_times(tmp_path / "run") == expected(tmp_path / "run")
    assert lines_of(tmp_path / "run")[-1].step == 5


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("in the way")
    message = one_line(capsys, train(run, *OPTIONS, "--tensorboard"))
    assert f"cannot write {run / 'tensorboard'}: File exists; choose another --run-dir" in message


@pytest.mark.parametrize("fits", [0, 2])
def test_lines_before_are_written_by_a_later_process_where_they_did_not_fit(tmp_path, monkeypatch, fits):
    run, rows = RunDirectory.create(tmp_path), [{"step": step, "loss": 0.5} for step in (1, 2, 3)]
    append, appended = EventFile._append, []

    def full(self, *arguments):
        appended.append(arguments)
        if len(appended) > fits:
            raise OSError(28, "No space left on device")
        append(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(EventFile, "_append", full)
        with closing(Scalars(run.path("."), rows[:2], 2)) as failed, pytest.raises(UserError, match="No space"):
            failed.add(rows[2])
    with closing(Scalars(run.path("."), rows[:2], 2)) as later:
        later.add(rows[2])
    assert [line.step for line in lines_of(tmp_path)] == [1, 2, 3]


def test_an_event_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "events.out.tfevents.1"
    file = EventFile(path)
    file.add_scalars(1, 2.0, {"a": 1e300})
    whole = path.read_bytes()

    class Full:
        """A disk that takes ten bytes."""

        def __init__(self, file) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            if self._file.tell() > len(whole):
                raise OSError(28, "No space left on device")
            return self._file.write(data[:10])

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    with monkeypatch.context() as patch:
        patch.setattr(file, "_file", Full(file._file))
        with pytest.raises(OSError, match="No space"):
            file.add_scalars(2, 2.0, {"a": 1.0})
    assert path.read_bytes() == whole
    file.add_scalars(2, 2.0, {"a": 1.0})
    file.close()
    events = [(event.step, event.summary.value[0].simple_value) for event in events_of(path)]
    assert events == [(1, float("inf")), (2, 1.0)]
