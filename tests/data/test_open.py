"""What options name as data: unknown ones are refused, and sizes agree."""

import numpy as np
import pytest

from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from support.samples import ANY, STREAM, refused, write_npy


@pytest.mark.parametrize("spec", ["zipf", "flights", "npy"])
def test_sizes_that_add_up_to_too_many_rows_are_refused(tmp_path, spec):
    write_npy(tmp_path)
    spec = f"npy:{tmp_path}" if spec == "npy" else spec
    message = refused(spec, table_rows=(2**30, 2**30, 1))
    assert message.startswith("--arch-embedding-size adds up to 2147483649 rows, of which there can be 2147483647;")
    assert message.endswith("--max-ind-range 715827882")
    message = refused("reference", table_rows=(2**31,), reference=STREAM)
    assert "--arch-embedding-size" in message
    assert "--max-ind-range" not in message


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "nothing",
        "npy",
        "npy:",
        "zipf:samples=0",
        "zipf:samples=x",
        "zipf:cold=1",
        "flights:x",
        "criteo:/x",
        "reference",
        "odd\nname",
        "zipf:samples=99999999999999999999999",
        "zipf:samples=9223372036854775808",
        "zipf:samples=" + "9" * 5000,
        "zipf:samples=5,samples=6",
        "zipf:samples=00",
        "zipf:hot=1000000000",
        "zipf:hot=10001",
        "npy:/no\nwhere",
    ],
)
def test_unknown_sources_are_refused_by_the_option_that_names_them(spec):
    assert refused(spec).startswith("--data ")
    assert refused("zipf", spec).startswith("--test-data ")


def test_options_and_data_must_agree(tmp_path):
    write_npy(tmp_path)
    spec = f"npy:{tmp_path}"
    assert refused(spec, table_rows=(7, 7)).startswith(f"--arch-embedding-size has 2 tables but --data {spec} has 3 ")
    for rows in (None, (7, 7, 7)):
        message = refused(spec, table_rows=rows, num_dense=5)
        assert message.startswith(f"--arch-mlp-bot starts with 5 but --data {spec} has 2 dense features;")
    assert open_dataset(spec, spec, ANY).test is not None


@pytest.mark.parametrize("sizes", [{}, {"table_rows": (7, 7, 7), "num_dense": 2}])
@pytest.mark.parametrize("train", ["npy", "zipf"])
def test_held_out_samples_have_the_columns_of_the_training_samples(tmp_path, sizes, train):
    write_npy(tmp_path / "train")
    write_npy(tmp_path / "tables", sparse=np.zeros((10, 4), np.int32))
    write_npy(tmp_path / "dense", sparse=np.zeros((10, 3 if train == "npy" or sizes else 26), np.int32))
    np.save(tmp_path / "dense" / "day_0_dense.npy", np.zeros((10, 5), np.float32))
    train = f"npy:{tmp_path / 'train'}" if train == "npy" else train
    tables, dense = (3, 2) if train != "zipf" or sizes else (26, 13)
    message = refused(train, f"npy:{tmp_path / 'tables'}", **sizes)
    assert message.startswith(
        f"--test-data npy:{tmp_path / 'tables'} has 4 sparse columns but --data {train} has {tables};"
    )
    message = refused(train, f"npy:{tmp_path / 'dense'}", **sizes)
    assert message.startswith(
        f"--test-data npy:{tmp_path / 'dense'} has 5 dense features but --data {train} has {dense};"
    )


def test_only_reference_data_is_tested_on_reference_data():
    assert refused("zipf", "reference").endswith("need --data reference; name another source")
    assert open_dataset("reference", "reference", DataRequest(None, None, 1, -1, STREAM)).test is not None


def test_targets_of_files_are_rounded_whatever_is_trained_on(tmp_path):
    write_npy(tmp_path, sparse=np.zeros((10, 2), np.int32), labels=np.full(10, 0.7))
    request = DataRequest((5, 5), 2, 1, -1, STREAM, round_targets=True)
    assert open_dataset("reference", f"npy:{tmp_path}", request).test.read(0, 2).labels.tolist() == [1, 1]
