"""States in files: the same bits go on, whatever killed the writer; other files are refused."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from cachedlrm import UserError
from cachedlrm.library.engine import Engine
from support.cached_collections import (
    TABLES,
    Model,
    assert_rows_travelled,
    assert_same_rows,
    batches,
    child_environment,
    dense_optimizer,
    initial_weights,
    make_collection,
    train,
)


@pytest.mark.parametrize(
    "setting", [{}, {"weights": None, "seed": 5}, {"weights": {"user": initial_weights()["user"]}}]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loaded_run_goes_on_with_the_same_bits(optimizer, setting, tmp_path):
    with make_collection(optimizer=optimizer, **setting) as collection:
        straight = Model(collection)
        losses = train(straight, batches())
        weights = {table.name: collection.weight(table.name) for table in TABLES}
    with make_collection(optimizer=optimizer, **setting) as first:
        model = Model(first)
        dense = dense_optimizer(model)
        found = train(model, first.prefetch(batches()[:12], lambda batch: batch.features), dense)
        first.save(tmp_path / "rows.safetensors")
        torch.save((model.layers.state_dict(), dense.state_dict()), tmp_path / "rest.pt")
    other = {"weights": None, "seed": 77, "cache_rows": 210, "policy": "lru", "store": "lmdb", "host_budget": "1MB"}
    with make_collection(optimizer=optimizer, **other, store_path=tmp_path / "store") as second:
        model = Model(second)
        dense = dense_optimizer(model)
        train(model, batches()[:3], dense)  # what was there before is gone
        second.load(tmp_path / "rows.safetensors")
        layers, state = torch.load(tmp_path / "rest.pt")
        model.layers.load_state_dict(layers)
        dense.load_state_dict(state)
        assert second.steps == 12
        found += train(model, second.prefetch(batches()[12:], lambda batch: batch.features), dense)
        assert_rows_travelled(second)
        assert found == losses
        assert_same_rows(second, weights)
        second.save(tmp_path / "again.safetensors")
        second.load(tmp_path / "again.safetensors")
        assert_same_rows(second, weights)


def test_a_writer_that_is_killed_leaves_the_state_before(tmp_path):
    """Killed in the middle of the second file, which is never seen under its name."""
    code = """
import os, signal, sys
from cachedlrm.library import saved
from support.cached_collections import Model, batches, make_collection, train
with make_collection(optimizer="adagrad") as collection:
    model = Model(collection)
    train(model, batches()[:4])
    collection.save(sys.argv[1])
    train(model, batches()[4:8])
    pieces = saved.chunk_rows
    saved.chunk_rows = lambda width: 50
    groups = saved.saved_groups

    def killed(engine):
        (rows, records), *others = groups(engine)
        calls = []

        def until(first, last):
            calls.append(first)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return records(first, last)

        return [(rows, until), *others]

    saved.saved_groups = killed
    collection.save(sys.argv[1])
"""
    path = tmp_path / "rows.safetensors"
    run = subprocess.run([sys.executable, "-c", code, str(path)], env=child_environment(), check=False)
    assert run.returncode == -signal.SIGKILL
    with make_collection(optimizer="adagrad") as collection, make_collection(optimizer="adagrad") as expected:
        collection.load(path)
        assert collection.steps == 4
        train(Model(expected), batches()[:4])
        assert_same_rows(collection, {table.name: expected.weight(table.name) for table in TABLES})
        collection.save(path)  # beside what the killed one left


def test_rows_of_a_load_that_broke_off_are_not_used(monkeypatch, tmp_path):
    """Ctrl-C, or an error of reading, after the rows of one group of tables."""
    path, put, calls = tmp_path / "rows.safetensors", Engine.put, []

    def breaks_off(self, group, pieces):
        calls.append(group)
        if group == 1:
            raise KeyboardInterrupt
        put(self, group, pieces)

    with make_collection() as collection:
        train(Model(collection), batches()[:5])
        collection.save(path)
        expected = collection.state_dict()
        for load in (lambda: collection.load(path), lambda: collection.load_state_dict(expected)):
            with monkeypatch.context() as patch:
                patch.setattr(Engine, "put", breaks_off)
                with pytest.raises(KeyboardInterrupt):
                    load()
            with pytest.raises(UserError, match=r"or a load, .* load\(\) what was saved last"):
                collection.weight("tag")
            collection.load(path)
            assert all(torch.equal(collection.state_dict()[name], expected[name]) for name in expected)
    assert calls == [0, 1, 0, 1]


def test_a_flipped_bit_of_a_saved_state_is_found(tmp_path):
    path, flipped = tmp_path / "rows.safetensors", tmp_path / "flipped.safetensors"
    with make_collection(weights=None, seed=1_000_001) as collection:
        train(Model(collection), batches()[:5])
        collection.save(path)
        expected = collection.state_dict()
        content = path.read_bytes()
        body = 8 + int.from_bytes(content[:8], "little")
        of_seed = content.index(b"1000001")
        for place in (of_seed, *range(body, len(content), 1009), len(content) - 8):
            flipped.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(UserError, match=r"flipped.safetensors is damaged or not what save wrote"):
                collection.load(flipped)
        assert all(torch.equal(collection.state_dict()[name], expected[name]) for name in expected)
        collection.load(path)
        assert all(torch.equal(collection.state_dict()[name], expected[name]) for name in expected)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    with make_collection(optimizer="adagrad") as collection:
        train(Model(collection), batches()[:3])
        collection.save(path)
        with make_collection(optimizer="adam") as other:
            with pytest.raises(UserError, match="is of optimizer adagrad, these tables of adam"):
                other.load(path)
            with pytest.raises(UserError, match="is no file"):
                other.load(tmp_path / "none")
        before = collection.weight("user")
        for content in (b"", b"no state", path.read_bytes()[:-100]):
            (tmp_path / "bad").write_bytes(content)
            with pytest.raises(UserError, match="is damaged or not what save wrote"):
                collection.load(tmp_path / "bad")
        assert torch.equal(collection.weight("user"), before)
        with pytest.raises(UserError, match="cannot write"):
            collection.save(tmp_path / "no folder" / "rows")
        with (
            make_collection(optimizer="adagrad", host_budget=20_000) as small,
            pytest.raises(UserError, match="rows of"),
        ):
            small.load(path)
        loop = collection.prefetch(batches(), lambda batch: batch.features)
        next(loop)
        with pytest.raises(UserError, match="save: rows are being prepared"):
            collection.save(path)
        loop.close()


def test_an_export_has_all_rows_in_torchrecs_names(tmp_path):
    with make_collection(optimizer="adagrad", weights=None) as collection:
        train(Model(collection), batches()[:3])
        collection.export(tmp_path / "out")
        with safe_open(str(tmp_path / "out" / "model.safetensors"), framework="pt") as file:
            for table in TABLES:
                weight = file.get_tensor(f"embedding_bags.{table.name}.weight")
                assert torch.equal(weight, collection.weight(table.name))
                assert file.get_tensor(f"embedding_bags.{table.name}.momentum1").shape == weight.shape
        config = json.loads((tmp_path / "out" / "torchrec.json").read_text())
        assert config["tables"][0]["feature_names"] == ["user", "friend"]
        assert [table.get("pooling") for table in config["tables"]] == [None, "MEAN", None, None]
        assert config["optimizer"] == "EXACT_ADAGRAD"
        with pytest.raises(UserError, match="is there; name a folder to make"):
            collection.export(tmp_path / "out")
