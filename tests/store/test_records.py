"""Columns of a record."""

from cachedlrm.store.records import RecordLayout


def test_record_widths():
    widths = {name: RecordLayout(16, name).width for name in ("sgd", "rwsadagrad", "adagrad", "adam")}
    assert widths == {"sgd": 16, "rwsadagrad": 17, "adagrad": 32, "adam": 48}
    assert RecordLayout(16, "adam").record_bytes == 192


def test_a_pooling_weight_is_a_parameter_with_state_of_its_own():
    layouts = [RecordLayout(16, name, weighted=True) for name in ("sgd", "rwsadagrad", "adagrad", "adam")]
    assert [layout.parameter_width for layout in layouts] == [17] * 4
    assert [layout.state_width for layout in layouts] == [0, 2, 17, 34]


def test_numbers_of_16_bits_are_two_to_a_word():
    layouts = [RecordLayout(16, name, row_dtype="bf16") for name in ("sgd", "rwsadagrad", "adagrad", "adam")]
    assert [layout.record_bytes for layout in layouts] == [32, 36, 96, 160]
    assert RecordLayout(128, "sgd", row_dtype="fp16").record_bytes == 256
    both = [RecordLayout(16, name, False, "bf16", "bf16") for name in ("sgd", "rwsadagrad", "adagrad", "adam")]
    assert [layout.record_bytes for layout in both] == [32, 36, 64, 96]
    # Parameters and state begin at a word each.
    odd = RecordLayout(4, "adagrad", True, "fp16", "bf16")
    assert (odd.columns, odd.parameter_words, odd.width) == (10, 3, 6)


def test_words_are_numbers_where_none_has_16_bits():
    assert not RecordLayout(4, "adam").is_packed
    assert RecordLayout(4, "adam", row_dtype="fp16").is_packed
    assert RecordLayout(4, "adam", state_dtype="bf16").is_packed
    assert not RecordLayout(4, "sgd", state_dtype="bf16").is_packed  # which has no state
