"""What is left open of the layers' optimizer."""

from cachedlrm.model.dense_settings import DenseSettings, counterpart
from cachedlrm.store.records import OPTIMIZERS


def test_every_optimizer_of_rows_has_a_counterpart_that_keeps_the_same():
    assert {name: counterpart(name) for name in OPTIMIZERS} == {
        "sgd": "sgd", "adagrad": "adagrad", "rwsadagrad": "adagrad", "adam": "adam"
    }  # fmt: skip
    for name, kind in OPTIMIZERS.items():
        settings = DenseSettings(counterpart(name))
        assert (settings.state_keys, settings.definite_eps) == (kind.state_keys, kind.eps)


def test_state_and_eps():
    assert DenseSettings("sgd", momentum=0.9).state_keys == ("momentum_buffer",)
    assert DenseSettings("sgd").definite_eps == 0
    assert DenseSettings("adam").definite_eps == DenseSettings("adamw").definite_eps == 1e-8
    assert DenseSettings("adagrad", 1e-3).definite_eps == 1e-3
    assert [DenseSettings(name).counts_steps for name in ("sgd", "adagrad", "adamw")] == [False, True, True]
