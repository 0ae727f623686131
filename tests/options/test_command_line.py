"""The command line of a run: options and profiles, spelled as the contract says, and checked one by one."""

import re
import subprocess
import sys

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.base.units import LARGEST
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.config import Options
from cachedlrm.options.profiles import to_toml
from support.options import OPTIONS


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
        ("--arch-mlp-top 16-2", ["--arch-mlp-top"]),
        ("--test-freq 0", ["--test-freq"]),
        ("--max-ind-range -7", ["--max-ind-range"]),
        ("--save-predictions=maybe", ["--save-predictions"]),
        ("--inference-only --quantize-mlp-with-bit 7", ["--quantize-mlp-with-bit", "7", "8, 16 or 32"]),
        ("--inference-only --quantize-mlp-with-bit 4", ["--quantize-mlp-with-bit", "4", "8, 16 or 32"]),
        ("--inference-only --quantize-emb-with-bit 16", ["--quantize-emb-with-bit", "16", "4, 8 or 32"]),
        ("--quantize-emb-with-bit eight", ["--quantize-emb-with-bit", "eight"]),
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
    assert "default: None" not in " ".join(text.split())


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
    ("option", "why"),
    [("--use-gpu", "say --device cuda"), ("--num-workers=4", "prefetch"), ("--data_set=kaggle", "prepare")],
)
def test_options_of_the_reference_that_are_not_carried_over_say_what_to_do(option, why):
    with pytest.raises(
        UserError, match=f"{option.split('=')[0]} of facebookresearch/dlrm is not carried over: .*{why}"
    ):
        parse_command_line([option])


def started(tmp_path, *arguments):
    """The directory of a run with these options, as far as the command line looks at it."""
    (tmp_path / "config.toml").write_text(to_toml(parse_command_line(arguments)))
    return ["--resume", str(tmp_path)]


def test_resume_takes_the_options_of_the_run_and_new_ones_that_change_no_number(tmp_path):
    resume = started(tmp_path, "--optimizer=adam", "--gpu-cache-ratio=0.5", "--policy=lru", "--nepochs=2")
    options = parse_command_line([*resume, "--policy=lfu", "--gpu-budget=1GiB", "--nepochs=3"])
    assert (options.optimisation.optimizer, options.batches.nepochs, options.cache.policy) == ("adam", 3, "lfu")
    assert (options.cache.gpu_cache_ratio, options.cache.gpu_budget) == (None, 1 << 30)


def test_resume_refuses_what_decides_numbers(tmp_path):
    resume = started(tmp_path, "--optimizer=adam", "--arch-mlp-bot=4-8")
    assert parse_command_line([*resume, "--optimizer=adam"]).optimisation.optimizer == "adam"
    for changed, before in (
        ("--optimizer sgd", "--optimizer adam"),
        ("--arch-mlp-bot 4-16-8", "--arch-mlp-bot 4-8"),
        ("--init counter", "no --init"),
    ):
        with pytest.raises(UserError, match=f"^{changed}: the run in .* was started with {before}; drop the option"):
            parse_command_line([*resume, *changed.split()])
