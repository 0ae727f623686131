"""Vocabularies: what their fingerprints depend on, which rows may be mixed, and what is read of prepared folders."""

import json

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.open import open_dataset
from cachedlrm.data.vocabulary import (
    IDS_AS_THEY_ARE,
    Vocabulary,
    common_vocabulary,
    make_fingerprint,
    read_table_names,
    read_vocabulary,
)
from support.samples import ANY, refused, write_npy

KEYS = np.array([0, 5, 6, 0, 7], np.uint64)
A, B, IDS = Vocabulary("a"), Vocabulary("b", ("a",)), Vocabulary(IDS_AS_THEY_ARE)
SAME = {"names": ["a", "b"], "table_rows": [3, 2], "max_ind_range": -1}


def test_a_fingerprint_is_of_names_rows_folding_and_values():
    whole = make_fingerprint(**SAME, keys=[KEYS.data])
    assert whole == make_fingerprint(**SAME, keys=[KEYS[:2].data, KEYS[2:].tobytes()]) == "9d526ed1d0664665"
    other_keys = {"keys": [KEYS[::-1].copy().data]}
    changes = [{"names": ["b", "a"]}, {"table_rows": [2, 3]}, {"max_ind_range": 100}, other_keys]
    others = [make_fingerprint(**{**SAME, "keys": [KEYS.data], **change}) for change in changes]
    assert len({whole, *others}) == 5


def test_an_extended_vocabulary_continues_its_bases_and_no_other():
    vocabulary = Vocabulary("c", ("b", "a"))
    assert [vocabulary.continues(Vocabulary(other)) for other in "abcd"] == [True, True, True, False]
    assert [vocabulary.extends(other) for other in (Vocabulary("a"), vocabulary, None)] == [True, False, False]
    assert not Vocabulary("a").continues(vocabulary)
    assert vocabulary.folded(-1) == vocabulary
    assert vocabulary.folded(10) == Vocabulary("c-modulo-10")


@pytest.mark.parametrize(
    ("data", "model", "common", "says"),
    [
        (A, A, A, None),
        (B, A, B, None),
        (A, B, B, None),
        (IDS, IDS, IDS, None),
        (IDS, None, IDS, None),
        (None, IDS, IDS, None),
        (None, None, None, None),
        (
            A,
            None,
            A,
            "DATA has vocabulary a; MODEL does not say which it has, and is taken to have the same",
        ),
        (None, A, A, "MODEL has vocabulary a; DATA does not say which it has, and is taken to have the same"),
    ],
)
def test_what_may_be_mixed(data, model, common, says):
    assert common_vocabulary(data, "DATA", model, "MODEL") == (common, says)


@pytest.mark.parametrize(
    ("data", "model"), [(Vocabulary("b"), A), (A, Vocabulary("b")), (Vocabulary("c", ("a",)), B), (A, IDS), (IDS, A)]
)
def test_two_vocabularies_are_refused_by_name(data, model):
    with pytest.raises(UserError) as caught:
        common_vocabulary(data, "DATA", model, "MODEL")
    assert str(caught.value).startswith(
        f"DATA has vocabulary {data.fingerprint} and MODEL has {model.fingerprint}, in which a row "
    )


def prepared(folder, values=KEYS, **changes):
    """A folder as `cachedlrm.prepare` leaves it, of two tables."""
    write_npy(folder, "train", sparse=np.zeros((10, 2), np.int32))
    write_npy(folder / "test", "test", sparse=np.zeros((10, 2), np.int32))
    np.save(folder / "counts.npy", np.zeros(5, np.int64))
    np.save(folder / "vocabulary.npy", values)
    tables = [{"name": name} for name in SAME["names"]]
    summary = {"table_rows": [3, 2], "test_samples": 10, "tables": tables, "command": {"max_ind_range": -1}}
    (folder / "prepared.json").write_text(json.dumps(summary | changes))
    return f"npy:{folder}"


def test_a_folder_of_an_earlier_release_has_the_fingerprint_of_its_values(tmp_path):
    prepared(tmp_path)
    computed = Vocabulary(make_fingerprint(**SAME, keys=[KEYS.data]))
    assert read_vocabulary(tmp_path) == read_vocabulary(tmp_path / "test") == computed
    (tmp_path / "vocabulary.npy").unlink()
    assert read_vocabulary(tmp_path) is None
    prepared(tmp_path, vocabulary={"fingerprint": "x", "bases": ["y"]})
    assert read_vocabulary(tmp_path / "test") == Vocabulary("x", ("y",))
    assert read_table_names(tmp_path) == read_table_names(tmp_path / "test") == ("a", "b")


@pytest.mark.parametrize(
    "changes", [{"vocabulary": 7}, {"vocabulary": {"fingerprint": "x"}}, {"command": None}, {"tables": [1]}]
)
def test_a_garbled_record_is_refused(tmp_path, changes):
    assert "prepared.json is garbled; prepare the data again" in refused(prepared(tmp_path, **changes))


def test_a_garbled_list_of_values_is_refused(tmp_path):
    spec = prepared(tmp_path)
    (tmp_path / "vocabulary.npy").write_bytes(b"\x93NUMPY")
    assert "vocabulary.npy is garbled; prepare the data again, or remove it" in refused(spec)


def test_held_out_samples_have_the_vocabulary_of_the_training_samples(tmp_path):
    same, other = prepared(tmp_path / "a"), prepared(tmp_path / "b", KEYS[::-1])
    ours, theirs = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    extended = prepared(tmp_path / "c", vocabulary={"fingerprint": "x", "bases": [ours.fingerprint]})
    write_npy(tmp_path / "d", sparse=np.zeros((10, 2), np.int32))
    both = f"has vocabulary {theirs.fingerprint} and --data {same} has {ours.fingerprint}, in which"
    for folder in (other, f"{other}/test"):
        assert refused(same, folder).startswith(f"--test-data {folder} {both}")
    assert open_dataset(same, f"{same}/test", ANY).vocabulary == ours
    assert open_dataset(same, extended, ANY).vocabulary.fingerprint == "x"
    assert open_dataset(extended, same, ANY).vocabulary.fingerprint == "x"
    assert refused(same, "zipf").startswith("--test-data zipf has vocabulary ids-as-they-are and --data ")
    unsaid = open_dataset(same, f"npy:{tmp_path / 'd'}", ANY)
    assert unsaid.vocabulary == ours
    assert [note.endswith("is taken to have the same") for note in unsaid.notes] == [True]
    assert open_dataset(same, None, ANY).table_names == ("a", "b")
    assert open_dataset(f"npy:{tmp_path / 'd'}", None, ANY).table_names is None
