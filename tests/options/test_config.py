"""The options themselves: their names, their help, and which may change on ``--resume``."""

import ast
import dataclasses
import inspect

from cachedlrm.options import config
from cachedlrm.options.config import Options
from cachedlrm.options.optimisation import OptimisationOptions
from cachedlrm.options.types import may_change
from support.options import OPTIONS


def test_options_are_spelled_as_the_contract_says():
    fields = [
        option.name.replace("_", "-")
        for group in dataclasses.fields(Options)
        for option in dataclasses.fields(group.default_factory)
    ]
    assert fields == OPTIONS


def test_every_option_has_a_docstring_which_becomes_its_help():
    groups = [ast.parse(inspect.getsource(group.type)).body[0] for group in dataclasses.fields(Options)]
    documented = [
        ast.unparse(field.target).replace("_", "-")
        for group in groups
        for field, text in zip(group.body, group.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and ast.literal_eval(text.value).strip()
    ]
    assert documented == OPTIONS


def test_no_two_groups_have_an_option_of_one_name():
    assert len(set(OPTIONS)) == len(OPTIONS)


def test_what_may_change_on_resume():
    """An option that decides a number of the run and could be changed would break the promise of exactness."""
    kept = {
        group.name: [option.name for option in dataclasses.fields(group.type) if not may_change(option)]
        for group in dataclasses.fields(Options)
    }
    optimisation = [field.name for field in dataclasses.fields(OptimisationOptions)]
    assert kept == {
        "model": [field.name for field in dataclasses.fields(config.ModelOptions)],
        "batches": ["mini_batch_size", "micro_batch_size", "num_batches", "numpy_rand_seed", "max_ind_range"],
        "evaluation": ["monitor", "keep_best"],
        "data": ["data", "shuffle"],
        "reference": [field.name for field in dataclasses.fields(config.ReferenceOptions)],
        "optimisation": [name for name in optimisation if name != "cuda_graphs"],
        "cache": [],
        "store": ["init"],
        "run": ["start_from"],
        "hardware": [],
        "inference": ["load_model"],
    }


def test_concat_puts_two_vectors_side_by_side():
    model = config.ModelOptions(qr_flag=True, qr_operation="concat")
    assert model.vectors_per_feature == 2
    assert dataclasses.replace(model, qr_flag=False).vectors_per_feature == 1
