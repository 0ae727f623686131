"""Options: spelled as the contract says, checked one by one, and the same from a file."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.base.units import LARGEST
from cachedlrm.options import config
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
from cachedlrm.options.profiles import load_options, to_toml
from support.documents import ROOT

OPTIONS = """
arch-sparse-feature-size arch-embedding-size arch-mlp-bot arch-mlp-top arch-interaction-op arch-interaction-itself
weighted-pooling activation-function loss-function loss-weights loss-threshold round-targets qr-flag qr-threshold
qr-operation qr-collisions md-flag md-threshold md-temperature md-round-dims mini-batch-size micro-batch-size
num-batches nepochs numpy-rand-seed max-ind-range test-freq test-mini-batch-size print-freq data test-data
data-generation data-size num-indices-per-lookup num-indices-per-lookup-fixed rand-data-dist rand-data-min rand-data-max
rand-data-mu rand-data-sigma data-trace-file data-trace-enable-padding optimizer learning-rate lr-num-warmup-steps
lr-decay-start-step lr-num-decay-steps mlperf-grad-accum-iter bf16 tf32 cuda-graphs gpu-cache-ratio gpu-cache-rows
gpu-budget policy lookahead count-rows prefetch-depth report-min predict store store-path host-budget init device steps
run-dir checkpoint-every resume ui save-predictions threads debug-mode tensorboard profile-trace deterministic profile
device-memory device-reserved device-bandwidth device-flops link-bandwidth load-model save-model inference-only
quantize-mlp-with-bit quantize-emb-with-bit save-onnx
""".split()  # noqa: SIM905 - words without quotes are easier to compare with the contract


def test_options_are_spelled_as_the_contract_says():
    fields = [
        option.name.replace("_", "-")
        for group in dataclasses.fields(Options)
        for option in dataclasses.fields(group.default_factory)
    ]
    assert fields == OPTIONS


def test_every_option_has_a_docstring_which_becomes_its_help():
    groups = [
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options") and node.name != "Options"
    ]
    assert len(groups) == len(dataclasses.fields(Options))
    documented = [
        ast.unparse(field.target).replace("_", "-")
        for group in groups
        for field, text in zip(group.body, group.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and ast.literal_eval(text.value).strip()
    ]
    assert documented == OPTIONS


def test_values_in_both_spellings():
    spaced = "--arch-mlp-bot 13-512-16 --gpu-cache-ratio 0.05 --test-freq -1 --save-predictions --gpu-budget 1.5GiB"
    joined = "--arch-mlp-bot=13-512-16 --gpu-cache-ratio=0.05 --test-freq=-1 --save-predictions=True"
    joined += " --gpu-budget=1536MiB"
    options = parse_command_line(spaced.split())
    assert options == parse_command_line(joined.split())
    assert options.model.arch_mlp_bot == (13, 512, 16)
    assert options.cache.gpu_budget == 3 << 29
    assert options.run.save_predictions is True
    assert parse_command_line(["--save-predictions=False"]) == parse_command_line([]) == Options()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("512 MiB", 512 << 20),
        ("1GB", 10**9),
        ("3kb", 3000),
        ("1000", 1000),
        ("9007199254740993", 2**53 + 1),
        (str(LARGEST), LARGEST),
    ],
)
def test_sizes(text, size):
    assert parse_command_line(["--host-budget", text]).store.host_budget == size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--step 5", ["--steps"]),
        ("--nonsense", ["--nonsense"]),
        ("stray", ["stray"]),
        ("--steps", ["--steps"]),
        ("--steps 1 --steps 2", ["--steps"]),
        ("--steps -1", ["--steps", "-1"]),
        ("--steps 3.5", ["--steps", "3.5"]),
        ("--steps=", ["--steps"]),
        ("--steps one", ["--steps", "one"]),
        ("--steps=", ["--steps", "empty"]),
        (f"--steps={2**63}", ["--steps", str(LARGEST)]),
        ("--steps " + "9" * 5000, ["--steps", str(LARGEST)]),
        ("--STEPS 1", ["--STEPS", "--steps"]),
        ("--policy random", ["--policy", "lrfu"]),
        ("--policy belady", ["--policy", "lookahead"]),
        ("--lookahead 0", ["--lookahead", "0", "1 or more"]),
        ("--prefetch-depth 65", ["--prefetch-depth", "65", "from 0 to 64"]),
        ("--init zero", ["--init", "counter"]),
        ("--store-path=", ["--store-path"]),
        ("--checkpoint-every 0", ["--checkpoint-every", "1 or more"]),
        ("--resume x", ["--resume"]),
        ("--data-generation dataset", ["--data-generation", "synthetic"]),
        ("--no-save-predictions", ["--no-save-predictions"]),
        ("--threads 0", ["--threads", "0"]),
        ("--run-dir=", ["--run-dir"]),
        ("--store redis", ["--store", "host", "lmdb"]),
        ("--optimizer lion", ["rwsadagrad"]),
        ("--gpu-cache-ratio 0", ["--gpu-cache-ratio"]),
        ("--gpu-cache-ratio 1.5", ["--gpu-cache-ratio"]),
        ("--gpu-cache-ratio nan", ["--gpu-cache-ratio"]),
        ("--gpu-cache-rows 0", ["--gpu-cache-rows"]),
        ("--gpu-cache-ratio 0.1 --gpu-cache-rows 5", ["--gpu-cache-ratio", "--gpu-cache-rows"]),
        ("--gpu-budget lots", ["--gpu-budget", "2GiB"]),
        ("--gpu-budget -1GiB", ["--gpu-budget"]),
        ("--gpu-budget 0", ["--gpu-budget"]),
        ("--gpu-budget 1.5", ["--gpu-budget"]),
        ("--gpu-budget " + "9" * 400, ["--gpu-budget"]),
        ("--learning-rate nan", ["--learning-rate"]),
        ("--learning-rate inf", ["--learning-rate"]),
        ("--learning-rate -0.1", ["--learning-rate"]),
        ("--learning-rate 1e308", ["--learning-rate", "1e30"]),
        ("--device-flops 1e308", ["--device-flops", "1e18"]),
        ("--device-flops 1e-320", ["--device-flops", "from 1"]),
        ("--arch-mlp-bot 13-x", ["--arch-mlp-bot"]),
        ("--arch-mlp-bot 13-0-4", ["--arch-mlp-bot"]),
        ("--arch-mlp-bot 13", ["--arch-mlp-bot", "13", "two"]),
        ("--arch-mlp-bot 13-4 --arch-mlp-bot 14-4", ["--arch-mlp-bot", "once"]),
        (
            "--arch-mlp-bot 13-8 --arch-sparse-feature-size 16",
            ["--arch-mlp-bot", "8", "--arch-sparse-feature-size", "16"],
        ),
        ("--arch-mlp-top 16-2", ["--arch-mlp-top"]),
        ("--test-freq 0", ["--test-freq"]),
        ("--max-ind-range -7", ["--max-ind-range"]),
        ("--save-predictions=maybe", ["--save-predictions"]),
        ("--inference-only --quantize-mlp-with-bit 7", ["--quantize-mlp-with-bit", "7", "8, 16 or 32"]),
        ("--inference-only --quantize-mlp-with-bit 4", ["--quantize-mlp-with-bit", "4", "8, 16 or 32"]),
        ("--inference-only --quantize-emb-with-bit 16", ["--quantize-emb-with-bit", "16", "4, 8 or 32"]),
        ("--quantize-emb-with-bit eight", ["--quantize-emb-with-bit", "eight"]),
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
        ("--load-model=", ["--load-model", "empty"]),
        ("--profile nowhere", ["criteo-kaggle"]),
        ("--profile nowhere.toml", ["nowhere.toml"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments, words):
    with pytest.raises(UserError) as refused:
        parse_command_line(arguments.split())
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "arguments", [["--run-dir", ""], ["--data", "\udcff"], ["--profile", "a\nb"], ["--policy", "a\nb"], ["a\nb"], [""]]
)
def test_odd_text_is_refused_in_one_line(arguments):
    with pytest.raises(UserError) as refused:
        parse_command_line(arguments)
    assert "\n" not in str(refused.value)


def test_a_suggestion_is_near_or_absent():
    with pytest.raises(UserError, match="did you mean --learning-rate"):
        parse_command_line(["--learning-rte=1"])
    with pytest.raises(UserError) as refused:
        parse_command_line(["--zzz=random"])
    assert "did you mean" not in str(refused.value)


def test_version_ends_with_success(capsys):
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip()


def test_options_are_read_without_torch():
    code = "import sys, cachedlrm.options.command_line; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_has_every_option_with_words_and_needs_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    offered = re.findall(r"^\W*--([a-z0-9-]+)", text, flags=re.MULTILINE)
    names = {name[:26] for name in [*OPTIONS, "help", "version"]}  # where a long name goes on in the next line
    assert set(offered) == names, "no more, such as --no-deterministic, and no fewer"
    assert max(map(len, text.splitlines())) <= 80
    assert "Example: python -m cachedlrm.train" in text
    assert "Passes over the data" in text


def test_a_profile_is_below_the_command_line(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        'description = "x"\n[cache]\ngpu-cache-ratio = 0.1\npolicy = "lru"\n[run]\nsave-predictions = true\n'
    )
    options = parse_command_line(["--profile", str(path), "--policy=lfu"])
    assert options.cache.gpu_cache_ratio == 0.1
    assert options.cache.policy == "lfu"
    assert options.run.save_predictions


@pytest.mark.parametrize("own", ["--gpu-cache-rows=7", "--gpu-cache-rows 7", "--gpu_cache_rows=7"])
def test_rows_on_the_command_line_override_a_ratio_in_a_profile(tmp_path, own):
    path = tmp_path / "p.toml"
    path.write_text("[cache]\ngpu-cache-ratio = 0.1\n")
    cache = parse_command_line(["--profile", str(path), *own.split()]).cache
    assert (cache.gpu_cache_ratio, cache.gpu_cache_rows) == (None, 7)


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
    ends_in_dim = sizes.map(lambda layers: (*layers, dim or layers[0]))
    strategy = st.builds(
        Options,
        model=every_field(
            ModelOptions,
            arch_sparse_feature_size=st.just(dim),
            arch_embedding_size=maybe(sizes),
            arch_mlp_bot=maybe(ends_in_dim),
            arch_mlp_top=maybe(sizes.map(lambda layers: (*layers, 1))),
            arch_interaction_op=st.sampled_from(["dot", "cat"]),
            arch_interaction_itself=st.booleans(),
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
            test_freq=maybe(positive_or_off),
            test_mini_batch_size=positive_or_off,
            print_freq=positive,
        ),
        data=every_field(DataOptions, data=words, test_data=maybe(words)),
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
            lr_num_warmup_steps=st.just(warmup),
            lr_decay_start_step=st.integers(warmup, 2**41),
            lr_num_decay_steps=count,
            mlperf_grad_accum_iter=st.just(1) if graphs else positive,
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
            resume=st.none(),  # takes its options from the run there
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
            device_memory=maybe(positive),
            device_reserved=maybe(positive),
            device_bandwidth=maybe(positive),
            device_flops=maybe(st.floats(1, 1e18)),
            link_bandwidth=maybe(positive),
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
