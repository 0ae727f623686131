"""Options that exclude each other or need each other are refused in one line that names both."""

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options.checks import check_options
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.config import Options


def test_options_left_open_fit_each_other():
    check_options(Options())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--gpu-cache-ratio 0.1 --gpu-cache-rows 5", ["--gpu-cache-ratio", "--gpu-cache-rows"]),
        (
            "--arch-mlp-bot 13-8 --arch-sparse-feature-size 16",
            ["--arch-mlp-bot", "8", "--arch-sparse-feature-size", "16"],
        ),
        ("--quantize-mlp-with-bit 8", ["--quantize-mlp-with-bit 8", "--inference-only"]),
        ("--quantize-emb-with-bit 4", ["--quantize-emb-with-bit 4", "--inference-only"]),
        ("--cuda-graphs --qr-flag", ["--cuda-graphs takes plain tables", "--qr-flag", "drop one"]),
        ("--cuda-graphs --md-flag", ["--cuda-graphs takes plain tables", "--md-flag", "drop one"]),
        ("--cuda-graphs --mlperf-grad-accum-iter 2", ["--cuda-graphs", "--mlperf-grad-accum-iter 2", "drop one"]),
        ("--cuda-graphs --inference-only", ["--cuda-graphs", "--inference-only", "drop one"]),
        ("--cuda-graphs --profile-trace 5", ["--cuda-graphs", "--profile-trace", "drop one"]),
        ("--inference-only --quantize-emb-with-bit 4 --qr-flag", ["--quantize-emb-with-bit 4", "--qr-flag"]),
        ("--inference-only --quantize-emb-with-bit 8 --md-flag", ["--quantize-emb-with-bit 8", "--md-flag"]),
        ("--inference-only --quantize-mlp-with-bit 8 --save-onnx", ["--quantize-mlp-with-bit 8", "--save-onnx"]),
        ("--inference-only --steps 5", ["--steps 5", "--inference-only"]),
        ("--inference-only --profile-trace 5", ["--profile-trace 5", "--inference-only"]),
        ("--inference-only --tensorboard", ["--tensorboard", "--inference-only"]),
        ("--inference-only --report-min", ["--report-min", "--inference-only", "--report-min=False"]),
        ("--inference-only --predict", ["--predict is", "--inference-only", "--predict=False"]),
        ("--qr-flag --md-flag", ["--qr-flag and --md-flag exclude each other"]),
        ("--md-flag --weighted-pooling fixed", ["--md-flag and --weighted-pooling fixed exclude each other"]),
        ("--loss-weights 0.5-1", ["--loss-weights 0.5-1.0", "--loss-function wbce"]),
        ("--lr-num-decay-steps 5 --lr-num-warmup-steps 9", ["--lr-decay-start-step 0", "--lr-num-warmup-steps 9"]),
        ("--arch-mlp-bot 13-5 --qr-flag --qr-operation concat", ["ends in 5", "end it in 4, twice that"]),
    ],
)
def test_both_sides_are_named(arguments, words):
    with pytest.raises(UserError) as refused:
        parse_command_line(arguments.split())
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
