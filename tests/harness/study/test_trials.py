"""A trial's name is its content, its randomness is its block's, and a grid is a product."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.study.records import Settings
from harness.study.trials import PROGRAMS, WORDS, Trial, derive_seed, expand

TRIAL = Trial(
    architecture="resnet",
    placement="before",
    program=PROGRAMS["resnet"]["before"],
    depth=20,
    seed=0,
)
TRIAL_ID = "deddb0941d767912"
"""Changes only with TRAINING_VERSION, or when a setting is added: rows on disk carry it."""


def changed(value: object) -> object:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case _:
            return f"{value}-changed"


def test_an_id_is_sixteen_hex_digits_and_the_same_for_ever():
    assert TRIAL.id == TRIAL_ID
    assert len(TRIAL.id) == 16
    assert int(TRIAL.id, 16) >= 0


def test_an_id_is_the_same_in_another_process_with_another_hash_seed():
    code = f"from harness.study.trials import Trial; print(({TRIAL!r}).id)"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == TRIAL_ID


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_changes_the_id(name):
    assert replace(TRIAL, **{name: changed(getattr(TRIAL, name))}).id != TRIAL.id


@given(st.permutations([field.name for field in fields(Settings)]))
def test_an_id_does_not_depend_on_the_order_of_the_settings(names):
    assert Trial(**{name: getattr(TRIAL, name) for name in names}).id == TRIAL.id


def test_a_training_version_of_its_own_gives_an_id_of_its_own():
    assert len({TRIAL.id_under(version) for version in range(10)}) == 10


def test_expand_is_the_product_with_the_seed_outermost_and_the_last_setting_fastest():
    product = {
        "architecture": ["plain", "resnet"],
        "depth": [8, 14],
        "placement": ["before", "none"],
    }
    found = [
        (trial.seed, trial.architecture, trial.depth, trial.placement)
        for trial in expand([product], [3, 1])
    ]
    assert found == list(itertools.product([3, 1], *product.values()))


def test_expand_runs_through_all_products_before_the_next_seed():
    one = {"architecture": ["mlp"], "placement": ["after"], "depth": [4]}
    other = {"architecture": ["vgg"], "placement": ["none"], "depth": [11]}
    found = [(trial.seed, trial.architecture) for trial in expand([one, other], [0, 1])]
    assert found == [(0, "mlp"), (0, "vgg"), (1, "mlp"), (1, "vgg")]


def test_expand_gives_each_trial_the_program_of_its_placement():
    product = {"architecture": ["resnet"], "placement": ["before", "mine"], "depth": [8]}
    programs = {"resnet": {**PROGRAMS["resnet"], "mine": "conv act conv norm +"}}
    before, mine = expand([product], [0], programs=programs)
    assert before.program == "conv norm act conv norm + act"
    assert mine.program == "conv act conv norm +"


def test_a_network_without_norms_is_one_trial_under_every_norm():
    settings = {"architecture": ["plain"], "depth": [8]}
    product = settings | {"norm": ["layer", "batch"], "placement": ["before", "none"]}
    other = settings | {"norm": ["group"], "norm_groups": [4], "placement": ["none", "after"]}
    found = [(trial.norm, trial.placement) for trial in expand([product, other], [0])]
    assert found == [
        ("layer", "before"), ("batch", "none"), ("batch", "before"), ("group", "after"),
    ]  # fmt: skip
    final = expand([product | {"final_norm": [True]}], [0])
    assert len([trial for trial in final if trial.placement == "none"]) == 2


def test_placements_and_recipes_share_a_block_seed():
    after = replace(
        TRIAL, placement="after", program=PROGRAMS["resnet"]["after"], lr=0.3, weight_decay=0.0
    )
    assert after.block_seed == TRIAL.block_seed


@pytest.mark.parametrize("name", ["dataset", "architecture", "depth", "seed", "stage"])
def test_nothing_else_shares_a_block_seed(name):
    other = replace(TRIAL, **{name: changed(getattr(TRIAL, name))})
    assert other.block_seed != TRIAL.block_seed


def test_the_streams_of_a_seed_differ_and_are_repeated():
    names = [("init",), ("order",), ("augment",), ("init", "0"), ("init", "1")]
    streams = [derive_seed(seed, *name) for seed in range(100) for name in names]
    assert len(set(streams)) == len(streams)
    assert streams == [derive_seed(seed, *name) for seed in range(100) for name in names]
    assert all(0 <= stream < 2**63 for stream in streams)


@pytest.mark.parametrize(
    ("seed", "pack_size", "pack"),
    [(0, 1, (0,)), (7, 1, (7,)), (7, 4, (4, 5, 6, 7)), (8, 4, (8, 9, 10, 11))],
)
def test_a_pack_is_aligned_so_that_more_seeds_never_change_it(seed, pack_size, pack):
    assert replace(TRIAL, seed=seed, pack_size=pack_size).pack == pack


def test_every_word_of_the_vocabulary_names_a_setting_and_holds_its_default():
    defaults = {field.name: field.default for field in fields(Settings)}
    assert all(defaults[setting] in words for setting, words in WORDS.items())
