"""Command lines of torchrec_dlrm/dlrm_main.py in our options, and what of them is refused by name."""

import json
import re

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options import torchrec
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.config import Options
from cachedlrm.train import main
from support.options import OPTIONS
from support.runs import one_line, report
from support.samples import write_ids, write_npy

PATHS = {"one_hot": "--in_memory_binary_criteo_path=D", "multi_hot": "--synthetic_multi_hot_criteo_path=D"}


def translate(arguments: list[str]) -> list[str]:
    """The whole command line: what it leaves open, and what it gives."""
    translation = torchrec.translate(arguments)
    return [*translation.defaults, *translation.arguments]


def options(text: str) -> dict[str, str]:
    """Translated options that have values."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in translate(text.split()) if "=" in argument)


def test_other_command_lines_stay_as_they_are():
    arguments = ["--data", "zipf", "--learning_rate", "0.5", "--batch_size=3"]
    assert translate(arguments) == arguments


def test_defaults_are_those_there():
    assert options("--data torchrec") == {
        "data": "zipf", "num-batches": "10", "test-freq": "epoch", "mini-batch-size": "32", "learning-rate": "15.0",
        "arch-sparse-feature-size": "64", "arch-mlp-bot": "13-512-256-64", "arch-mlp-top": "512-512-256-1",
        "arch-embedding-size": "-".join(["100000"] * 26), "arch-interaction-op": "dot", "optimizer": "sgd",
    }  # fmt: skip


def test_mlperfs_command_line():
    sizes = "3,2,1,2,6,1,1,1,1,7,3,8,1,6,9,5,1,1,1,12,100,27,10,3,1,1"
    found = options(
        "--data=torchrec --embedding_dim 128 --dense_arch_layer_sizes 512,256,128 --over_arch_layer_sizes "
        "1024,1024,512,256,1 --synthetic_multi_hot_criteo_path D --num_embeddings_per_feature 40000000,39060,17295 "
        "--validation_freq_within_epoch 3201 --epochs 1 --pin_memory --mmap_mode --batch_size 8192 "
        "--interaction_type=dcn --dcn_num_layers=3 --dcn_low_rank_dim=512 --adagrad --learning_rate 0.005 "
        "--evaluate_on_training_end --print_progress --lr_warmup_steps 10 --lr_decay_start 20 --lr_decay_steps 30 "
        "--validation_auroc 0.80275 --test_batch_size 16384 --seed 7 --limit_train_batches 99 --eps=1e-4 "
        "--gpu-cache-ratio=0.05"
    )
    assert found == {
        "arch-sparse-feature-size": "128", "arch-mlp-bot": "13-512-256-128", "arch-mlp-top": "1024-1024-512-256-1",
        "data": "npy:D:test=day_23", "arch-embedding-size": "40000000-39060-17295", "test-freq": "3201",
        "nepochs": "1", "mini-batch-size": "8192", "arch-interaction-op": "dcn", "dcn-num-layers": "3",
        "dcn-low-rank-dim": "512", "optimizer": "adagrad", "learning-rate": "0.005", "eps": "1e-4",
        "lr-num-warmup-steps": "10", "lr-decay-start-step": "20", "lr-num-decay-steps": "30",
        "test-mini-batch-size": "16384", "numpy-rand-seed": "7", "num-batches": "99", "stop-at-auc": "0.80275",
        "gpu-cache-ratio": "0.05",
    }  # fmt: skip
    assert options(f"--data torchrec --multi_hot_sizes={sizes}")["data"] == f"zipf:hot={sizes.replace(',', '-')}"


def test_options_of_an_interaction_are_given_with_it_alone():
    assert "dcn-num-layers" not in options("--data torchrec --dcn_num_layers 4")
    found = options("--data torchrec --interaction_type projection --interaction_branch2_layer_sizes 24,32")
    assert found["interaction-branch1-layer-sizes"] == "2048-2048"
    assert found["interaction-branch2-layer-sizes"] == "24-32"
    assert "eps" not in options("--data torchrec --eps 1")  # sgd has none
    assert options("--data torchrec --adagrad")["eps"] == "1e-8"


def test_our_own_interaction_and_optimizer_decide_too():
    found = options("--data torchrec --optimizer adagrad --eps 1e-4")
    assert (found["eps"], options("--data torchrec --optimizer=adagrad")["eps"]) == ("1e-4", "1e-8")
    assert options("--data torchrec --optimizer=adam --eps=1e-4")["eps"] == "1e-4"
    assert "eps" not in options("--data torchrec --optimizer adam")
    found = translate(
        ["--data=torchrec", "--arch-interaction-op", "dcn", "--dcn_low_rank_dim=4", "--dcn-num-layers", "5"]
    )
    assert ("--dcn-low-rank-dim=4" in found, found[-2:]) == (True, ["--dcn-num-layers", "5"])
    assert not any(argument.startswith("--dcn-num-layers=") for argument in found)
    sizes = ["--interaction-branch1-layer-sizes", "24-32"]
    for interaction in ("--interaction_type=projection", "--arch-interaction-op=projection"):
        found = translate(["--data=torchrec", interaction, *sizes])
        assert found[-2:] == sizes
        assert "--interaction-branch2-layer-sizes=2048-2048" in found


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--batch_size 64", "--mini-batch-size 16"),
        ("--dcn_num_layers=4", "--dcn-num-layers=5"),
        ("--adagrad", "--optimizer adam"),
        ("--learning_rate=1", "--learning-rate=1"),
        ("--num_embeddings 9", "--arch-embedding-size=9-9"),
        ("--in_memory_binary_criteo_path=D", "--data npy:D"),
    ],
)
def test_one_thing_given_twice_is_refused_with_both_names(theirs, ours):
    names = [re.split("[ =]", words)[0] for words in (theirs, ours)]
    with pytest.raises(UserError, match=f"{names[0]} and {names[1]} decide the same thing; leave out one of them"):
        translate(["--data=torchrec", *theirs.split(), *ours.split()])


def test_data_of_ours_have_no_ten_batches():
    found = translate(["--data", "torchrec", "--data", "npy:D:test=day_23", "--test-data", "npy:E"])
    assert not any(argument.startswith(("--num-batches", "--test-freq")) for argument in found)
    assert [argument for argument in found if "data" in argument] == ["--data", "--test-data"]
    assert "--test-freq=epoch" in translate(["--data=torchrec", "--data=npy:D", "--evaluate_on_epoch_end"])


def test_what_is_held_out():
    assert options(f"--data torchrec {PATHS['one_hot']}")["data"] == "npy:D:fold=rows:test=day_23"
    kaggle = options(f"--data torchrec {PATHS['multi_hot']} --dataset_name=criteo_kaggle")
    assert (kaggle["data"], kaggle["test-data"]) == ("npy:D:only=train", "npy:D:only=train")


def test_flags_and_our_own_options():
    flags = ["--allow_tf32", "--shuffle_training_set", "--pin_memory"]
    found = translate([*flags, "--data", "torchrec", "--mini-batch-size", "64"])
    assert {"--tf32", "--shuffle"} < set(found)
    assert found[-2:] == ["--mini-batch-size", "64"]
    assert not any(argument.startswith("--mini-batch-size=") for argument in found)


@pytest.mark.parametrize("name", sorted(torchrec._REFUSED))
def test_what_is_not_carried_over_is_refused_by_name(name):
    words = f"--{name} of torchrec_dlrm's dlrm_main.py is not carried over: {torchrec._REFUSED[name]}"
    for form in (f"--{name}", f"--{name}=3"):
        with pytest.raises(UserError, match=re.escape(words)):
            translate(["--data", "torchrec", form])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--interaction_type cat", "--interaction_type cat is none of original, dcn and projection"),
        ("--dataset_name movielens", "--dataset_name movielens is neither"),
        ("{one_hot} {multi_hot}", "exclude each other"),
        ("{one_hot} --multi_hot_sizes 1,2", "all in memory .* Write the bags once with .*materialize_synthetic"),
        ("{multi_hot} --multi_hot_sizes 1,2", "criteo_path has bags of its own; drop the sizes"),
        ("--evaluate_on_epoch_end --validation_freq_within_epoch=3", "in equal steps, .* leave out one of them"),
        ("--validation_freq_within_epoch epoch", "_epoch epoch is no number of steps; .* --evaluate_on_epoch_end"),
        ("--batch_size", "--batch_size needs a value"),
        ("--batch_size --adagrad", "--batch_size needs a value"),
        ("--mmap_mode=True", "--mmap_mode takes no value; leave out =True"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(UserError, match=words):
        translate(["--data=torchrec", *text.format(**PATHS).split()])


def test_every_option_there_becomes_one_that_is_here():
    ours = {carried.ours for carried in torchrec._VALUES.values()}
    ours |= {*torchrec._DECIDE, *options(f"--data torchrec {PATHS['one_hot']} --dataset_name criteo_kaggle")}
    assert ours <= set(OPTIONS)
    assert not set(torchrec._REFUSED) & {*torchrec._VALUES, *torchrec._FLAGS, *torchrec._OTHERS}
    assert Options().data.data != "torchrec"


PROFILE = """
[model]
arch-interaction-op = "dcn"
arch-sparse-feature-size = 4
arch-mlp-bot = "13-9-4"
[batches]
mini-batch-size = 7
[data]
data = "zipf:samples=90"
[optimisation]
optimizer = "adagrad"
"""


def test_a_profile_lies_between_what_is_given_and_what_is_meant(tmp_path):
    (tmp_path / "p.toml").write_text(PROFILE)
    line = ["--data=torchrec", "--profile", str(tmp_path / "p.toml")]
    found = parse_command_line(line)
    assert (found.data.data, found.batches.num_batches, found.batches.test_freq) == ("zipf:samples=90", 0, None)
    assert (found.model.arch_interaction_op, found.model.arch_mlp_bot) == ("dcn", (13, 9, 4))
    assert (found.model.dcn_low_rank_dim, found.model.arch_mlp_top) == (512, (512, 512, 256, 1))  # what is meant there
    assert (found.optimisation.optimizer, found.optimisation.eps) == ("adagrad", 1e-8)
    assert (found.batches.mini_batch_size, found.optimisation.learning_rate) == (7, 15.0)
    found = parse_command_line([*line, "--dcn_low_rank_dim=5", "--batch_size", "3", "--eps=1e-4", "--nepochs=2"])
    assert (found.model.dcn_low_rank_dim, found.batches.mini_batch_size) == (5, 3)
    assert (found.optimisation.eps, found.batches.nepochs) == (1e-4, 2)
    sizes = ["--interaction_type=original", "--embedding_dim=8", "--dense_arch_layer_sizes=8", PATHS["one_hot"]]
    found = parse_command_line([*line, *sizes])
    assert (found.model.arch_interaction_op, found.model.dcn_num_layers) == ("dot", None)
    assert (found.data.data, found.batches.test_freq) == ("npy:D:fold=rows:test=day_23", "epoch")
    found = parse_command_line([*line, "--dataset_name=criteo_1t"])  # of no file
    assert found.data.data == "zipf:samples=90"
    assert parse_command_line([*line, "--multi_hot_sizes=2,1"]).data.data == "zipf:hot=2-1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--embedding_dim=8 --dense_arch_layer_sizes 9,4", "--arch-mlp-bot (--dense_arch_layer_sizes) ends in 4 but "
         "--embedding_dim is 8; end it in 8"),
        ("--dense_arch_layer_sizes 9,4", "ends in 4 but --embedding_dim is 64"),
        ("--batch_size 0", "--batch_size"),
        ("--dcn_low_rank_dim=x --interaction_type dcn", "--dcn_low_rank_dim"),
        ("--num_embeddings_per_feature 5,6 --multi_hot_sizes=1,2,3", "set the tables by --num_embeddings_per_feature"),
        ("--num_embeddings_per_feature=5,6 --multi_hot_sizes=1,2,3", "--data zipf:hot=1-2-3 (--multi_hot_sizes):"),
        ("--num_embeddings=5 --multi_hot_sizes=1,2", "or set the tables by --num_embeddings\n"),
        ("--arch-embedding-size=5-6 --multi_hot_sizes=1,2,3", "or set the tables by --arch-embedding-size"),
        ("--adagrad --learning-rate=-1", "--learning-rate"),
        ("--adagrad --learning_rate=-1", "--learning_rate"),
        ("--row-state-dtype=bf16", "--optimizer sgd keeps no state"),
        ("--batch_size 64 --mini-batch-size 16", "--batch_size and --mini-batch-size decide the same thing"),
    ],
)  # fmt: skip
def test_mistakes_found_later_have_the_names_that_were_typed(capsys, tmp_path, line, words):
    message = one_line(capsys, main(["--data=torchrec", *line.split(), f"--run-dir={tmp_path / 'run'}", "--ui=off"]))
    assert words in message, message
    assert not (tmp_path / "run").exists()


def test_a_value_that_a_profile_gives_keeps_the_name_it_has_there(tmp_path):
    (tmp_path / "p.toml").write_text(PROFILE)
    line = ["--data=torchrec", f"--profile={tmp_path / 'p.toml'}", "--embedding_dim=8"]
    message = "--arch-mlp-bot ends in 4 but --arch-sparse-feature-size is 8; --num-batches=4, --dcn-num-layers"
    told = "--arch-mlp-bot ends in 4 but --embedding_dim is 8; --num-batches=4, --dcn_num_layers"
    assert torchrec.in_its_words(line, message) == told
    assert torchrec.in_its_words(["--data=zipf"], message) == message


def test_what_decides_a_value_follows_it():
    line = ["--data=torchrec", "--adagrad", "--dense_arch_layer_sizes=9,4"]
    for ours, told in (
        ("--optimizer adagrad keeps", "--optimizer adagrad (--adagrad) keeps"),
        ("--optimizer adagrad-like", "--optimizer (--adagrad) adagrad-like"),
        ("--arch-mlp-bot 13-9-4; --arch-mlp-bot", "--arch-mlp-bot 13-9-4 (--dense_arch_layer_sizes); --arch-mlp-bot "
         "(--dense_arch_layer_sizes)"),
    ):  # fmt: skip
        assert torchrec.in_its_words(line, ours) == told


def test_advice_after_a_run_has_the_names_that_were_typed(tmp_path, capsys):
    line = (
        "--data=torchrec --data=zipf:samples=300 --num_embeddings=9 --embedding_dim=4 --dense_arch_layer_sizes=4 "
        f"--over_arch_layer_sizes=4,1 --batch_size=20 --learning_rate=900 --run-dir={tmp_path / 'run'} --ui=plain"
    )
    assert main([*line.split(), "--test-freq=5"]) == 0
    told = "Worse than predicting the mean: held-out logloss"
    for text in (capsys.readouterr().out, (tmp_path / "run" / "report.md").read_text()):
        words = next(one for one in text.splitlines() if told in one)
        assert "--learning_rate (900.0)" in words, words
        assert not re.search("--(learning-rate|nepochs|lr-num|arch)", words), words


@pytest.mark.parametrize("path", PATHS)
def test_a_command_line_trains(tmp_path, path):
    rng, tables = np.random.default_rng(1), 5
    for day, samples in (("day_0", 60), ("day_1", 40), ("day_23", 30)):
        bags = [[rng.integers(0, 30, 1 + (table if path == "multi_hot" else 0)) for table in range(tables)]] * samples
        write_ids(tmp_path / "data", bags, day, multi_hot=path == "multi_hot", num_dense=13)
        if path == "one_hot":
            np.save(tmp_path / "data" / f"{day}_sparse.npy", np.array(bags).reshape(samples, tables))
            for part in ("values", "offsets"):
                (tmp_path / "data" / f"{day}_sparse_{part}.npy").unlink()
    words = (
        "--data torchrec --embedding_dim 8 --dense_arch_layer_sizes 16,8 --over_arch_layer_sizes 16,1 --batch_size 20 "
        f"--num_embeddings_per_feature 30,30,30,{'30,30' if path == 'multi_hot' else '7,9'} --learning_rate 0.1 "
        "--adagrad --interaction_type dcn --dcn_low_rank_dim 4 --gpu-cache-rows 130 --epochs 2"
    ).split()
    place = f"{PATHS[path][:-1]}{tmp_path / 'data'}"
    assert main([*words, place, f"--run-dir={tmp_path / 'run'}", "--ui=off", "--save-predictions"]) == 0
    told = report(tmp_path / "run")
    assert (told["steps"], told["samples"]) == (10, 200)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "auc" in line] == [5, 10]  # the end of each epoch, as there
    assert len(np.load(tmp_path / "run" / "predictions.npy")) == 30


def test_kaggles_test_files_are_not_read(tmp_path):
    for name, labels in (("train", np.arange(60) % 2), ("test", np.full(40, -1))):
        sparse = np.full((60 if name == "train" else 40, 3), 5, np.int32)
        write_npy(tmp_path / "data", name, len(labels), dense=np.ones((len(labels), 13), np.float32), sparse=sparse,
                  labels=labels.astype(np.int32)[:, None])  # fmt: skip
    words = (
        "--data torchrec --dataset_name criteo_kaggle --embedding_dim 8 --dense_arch_layer_sizes 16,8 "
        "--over_arch_layer_sizes 16,1 --batch_size 20 --num_embeddings_per_feature 9,9,9 --learning_rate 0.1 "
        f"{PATHS['one_hot'][:-1]}{tmp_path / 'data'}"
    )
    assert main([*words.split(), f"--run-dir={tmp_path / 'run'}", "--ui=off", "--save-predictions"]) == 0
    assert report(tmp_path / "run")["samples"] == 60
    assert len(np.load(tmp_path / "run" / "predictions.npy")) == 60
