"""``--data torchrec`` before a command line of facebookresearch/dlrm's torchrec_dlrm/dlrm_main.py, or of MLPerf's copy.

Before a command line is parsed, each of that program's options becomes one of ours. Our own options may stand beside
them, and profiles lie below both; they decide like theirs which defaults there matter. Those lie below the profiles.
Names of several words have underscores there and dashes here, so ``--dcn_num_layers`` is theirs and
``--dcn-num-layers`` is ours. Mistakes are told in the names there.
"""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.options.profiles import profile_values

_NUM_TABLES, _NUM_DENSE = 26, 13  # of Criteo's data, the only ones there
_RANDOM_BATCHES = 10  # of an epoch of generated data; there as many distinct ones, which come again without end
_HELD_OUT_DAY = "day_23"
_KAGGLES_FILES = "train"  # of all stages there


class _Carried(NamedTuple):
    """An option there.

    Attributes:
        ours: without dashes before it.
        default: there, if it is not ours.
        interaction: the only ``--arch-interaction-op`` it matters to.
    """

    ours: str
    default: str | None = None
    interaction: str | None = None


_VALUES = {
    "epochs": _Carried("nepochs"),
    "batch_size": _Carried("mini-batch-size", "32"),
    "test_batch_size": _Carried("test-mini-batch-size"),
    "limit_train_batches": _Carried("num-batches"),
    "seed": _Carried("numpy-rand-seed"),
    "learning_rate": _Carried("learning-rate", "15.0"),
    "validation_freq_within_epoch": _Carried("test-freq"),  # without it: see _data
    "validation_auroc": _Carried("stop-at-auc"),
    "lr_warmup_steps": _Carried("lr-num-warmup-steps"),
    "lr_decay_start": _Carried("lr-decay-start-step"),
    "lr_decay_steps": _Carried("lr-num-decay-steps"),
    "embedding_dim": _Carried("arch-sparse-feature-size", "64"),
    "over_arch_layer_sizes": _Carried("arch-mlp-top", "512,512,256,1"),
    "dcn_num_layers": _Carried("dcn-num-layers", "3", "dcn"),
    "dcn_low_rank_dim": _Carried("dcn-low-rank-dim", "512", "dcn"),
    "interaction_branch1_layer_sizes": _Carried("interaction-branch1-layer-sizes", "2048,2048", "projection"),
    "interaction_branch2_layer_sizes": _Carried("interaction-branch2-layer-sizes", "2048,2048", "projection"),
}
"""Options with a value; sizes are joined by commas there, by dashes here."""

_OTHERS = {
    "dense_arch_layer_sizes", "interaction_type", "dataset_name", "num_embeddings", "num_embeddings_per_feature",
    "in_memory_binary_criteo_path", "synthetic_multi_hot_criteo_path", "multi_hot_sizes", "eps",
}  # fmt: skip
"""Options with a value that depends on others."""

_FLAGS: dict[str, str | None] = {
    "adagrad": None,  # --optimizer, with --eps
    "allow_tf32": "--tf32",
    "shuffle_training_set": "--shuffle",
    "pin_memory": None,  # on CUDA it always is
    "mmap_mode": None,  # files always are
    "print_lr": None,  # it is in metrics.jsonl
    "print_progress": None,  # see --ui
    "evaluate_on_training_end": None,  # it always is
    "evaluate_on_epoch_end": None,  # --test-freq
}
"""Options without a value, and ours; None: it decides another one, or is as it is here anyway."""

_FILES = ("in_memory_binary_criteo_path", "synthetic_multi_hot_criteo_path")
_SAMPLES = (*_FILES, "multi_hot_sizes")
_RENAMED = {
    **{carried.ours: (name,) for name, carried in _VALUES.items()},
    "arch-embedding-size": ("num_embeddings_per_feature", "num_embeddings"),
    "eps": ("eps",),
}
"""Our options, and those there that have the same values."""

_DECIDE = {
    **_RENAMED,
    **{flag.removeprefix("--"): (name,) for name, flag in _FLAGS.items() if flag},
    "arch-interaction-op": ("interaction_type",),
    "arch-mlp-bot": ("dense_arch_layer_sizes",),
    "optimizer": ("adagrad",),
    "test-freq": ("validation_freq_within_epoch", "evaluate_on_epoch_end"),
    "data": (*_SAMPLES, "dataset_name"),  # which says how the files of the others are read
}
"""Our options, and those there that decide them."""

_EVALUATIONS = "evaluations read all held-out samples; name others by --test-data"
_REFUSED = {
    "limit_val_batches": _EVALUATIONS,
    "limit_test_batches": _EVALUATIONS,
    "undersampling_rate": "all samples of the files are trained",
    "drop_last_training_batch": "the last batch of an epoch is trained too, if smaller",
    "shuffle_batches": "the order within a batch decides no gradient; --shuffle_training_set mixes the whole set",
    "collect_multi_hot_freqs_stats": "python -m cachedlrm.simulate says how often rows are used",
    "multi_hot_distribution_type": "bags are read as they are, and generated ones have zipf's distribution; drop it",
    "print_sharding_plan": "one process trains on one device; python -m cachedlrm.plan says what is where",
}


