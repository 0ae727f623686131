"""Options that exclude each other or need each other."""

from cachedlrm.base.errors import UserError
from cachedlrm.options.config import ModelOptions, Options
from cachedlrm.options.optimisation import check_decay


def check_options(options: Options) -> None:
    """Checks that options fit each other, as far as they are given.

    Raises:
        UserError: they do not; names both sides.
    """
    cache, model = options.cache, options.model
    if cache.gpu_cache_ratio is not None and cache.gpu_cache_rows is not None:
        both = f"--gpu-cache-ratio {cache.gpu_cache_ratio} and --gpu-cache-rows {cache.gpu_cache_rows}"
        raise UserError(f"{both} exclude each other; give one of them")
    _check_interaction(model)
    if options.run.start_from is not None and options.inference.load_model is not None:
        raise UserError(
            f"--start-from {options.run.start_from} and --load-model {options.inference.load_model} exclude each "
            "other; give one of them"
        )
    _check_tricks(model)
    _check_inference(options)
    if options.optimisation.cuda_graphs:
        _check_graphs(options)
    check_decay(options.optimisation)
    bot, width = model.arch_mlp_bot, model.vectors_per_feature
    if bot is not None and bot[-1] != (dim := model.arch_sparse_feature_size or bot[-1] // width) * width:
        wanted = f"{2 * dim}, twice that for --qr-operation concat" if width == 2 else str(dim)
        raise UserError(f"--arch-mlp-bot ends in {bot[-1]} but --arch-sparse-feature-size is {dim}; end it in {wanted}")


def _check_interaction(model: ModelOptions) -> None:
    """Options of one interaction that is another, and those that an interaction cannot do without."""
    op, branches = (
        model.arch_interaction_op,
        (
            ("--interaction-branch1-layer-sizes", model.interaction_branch1_layer_sizes),
            ("--interaction-branch2-layer-sizes", model.interaction_branch2_layer_sizes),
        ),
    )
    for name, value, owner in (
        ("--dcn-num-layers", model.dcn_num_layers, "dcn"),
        ("--dcn-low-rank-dim", model.dcn_low_rank_dim, "dcn"),
        *((name, sizes, "projection") for name, sizes in branches),
    ):
        if value is not None and op != owner:
            raise UserError(f"{name} belongs to --arch-interaction-op {owner} and this is {op}; drop one of them")
        if value is None and owner == op == "projection":
            raise UserError(f"--arch-interaction-op projection needs {name}, sizes joined by dashes; add it")
    if model.arch_interaction_itself and op in ("dcn", "projection"):
        raise UserError(f"--arch-interaction-itself is for the dot interaction and this is {op}; drop one of them")


def _check_tricks(model: ModelOptions) -> None:
    """Weights of the loss, and table tricks that exclude each other, as in facebookresearch/dlrm."""
    chosen = [name for name, given in (("--qr-flag", model.qr_flag), ("--md-flag", model.md_flag)) if given]
    if model.loss_function != "wbce" and model.loss_weights != (1.0, 1.0):
        weights = "-".join(map(str, model.loss_weights))
        raise UserError(f"--loss-weights {weights} are those of --loss-function wbce; add it or drop them")
    if model.pooling == "mean" and model.weighted_pooling == "learned":
        raise UserError(
            "--weighted-pooling learned weighs the rows of a sum, not those of --pooling mean; drop one of them"
        )
    if model.weighted_pooling is not None:
        chosen.append(f"--weighted-pooling {model.weighted_pooling}")
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other; give one of them")


def _check_graphs(options: Options) -> None:
    """Refuses options that keep a step from being captured as CUDA graphs of one mini-batch."""
    accumulated = options.optimisation.mlperf_grad_accum_iter
    for given, why in (
        (options.model.qr_flag, "takes plain tables, not those of --qr-flag"),
        (options.model.md_flag, "takes plain tables, not those of --md-flag"),
        (accumulated > 1, f"takes steps of one mini-batch, not of --mlperf-grad-accum-iter {accumulated}"),
        (options.inference.inference_only, "speeds up training and --inference-only trains nothing"),
        (options.run.profile_trace, "replays steps without the operators that --profile-trace would record"),
    ):
        if given:
            raise UserError(f"--cuda-graphs {why}; drop one of them")


def _check_inference(options: Options) -> None:
    """Refuses options that --inference-only excludes, and those that need it, as facebookresearch/dlrm does."""
    inference, run = options.inference, options.run
    mlp = f"--quantize-mlp-with-bit {inference.quantize_mlp_with_bit}"
    embeddings = f"--quantize-emb-with-bit {inference.quantize_emb_with_bit}"
    quantized = [name for name in (mlp, embeddings) if not name.endswith(" 32")]
    for option, given in (
        (f"--steps {run.steps}", run.steps),
        (f"--profile-trace {run.profile_trace}", run.profile_trace),
        ("--tensorboard", run.tensorboard),
        ("--report-min", options.cache.report_min),
        ("--predict", options.cache.predict),
        ("--shuffle", options.data.shuffle),
        (f"--stop-after {options.evaluation.stop_after}", options.evaluation.stop_after),
        (f"--stop-at-auc {options.evaluation.stop_at_auc}", options.evaluation.stop_at_auc),
        ("--keep-best", options.evaluation.keep_best),
    ):
        if inference.inference_only and given:
            no = "" if " " in option else f", or say {option}=False where a profile has it"
            raise UserError(f"{option} is about training and --inference-only does none; drop one of them{no}")
    if quantized and not inference.inference_only:
        raise UserError(f"{quantized[0]} is for serving a model; add --inference-only, or drop it to train")
    if quantized and inference.save_onnx:
        raise UserError(f"--save-onnx writes the model as it is, not with {quantized[0]}; drop one of them")
    for flag, given in (("--qr-flag", options.model.qr_flag), ("--md-flag", options.model.md_flag)):
        if embeddings in quantized and given:
            raise UserError(f"{embeddings} takes plain tables, not those of {flag}; drop one of them")
