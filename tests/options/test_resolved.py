"""Options made definite: what ``config.toml`` holds, and what it may not lack."""

import dataclasses
from typing import get_args

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options.config import Options
from cachedlrm.options.profiles import load_resolved, to_toml
from cachedlrm.options.resolved import Resolved
from support.options import resolved
from support.runs import SMALL

DEFINITE = [
    (group.name, option.name)
    for group in dataclasses.fields(Resolved)
    for option in dataclasses.fields(group.type)
    if option.default is dataclasses.MISSING
]


def test_options_keep_their_places():
    """Files and fingerprints list them in one order."""
    for group, definite in zip(dataclasses.fields(Options), dataclasses.fields(Resolved), strict=True):
        names = [option.name for option in dataclasses.fields(group.type)]
        assert (definite.name, [option.name for option in dataclasses.fields(definite.type)]) == (group.name, names)


def test_what_is_definite_has_no_default_and_is_never_none():
    options = resolved(*SMALL)
    assert len(DEFINITE) == 14
    for group, name in DEFINITE:
        assert getattr(getattr(options, group), name) is not None
        assert type(None) not in get_args(Resolved.__annotations__[group].__annotations__[name])
    with pytest.raises(TypeError, match="optimizer"):
        type(options.optimisation)(learning_rate=0.1)


def test_config_toml_gives_the_options_that_wrote_it(tmp_path):
    options = resolved(*SMALL, "--gpu-budget=auto", "--device-memory=1GiB", "--device=cpu")
    (tmp_path / "config.toml").write_text(to_toml(options))
    again = load_resolved(tmp_path / "config.toml")
    assert isinstance(again, Resolved)
    assert again == options


@pytest.mark.parametrize(("group", "name"), DEFINITE)
def test_config_toml_lacks_none_of_them(tmp_path, group, name):
    key, path = name.replace("_", "-"), tmp_path / "config.toml"
    lines = to_toml(resolved(*SMALL)).splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(f"{key} = ")))
    with pytest.raises(UserError, match=rf"config\.toml: \[{group}\] lacks {key}; put back the line"):
        load_resolved(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('device = "cpu"', 'device = "auto"', "Must be one of cpu, cuda"),
        ("[cache]", '[cache]\ngpu-budget = "auto"', '"auto" is not a size'),
    ],
)
def test_config_toml_is_definite(tmp_path, old, new, words):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(resolved(*SMALL, "--device=cpu")).replace(old, new))
    with pytest.raises(UserError, match=words):
        load_resolved(path)