class Translation(NamedTuple):
    """A command line in our options.

    Attributes:
        defaults: arguments for what it leaves open and means there; profiles override them.
        arguments: what it gives.
        names: those of our options, without dashes before them, that have another name there and the same value.
        deciding: names there of those whose value is another there, and their value here, if it follows from that.
    """

    defaults: list[str]
    arguments: list[str]
    names: Mapping[str, str]
    deciding: Mapping[str, tuple[str, str | None]]


def translate(arguments: Sequence[str]) -> Translation:
    """A command line in our options; one without ``--data torchrec`` as it is.

    Raises:
        UserError: an option there is not carried over, lacks its value, does not go with another one, or is given in
            our words too; or a profile is wrong.
    """
    at = _place_of_data(arguments)
    if at is None:
        return Translation([], list(arguments), {}, {})
    theirs, ours = _split([*arguments[: at.start], *arguments[at.stop :]])
    given, profiles = _given(ours)
    for name in given:
        for other in _DECIDE.get(name, ()):
            if other in theirs:
                raise UserError(f"--{other} and --{name} decide the same thing; leave out one of them")
    model, data = _model(theirs), _data(theirs)
    typed = {name for name, others in _DECIDE.items() if any(other in theirs for other in others)} - {"data"}
    if any(name in theirs for name in _SAMPLES):
        typed |= {"data", "test-data"}
    profiled = {name.replace("_", "-"): value for name, value in profile_values(profiles).items()}
    decided = {**{name: value for name, value in profiled.items() if name not in typed}, **given}
    translated = (
        model | ({} if "data" in decided else data) | _plain(theirs, {**model, **decided}, "optimizer" in decided)
    )
    flags = [flag for name, flag in _FLAGS.items() if name in theirs and flag]
    spelled = {name: f"--{name}={value}" for name, value in translated.items() if name not in given}
    return Translation(
        [argument for name, argument in spelled.items() if name not in typed],
        [*(argument for name, argument in spelled.items() if name in typed), *flags, *ours],
        *_names(theirs, decided.keys(), translated),
    )


_BEFORE, _AFTER = r"(?<![\w-])--", r"(?![\w=-])"  # the name of an option


def in_its_words(arguments: Sequence[str], message: str) -> str:
    """A mistake with the names of options that the command line has for them.

    An option whose value is another there keeps our name, and its value if that is told, and theirs follows.
    """
    try:
        _, _, names, deciding = translate(arguments)
    except UserError:  # the mistake itself, which has them
        return message
    message = re.sub(rf"{_BEFORE}([a-z0-9-]+){_AFTER}", lambda found: names.get(found[1], found[0]), message)
    for name, (other, value) in deciding.items():
        told = "" if value is None else rf"(?: {re.escape(value)}{_AFTER})?"
        message = re.sub(rf"{_BEFORE}{name}{_AFTER}{told}", rf"\g<0> ({other})", message)
    return message


def _names(
    theirs: Mapping[str, str], ours: Set[str], translated: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, str | None]]]:
    """``names`` and ``deciding`` of a `Translation`.

    Args:
        theirs: given.
        ours: by name, what is given in our words.
        translated: ours that follow from theirs.
    """
    names: dict[str, str] = {}
    deciding: dict[str, tuple[str, str | None]] = {}
    for name, others in _DECIDE.items():
        typed = [other for other in others if other in theirs]
        if name in ours or not (typed or name in _RENAMED):
            continue
        other = f"--{(typed or others)[0]}"
        if name in _RENAMED or f"--{name}" in _FLAGS.values():
            names[name] = other
        else:
            deciding[name] = other, translated.get(name)
    return names, deciding


def _place_of_data(arguments: Sequence[str]) -> range | None:
    """Where ``--data torchrec`` stands."""
    for number, argument in enumerate(arguments):
        if argument == "--data=torchrec":
            return range(number, number + 1)
        if list(arguments[number : number + 2]) == ["--data", "torchrec"]:
            return range(number, number + 2)
    return None


