"""What the options of optimizers mean together, and which mean nothing."""

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.model.dense_settings import DenseSettings
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.options.optimisation import ResolvedOptimisation
from cachedlrm.options.profiles import load_resolved, to_toml
from support.options import resolved
from support.runs import SMALL


def optimisation(*arguments: str) -> ResolvedOptimisation:
    """Of a run of 20 steps."""
    return resolved(*SMALL, *arguments).optimisation


@pytest.mark.parametrize(
    ("arguments", "layers", "rate"),
    [
        ("", DenseSettings("adagrad"), 0.01),
        ("--optimizer rwsadagrad --learning-rate 0.5", DenseSettings("adagrad"), 0.5),
        ("--optimizer adam --dense-learning-rate 0", DenseSettings("adam"), 0.0),
        ("--optimizer rwsadagrad --eps 1e-4", DenseSettings("adagrad", 1e-4), 0.01),
        ("--eps 1e-4 --dense-eps 1e-3", DenseSettings("adagrad", 1e-3), 0.01),
        ("--eps 1e-4 --dense-optimizer adam", DenseSettings("adam"), 0.01),
        ("--optimizer adam --eps 1e-4 --dense-optimizer adamw", DenseSettings("adamw", 1e-4, weight_decay=0.01), 0.01),
        ("--dense-optimizer adamw --dense-weight-decay 0", DenseSettings("adamw"), 0.01),
        ("--weight-decay 0.5", DenseSettings("adagrad"), 0.01),
        (
            "--eps 1e-4 --dense-optimizer sgd --dense-momentum 0.9 --dense-weight-decay 0.1 --dense-learning-rate 2",
            DenseSettings("sgd", None, 0.9, 0.1),
            2.0,
        ),
    ],
)
def test_what_is_left_open_of_layers_follows_the_rows(arguments, layers, rate):
    options = optimisation(*arguments.split())
    assert (options.dense, options.dense_rate.base) == (layers, rate)


def test_a_config_of_before_there_were_options_of_layers(tmp_path):
    new = (
        "eps", "weight-decay", "dense-", "clip-", "lr-policy", "lr-end", "lr-power",
    )  # fmt: skip
    lines = to_toml(resolved(*SMALL, "--optimizer=rwsadagrad", "--lr-num-warmup-steps=3")).splitlines()
    path = tmp_path / "config.toml"
    path.write_text("\n".join(line for line in lines if not line.startswith(new)))
    options = load_resolved(path).optimisation
    assert options == optimisation("--optimizer=rwsadagrad", "--lr-num-warmup-steps=3")
    assert options.dense == DenseSettings("adagrad")
    assert options.row_rate == options.dense_rate == LearningRate(0.01, 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--lr-policy linear", (1, 20)),
        ("--lr-policy cosine --lr-num-warmup-steps 5", (5, 16)),
        ("--lr-policy cosine --lr-num-warmup-steps 5 --lr-decay-start-step 8", (8, 13)),
        ("--lr-policy polynomial --lr-num-decay-steps 4", (1, 4)),
        ("--lr-policy linear --mlperf-grad-accum-iter 3", (1, 7)),
        ("--lr-policy linear --nepochs 3", (1, 60)),
        ("--lr-policy linear --steps 0", (1, 0)),
        ("--lr-policy linear --lr-num-warmup-steps 30", (30, 0)),
        ("--lr-policy constant --lr-num-warmup-steps 5", (0, 0)),
        ("--lr-num-warmup-steps 5", (0, 0)),
    ],
)
def test_a_decay_lasts_until_the_end_of_the_run(arguments, expected):
    options = optimisation(*arguments.split())
    assert (options.lr_decay_start_step, options.lr_num_decay_steps) == expected


def test_both_rates_fall_to_the_same_share():
    options = optimisation("--lr-policy=linear", "--learning-rate=0.1", "--dense-learning-rate=0.01", "--lr-end=0.05")
    assert options.row_rate == LearningRate(0.1, 0, 1, 20, "linear", 0.05)
    assert options.row_rate(11) == pytest.approx(0.075)
    assert options.dense_rate(11) == pytest.approx(0.0075)
    assert options.dense_rate(21) == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--optimizer sgd --eps 1e-8", ["--eps 1e-08", "--optimizer sgd has none", "--dense-eps"]),
        ("--dense-optimizer sgd --dense-eps 1e-8", ["--dense-eps 1e-08", "--dense-optimizer sgd has none"]),
        ("--optimizer sgd --dense-eps 1e-8", ["--dense-eps 1e-08", "--dense-optimizer sgd has none"]),
        ("--dense-momentum 0.9", ["--dense-momentum 0.9", "--dense-optimizer adagrad has none"]),
        ("--lr-end 0.001", ["--lr-end 0.001", "--lr-policy reference", "linear"]),
        ("--lr-policy constant --lr-end 0.001", ["--lr-end 0.001", "--lr-policy constant"]),
        ("--lr-policy cosine --lr-power 2", ["--lr-power 2", "--lr-policy cosine", "polynomial"]),
        ("--lr-policy cosine --lr-end 0.5", ["--lr-end 0.5", "--learning-rate 0.01", "lower it"]),
        ("--lr-policy constant --lr-num-decay-steps 3", ["--lr-num-decay-steps 3", "--lr-policy constant"]),
        ("--lr-policy constant --lr-decay-start-step 3", ["--lr-decay-start-step 3", "--lr-policy constant"]),
        (
            "--lr-policy linear --lr-num-warmup-steps 9 --lr-decay-start-step 8",
            ["--lr-decay-start-step 8", "--lr-num-warmup-steps 9"],
        ),
        ("--weight-decay 200", ["--weight-decay 200", "--learning-rate 0.01", "lower one"]),
        (
            "--dense-optimizer adamw --dense-learning-rate 2 --dense-weight-decay 0.5",
            ["--dense-weight-decay 0.5", "--dense-learning-rate 2.0"],
        ),
        ("--eps 0", ["--eps", "1e-30"]),
        ("--dense-momentum 1", ["--dense-momentum", "below 1"]),
        ("--clip-grad-norm 0", ["--clip-grad-norm", "above 0"]),
        ("--weight-decay -1", ["--weight-decay", "0 or more"]),
        ("--lr-policy step", ["--lr-policy", "cosine"]),
        ("--optimizer adamw", ["--optimizer", "adam"]),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, words):
    with pytest.raises(UserError) as refused:
        optimisation(*arguments.split())
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
