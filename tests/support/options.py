"""The names of all options, options resolved, and the job of a run."""

from pathlib import Path

from cachedlrm.data.open import open_dataset
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.resolved import Resolved
from cachedlrm.run.job import Job, build_job

OPTIONS = """
arch-sparse-feature-size arch-embedding-size arch-mlp-bot arch-mlp-top arch-interaction-op arch-interaction-itself
dcn-num-layers dcn-low-rank-dim interaction-branch1-layer-sizes interaction-branch2-layer-sizes pooling weighted-pooling
activation-function loss-function loss-weights loss-threshold round-targets qr-flag qr-threshold qr-operation
qr-collisions md-flag md-threshold md-temperature md-round-dims mini-batch-size micro-batch-size num-batches nepochs
numpy-rand-seed max-ind-range test-freq test-mini-batch-size print-freq monitor stop-after stop-at-auc keep-best
gauc-table data test-data shuffle data-generation data-size num-indices-per-lookup num-indices-per-lookup-fixed
rand-data-dist rand-data-min rand-data-max rand-data-mu rand-data-sigma data-trace-file data-trace-enable-padding
optimizer learning-rate eps weight-decay dense-optimizer dense-learning-rate dense-eps dense-momentum dense-weight-decay
clip-grad-norm lr-policy lr-num-warmup-steps lr-decay-start-step lr-num-decay-steps lr-end lr-power
mlperf-grad-accum-iter row-dtype row-state-dtype bf16 tf32 cuda-graphs gpu-cache-ratio gpu-cache-rows gpu-budget policy
lookahead count-rows prefetch-depth report-min predict store store-path host-budget init device steps run-dir
checkpoint-every resume start-from ui save-predictions threads debug-mode tensorboard profile-trace deterministic
profile device-type device-memory device-reserved device-bandwidth device-flops link-bandwidth host-lookup-rate
load-model save-model inference-only quantize-mlp-with-bit quantize-emb-with-bit save-onnx
""".split()  # noqa: SIM905 - words without quotes are easier to compare with the contract


def resolved(*arguments: str) -> Resolved:
    """The options of a run on the data that they name."""
    options = parse_command_line(arguments)
    return resolve(options, open_dataset(options.data.data, options.data.test_data, data_request(options)))


def built_job(run_dir: Path, *arguments: str) -> Job:
    """The job of a run, not started."""
    options = parse_command_line(arguments)
    dataset = open_dataset(options.data.data, options.data.test_data, data_request(options))
    return build_job(resolve(options, dataset), dataset, run_dir)
