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
