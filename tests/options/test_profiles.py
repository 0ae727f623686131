"""Options in TOML: what a profile may say, and that ``config.toml`` gives the options that wrote it."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.base.units import LARGEST
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.config import (
    BatchOptions,
    CacheOptions,
    DataOptions,
    HardwareOptions,
    InferenceOptions,
    ModelOptions,
    OptimisationOptions,
    Options,
    ReferenceOptions,
    RunOptions,
    StoreOptions,
)
from cachedlrm.options.evaluation import EvaluationOptions
from cachedlrm.options.profiles import load_options, read_profile, spell, to_toml
from support.documents import ROOT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cache]\npolicy = 'random'\n", ["[cache] policy", "random", "lrfu"]),
        ("[run]\nsteps = '5'\n", ["[run]", "steps", "whole number"]),
        ("[run]\nsteps = true\n", ["[run]", "steps", "whole number"]),
        ("[run]\nsteps = -5\n", ["[run]", "steps", "-5"]),
        ("[run]\nsave-predictions = 1\n", ["[run]", "save-predictions", "true or false"]),
        ("[cache]\ngpu-cache-ratio = '0.5'\n", ["[cache]", "gpu-cache-ratio", "number"]),
        ("[cache]\ngpu-budget = 1.5\n", ["[cache]", "gpu-budget", "2GiB"]),
        ("[cache]\ngpu-cache-ratio = 0.5\ngpu-cache-rows = 5\n", ["--gpu-cache-ratio", "--gpu-cache-rows"]),
        ("[data]\ndata = 5\n", ["[data]", "data", "string"]),
        ("[model]\narch-mlp-bot = '4'\n", ["[model]", "arch-mlp-bot", "two"]),
        ("[optimisation]\nlearning-rate = nan\n", ["[optimisation]", "learning-rate", "finite"]),
        ("description = 5\n", ["description"]),
        ('[cache]\n"a\\nb" = 5\n', ["[cache]", "a b"]),
        ("[model]\nsteps = 5\n", ["[model]", "steps"]),
        ("[cache]\npolicys = 'lru'\n", ["[cache]", "policys", "policy"]),
        ("[cash]\n", ["[cash]", "cache"]),
        ("[run]\nprofile = 'x'\n", ["[run] profile: a profile takes no other one"]),
        ("[model]\narch-mlp-bot = [1, 2]\n", ["arch-mlp-bot"]),
        ("steps = 5\n", ["steps"]),
        ("not toml", ["TOML"]),
    ],
)
def test_a_mistake_in_a_profile_names_the_file(tmp_path, text, words):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        parse_command_line(["--profile", str(path)])
    assert str(path) in str(refused.value)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)  # no file can hold half surrogates
positive = st.integers(1, LARGEST)
count = st.integers(0, LARGEST)
positive_or_off = st.just(-1) | positive
sizes = st.lists(positive, min_size=1, max_size=4).map(tuple)
maybe = st.none().__or__
finite = st.floats(allow_nan=False, allow_infinity=False)


def every_field(kind, **values):
    """A new option must be added here, or it would not be tested."""
    assert list(values) == [field.name for field in dataclasses.fields(kind)]
    return st.builds(kind, **values)


@st.composite
def all_options(draw):
    dim, ratio_or_rows = draw(maybe(positive)), draw(st.sampled_from(["ratio", "rows", "neither"]))
    loss, weights = draw(st.sampled_from([None, "mse", "bce", "wbce"])), st.lists(st.floats(0, 1e18), min_size=2)
    weights, warmup = weights.map(tuple), draw(st.integers(0, 2**40))
    trick = draw(st.sampled_from(["qr", "md", "pooling", "none"]))
    serves, saves_onnx = draw(st.booleans()), draw(st.booleans())
    quantizes = serves and not saves_onnx
    graphs = trick not in ("qr", "md") and not serves and draw(st.booleans())
    pooling = st.sampled_from(["fixed", "learned"]) if trick == "pooling" else st.none()
    op = draw(st.sampled_from(["dot", "cat", "dcn", "projection"]))
    of_dcn, branch = (maybe(positive) if op == "dcn" else st.none()), (sizes if op == "projection" else st.none())
    ends_in_dim = sizes.map(lambda layers: (*layers, dim or layers[0]))
    strategy = st.builds(
        Options,
        model=every_field(
            ModelOptions,
            arch_sparse_feature_size=st.just(dim),
            arch_embedding_size=maybe(sizes),
            arch_mlp_bot=maybe(ends_in_dim),
            arch_mlp_top=maybe(sizes.map(lambda layers: (*layers, 1))),
            arch_interaction_op=st.just(op),
            arch_interaction_itself=st.booleans() if op in ("dot", "cat") else st.just(False),
            dcn_num_layers=of_dcn,
            dcn_low_rank_dim=of_dcn,
            interaction_branch1_layer_sizes=branch,
            interaction_branch2_layer_sizes=branch,
            pooling=st.just("sum") if trick == "pooling" else st.sampled_from(["sum", "mean"]),
            weighted_pooling=pooling,
            activation_function=st.sampled_from(["relu", "gelu", "silu", "tanh", "sigmoid"]),
            loss_function=st.just(loss),
            loss_weights=weights if loss == "wbce" else st.just((1.0, 1.0)),
            loss_threshold=st.floats(0, 0.5, exclude_max=True),
            round_targets=st.booleans(),
            qr_flag=st.just(trick == "qr"),
            qr_threshold=count,
            qr_operation=st.sampled_from(["mult", "add"]),
            qr_collisions=positive,
            md_flag=st.just(trick == "md"),
            md_threshold=count,
            md_temperature=st.floats(0, allow_infinity=False),
            md_round_dims=st.booleans(),
        ),
        batches=every_field(
            BatchOptions,
            mini_batch_size=maybe(positive),
            micro_batch_size=maybe(positive),
            num_batches=count,
            nepochs=count,
            numpy_rand_seed=count,
            max_ind_range=positive_or_off,
            test_freq=maybe(st.just("epoch") | positive_or_off),
            test_mini_batch_size=positive_or_off,
            print_freq=positive,
        ),
        evaluation=every_field(
            EvaluationOptions,
            monitor=st.sampled_from(["auc", "logloss"]),
            stop_after=st.none() if serves else maybe(positive),
            stop_at_auc=st.none() if serves else maybe(st.floats(0, 1, exclude_min=True)),
            keep_best=st.just(False) if serves else st.booleans(),
            gauc_table=maybe(words),
        ),
        data=every_field(
            DataOptions, data=words, test_data=maybe(words), shuffle=st.just(False) if serves else st.booleans()
        ),
        reference=every_field(
            ReferenceOptions,
            data_generation=st.sampled_from([None, "random", "synthetic"]),
            data_size=maybe(positive),
            num_indices_per_lookup=maybe(st.integers(1, 100_000)),
            num_indices_per_lookup_fixed=maybe(st.booleans()),
            rand_data_dist=st.sampled_from([None, "uniform", "gaussian"]),
            rand_data_min=maybe(finite),
            rand_data_max=maybe(finite),
            rand_data_mu=maybe(finite),
            rand_data_sigma=maybe(st.floats(0, allow_infinity=False)),
            data_trace_file=maybe(words),
            data_trace_enable_padding=maybe(st.booleans()),
        ),
        optimisation=every_field(
            OptimisationOptions,
            optimizer=st.sampled_from([None, "sgd", "adagrad", "rwsadagrad", "adam"]),
            learning_rate=maybe(st.floats(0, 1e30)),
            eps=maybe(st.floats(1e-30, 1e30)),
            weight_decay=st.floats(0, allow_infinity=False),
            dense_optimizer=st.sampled_from([None, "sgd", "adagrad", "adam", "adamw"]),
            dense_learning_rate=maybe(st.floats(0, 1e30)),
            dense_eps=maybe(st.floats(1e-30, 1e30)),
            dense_momentum=st.floats(0, 1, exclude_max=True),
            dense_weight_decay=maybe(st.floats(0, allow_infinity=False)),
            clip_grad_norm=maybe(st.floats(0, exclude_min=True, allow_infinity=False)),
            lr_policy=st.sampled_from(["reference", "constant", "linear", "cosine", "polynomial"]),
            lr_num_warmup_steps=st.just(warmup),
            lr_decay_start_step=st.integers(warmup, 2**41),
            lr_num_decay_steps=count,
            lr_end=maybe(st.floats(0, 1e30)),
            lr_power=maybe(st.floats(0, 100, exclude_min=True)),
            mlperf_grad_accum_iter=st.just(1) if graphs else positive,
            row_dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
            row_state_dtype=st.sampled_from(["fp32", "bf16"]),
            bf16=st.booleans(),
            tf32=st.booleans(),
            cuda_graphs=st.booleans() if graphs else st.just(False),
        ),
        cache=every_field(
            CacheOptions,
            gpu_cache_ratio=st.floats(0, 1, exclude_min=True) if ratio_or_rows == "ratio" else st.none(),
            gpu_cache_rows=positive if ratio_or_rows == "rows" else st.none(),
            gpu_budget=st.just("auto") | maybe(positive),
            policy=st.sampled_from(["lru", "lfu", "lrfu", "static", "lookahead", "oracle"]),
            lookahead=positive,
            count_rows=st.booleans(),
            prefetch_depth=maybe(st.integers(0, 64)),
            report_min=st.just(False) if serves else st.booleans(),
            predict=st.just(False) if serves else st.booleans(),
        ),
        store=every_field(
            StoreOptions,
            store=st.sampled_from(["host", "lmdb"]),
            store_path=maybe(words.map(Path)),
            host_budget=maybe(positive),
            init=st.sampled_from([None, "counter", "reference"]),
        ),
        run=every_field(
            RunOptions,
            device=st.sampled_from(["auto", "cpu", "cuda"]),
            steps=st.sampled_from([None, 0]) if serves else maybe(count),
            run_dir=maybe(words.map(Path)),
            checkpoint_every=maybe(positive),
            resume=st.none(),  # takes its options from the run there, as does the next
            start_from=st.none(),
            ui=st.sampled_from(["auto", "live", "plain", "off"]),
            save_predictions=st.booleans(),
            threads=maybe(st.integers(1, 1024)),
            debug_mode=st.booleans(),
            tensorboard=st.just(False) if serves else st.booleans(),
            profile_trace=st.just(0) if serves or graphs else st.integers(0, 1000),
            deterministic=st.booleans(),
            profile=st.just(()),
        ),
        hardware=every_field(
            HardwareOptions,
            device_type=st.sampled_from([None, "cpu", "cuda"]),
            device_memory=maybe(positive),
            device_reserved=maybe(positive),
            device_bandwidth=maybe(positive),
            device_flops=maybe(st.floats(1, 1e18)),
            link_bandwidth=maybe(positive),
            host_lookup_rate=maybe(st.floats(1, 1e18)),
        ),
        inference=every_field(
            InferenceOptions,
            load_model=maybe(words.map(Path)),
            save_model=maybe(words.map(Path)),
            inference_only=st.just(serves),
            quantize_mlp_with_bit=st.sampled_from([8, 16, 32] if quantizes else [32]),
            quantize_emb_with_bit=st.sampled_from([4, 8, 32] if quantizes and trick not in ("qr", "md") else [32]),
            save_onnx=st.just(saves_onnx),
        ),
    )
    return draw(strategy)


def placeless(options: Options) -> Options:
    """Without what config.toml leaves out: a repeated run needs a directory of its own."""
    return dataclasses.replace(options, run=dataclasses.replace(options.run, profile=(), run_dir=None))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(options=all_options())
def test_config_toml_round_trips(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(options), encoding="utf-8")
    again = parse_command_line(["--profile", str(path)])
    assert placeless(again) == placeless(options)


def test_config_toml_is_enough_without_a_command_line(tmp_path):
    options = parse_command_line(["--profile", "criteo-kaggle", "--gpu-budget", "1.5GiB", "--steps", "0"])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(options), encoding="utf-8")
    assert load_options(path) == placeless(options)


def test_a_used_profile_and_the_directory_are_not_written_again():
    text = to_toml(parse_command_line(["--profile", "criteo-kaggle", "--run-dir", "x"]))
    assert not re.search("^profile =", text, re.MULTILINE)
    assert "run-dir" not in text


@pytest.mark.parametrize("path", sorted(ROOT.glob("profiles/*/*.toml")), ids=lambda path: path.stem)
def test_every_packaged_profile_loads_by_name(path):
    options = parse_command_line(["--profile", path.stem])
    if path.parent.name == "devices":
        hardware = dataclasses.asdict(options.hardware)
        assert [name for name, value in hardware.items() if value is None] in ([], ["device_reserved"])
        assert options.cache.gpu_budget == "auto"
    else:
        assert options.model.arch_sparse_feature_size is not None


def test_a_later_profile_overrides_an_earlier_one(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[store]\nhost-budget = '1GiB'\n[batches]\nmini-batch-size = 7\n")
    options = parse_command_line(["--profile", "criteo-kaggle", "--profile=rtx3050-4gb", "--profile", str(path)])
    assert (options.batches.mini_batch_size, options.store.host_budget) == (7, 1 << 30)
    assert (options.model.arch_sparse_feature_size, options.hardware.device_memory) == (16, 4 << 30)
    options = parse_command_line(["--profile", str(path), "--profile=criteo-kaggle", "--mini-batch-size=9"])
    assert (options.batches.mini_batch_size, options.store.host_budget) == (9, 1 << 30)
    assert parse_command_line(["--profile", str(path), "--profile=criteo-kaggle"]).batches.mini_batch_size == 2048


def test_values_are_spelled_as_on_the_command_line():
    options = parse_command_line(["--loss-function=wbce", "--loss-weights=0.00001-2", "--arch-mlp-bot=4-8"])
    model = spell(options)["model"]
    assert (model["loss-weights"], model["arch-mlp-bot"]) == ("0.00001-2.0", "4-8")
    assert "arch-mlp-top" not in model


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("[optimisation]\nlearning-rate = 1\n", 1.0),
        ("[store]\nhost-budget = '1.5GiB'\n", 3 << 29),
        ("[store]\nhost-budget = 1000\n", 1000),
        ("[cache]\ngpu-budget = 'auto'\n", "auto"),
        ("[store]\nstore-path = '--help'\n", Path("--help")),
        ("[run]\nui = 'off'\n", "off"),
    ],
)
def test_values_are_typed(tmp_path, line, value):
    (tmp_path / "p.toml").write_text(line)
    options, given = read_profile(tmp_path / "p.toml", Options)
    ((name, read),) = given.items()
    assert read == value
    assert type(read) is type(value)
    assert any(getattr(getattr(options, group.name), name, None) == value for group in dataclasses.fields(options))
