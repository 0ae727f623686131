"""Options: spelled as the contract says, checked one by one, and the same from a file."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.config import Options, load_options, parse_command_line, to_toml
from cachedlrm.errors import UserError

OPTIONS = """
arch-sparse-feature-size arch-embedding-size arch-mlp-bot arch-mlp-top arch-interaction-op
arch-interaction-itself loss-function mini-batch-size num-batches nepochs numpy-rand-seed max-ind-range
test-freq test-mini-batch-size print-freq data test-data optimizer learning-rate gpu-cache-ratio
gpu-cache-rows gpu-budget policy lookahead prefetch-depth store host-budget init device steps run-dir ui
save-predictions threads deterministic profile
""".split()  # noqa: SIM905 - words without quotes are easier to compare with the contract


def test_options_are_spelled_as_the_contract_says():
    fields = [
        option.name.replace("_", "-")
        for group in dataclasses.fields(Options)
        for option in dataclasses.fields(group.default_factory)
    ]
    assert fields == OPTIONS


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
    ("text", "size"), [("2GiB", 2 << 30), ("1GB", 10**9), ("512 MiB", 512 << 20), ("1000", 1000), ("3kb", 3000)]
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
        ("--policy random", ["--policy", "lrfu"]),
        ("--store lmdb", ["--store", "host"]),
        ("--optimizer lion", ["rwsadagrad"]),
        ("--gpu-cache-ratio 0", ["--gpu-cache-ratio"]),
        ("--gpu-cache-ratio 1.5", ["--gpu-cache-ratio"]),
        ("--gpu-cache-ratio nan", ["--gpu-cache-ratio"]),
        ("--gpu-cache-rows 0", ["--gpu-cache-rows"]),
        ("--gpu-cache-ratio 0.1 --gpu-cache-rows 5", ["--gpu-cache-ratio", "--gpu-cache-rows"]),
        ("--gpu-budget lots", ["--gpu-budget", "2GiB"]),
        ("--gpu-budget -1GiB", ["--gpu-budget"]),
        ("--gpu-budget 0", ["--gpu-budget"]),
        ("--learning-rate nan", ["--learning-rate"]),
        ("--learning-rate inf", ["--learning-rate"]),
        ("--learning-rate -0.1", ["--learning-rate"]),
        ("--arch-mlp-bot 13-x", ["--arch-mlp-bot"]),
        ("--arch-mlp-bot 13-0-4", ["--arch-mlp-bot"]),
        ("--arch-mlp-bot 13", ["--arch-mlp-bot", "two"]),
        ("--arch-mlp-bot 13-8 --arch-sparse-feature-size 16", ["8", "16"]),
        ("--arch-mlp-top 16-2", ["--arch-mlp-top"]),
        ("--test-freq 0", ["--test-freq"]),
        ("--max-ind-range -7", ["--max-ind-range"]),
        ("--save-predictions=maybe", ["--save-predictions"]),
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


def test_help_has_every_option_with_words_and_needs_no_terminal(capsys):
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in OPTIONS:
        assert f"--{option}" in text
    assert max(map(len, text.splitlines())) <= 120
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cache]\npolicy = 'random'\n", ["--policy"]),
        ("[cache]\npolicys = 'lru'\n", ["[cache]", "policys", "policy"]),
        ("[cash]\n", ["[cash]", "cache"]),
        ("[run]\nprofile = 'x'\n", ["profile"]),
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


sizes = st.lists(st.integers(1, 10**9), min_size=2, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    arch_mlp_bot=sizes.map(tuple),
    arch_embedding_size=st.none() | sizes.map(tuple),
    learning_rate=st.none() | st.floats(0, 10),
    gpu_budget=st.none() | st.integers(1, 10**13),
    steps=st.none() | st.integers(0, 10**9),
    run_dir=st.none() | st.sampled_from([Path("a b"), Path("/tmp/ü")]),
    save_predictions=st.booleans(),
)
def test_config_toml_round_trips(tmp_path_factory, arch_mlp_bot, arch_embedding_size, learning_rate, gpu_budget, steps,
                                 run_dir, save_predictions):  # fmt: skip
    base, replace = Options(), dataclasses.replace
    options = Options(
        model=replace(base.model, arch_mlp_bot=arch_mlp_bot, arch_embedding_size=arch_embedding_size),
        optimisation=replace(base.optimisation, learning_rate=learning_rate),
        cache=replace(base.cache, gpu_budget=gpu_budget),
        run=replace(base.run, steps=steps, run_dir=run_dir, save_predictions=save_predictions),
    )
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(options), encoding="utf-8")
    assert load_options(path) == options


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("profiles/*/*.toml")), ids=lambda path: path.stem
)
def test_every_packaged_profile_loads_by_name(path):
    options = parse_command_line(["--profile", path.stem])
    assert options.model.arch_embedding_size is not None