def _given(ours: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Our options by name, without dashes before it, and their values; and the profiles among them."""
    given, profiles = {}, []
    for argument, following in zip(ours, [*ours, ""][1:], strict=True):
        if argument.startswith("--"):
            words, equals, value = argument.removeprefix("--").partition("=")
            name, value = words.replace("_", "-"), value if equals else following
            given[name] = value
            profiles += [value] if name == "profile" else []
    return given, profiles


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options there by name, without dashes, and all other arguments."""
    theirs: dict[str, str] = {}
    ours: list[str] = []
    left = iter(arguments)
    for argument in left:
        words, equals, value = argument.partition("=")
        name = words.removeprefix("--") if words.startswith("--") else ""
        if name in _REFUSED:
            raise UserError(f"{words} of torchrec_dlrm's dlrm_main.py is not carried over: {_REFUSED[name]}")
        if name in _FLAGS:
            if equals:
                raise UserError(f"{words} takes no value; leave out {shown(equals + value)}")
            theirs[name] = ""
        elif name in _VALUES or name in _OTHERS:
            theirs[name] = value if equals else next(left, "")
            if not theirs[name] or (not equals and theirs[name].startswith("--")):
                raise UserError(f"{words} needs a value")
        else:
            ours.append(argument)
    return theirs, ours


def _plain(theirs: Mapping[str, str], decided: Mapping[str, Any], names_optimizer: bool) -> dict[str, str]:
    """Options whose values are ours, or that say how often to evaluate.

    Args:
        theirs: given.
        decided: interaction and optimizer, by our names.
        names_optimizer: whether that is said in our words.
    """
    translated = {}
    for name, carried in _VALUES.items():
        if carried.interaction in (None, decided["arch-interaction-op"]):
            value = theirs.get(name, carried.default)
            if value is not None:
                translated[carried.ours] = value.replace(",", "-") if name.endswith("_sizes") else value
    if not translated.get("test-freq", "1").isdecimal():
        raise UserError(
            f"--validation_freq_within_epoch {shown(translated['test-freq'])} is no number of steps; at the end of "
            "each epoch evaluates --evaluate_on_epoch_end"
        )
    if "evaluate_on_epoch_end" in theirs:
        if "test-freq" in translated:
            raise UserError(
                "--evaluate_on_epoch_end and --validation_freq_within_epoch: evaluations come at the end of each epoch "
                "or in equal steps, and one at the end of the run; leave out one of them"
            )
        translated["test-freq"] = "epoch"
    if decided["optimizer"] == "adagrad":
        translated["eps"] = theirs.get("eps", "1e-8")
    elif "eps" in theirs and names_optimizer:  # sgd there leaves it aside
        translated["eps"] = theirs["eps"]
    return translated


def _model(theirs: Mapping[str, str]) -> dict[str, str]:
    """Options of model and optimizer that depend on others."""
    interaction = theirs.get("interaction_type", "original")
    if interaction not in ("original", "dcn", "projection"):
        raise UserError(f"--interaction_type {shown(interaction)} is none of original, dcn and projection")
    layers = theirs.get("dense_arch_layer_sizes", "512,256,64").replace(",", "-")
    rows = theirs.get("num_embeddings_per_feature") or ",".join([theirs.get("num_embeddings", "100000")] * _NUM_TABLES)
    return {
        "arch-interaction-op": "dot" if interaction == "original" else interaction,
        "arch-mlp-bot": f"{_NUM_DENSE}-{layers}",
        "arch-embedding-size": rows.replace(",", "-"),
        "optimizer": "adagrad" if "adagrad" in theirs else "sgd",
    }


def _data(theirs: Mapping[str, str]) -> dict[str, str]:
    """Where samples come from, and what belongs to that.

    Random ones become zipf's. One-hot ids are taken modulo the rows of their table there, multi-hot ones as they are.
    ``criteo_1t`` holds out the last day. ``criteo_kaggle`` evaluates on samples of the files it trains, as the test's
    beside them have no labels. All are evaluated at the end of each epoch.
    """
    one_hot, multi_hot = (theirs.get(name) for name in _FILES)
    sizes, dataset = theirs.get("multi_hot_sizes"), theirs.get("dataset_name", "criteo_1t")
    if dataset not in ("criteo_1t", "criteo_kaggle"):
        raise UserError(f"--dataset_name {shown(dataset)} is neither criteo_1t nor criteo_kaggle")
    if one_hot is not None and multi_hot is not None:
        raise UserError("--in_memory_binary_criteo_path and --synthetic_multi_hot_criteo_path exclude each other")
    if multi_hot is not None and sizes is not None:
        raise UserError(
            "--multi_hot_sizes is for one-hot ids and --synthetic_multi_hot_criteo_path has bags of its own; drop the "
            "sizes"
        )
    if one_hot is not None and sizes is not None:
        raise UserError(
            "--multi_hot_sizes with --in_memory_binary_criteo_path is not carried over: there each id brings a bag "
            "from a table of random ids, rows times sizes, all in memory (22 GiB for MLPerf's). Write the bags once "
            "with torchrec_dlrm's scripts/materialize_synthetic_multihot_dataset.py and --copy_labels_and_dense, and "
            "name that folder by --synthetic_multi_hot_criteo_path in place of both"
        )
    each_epoch = {"test-freq": "epoch"}
    if one_hot is None and multi_hot is None:
        hot = "" if sizes is None else f":hot={sizes.replace(',', '-')}"
        return {"data": f"zipf{hot}", "num-batches": str(_RANDOM_BATCHES), **each_epoch}
    data = f"npy:{multi_hot}" if one_hot is None else f"npy:{one_hot}:fold=rows"
    if dataset == "criteo_kaggle":
        data = f"{data}:only={_KAGGLES_FILES}"
        return {"data": data, "test-data": data, **each_epoch}
    return {"data": f"{data}:test={_HELD_OUT_DAY}", **each_epoch}
