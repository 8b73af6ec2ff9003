"""What an architecture declares is right, and what a grid asks of it beyond that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.study.architectures import (
    ARCHITECTURES,
    RESIDUAL,
    explain_absence,
    find_depth_mistake,
    find_program_mistake,
    find_setting_mistake,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_declared_program_is_a_block_of_its_architecture(architecture):
    for program in ARCHITECTURES[architecture].programs.values():
        assert find_program_mistake(architecture, program) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_shown_can_be_built_and_skips_are_those_of_the_kind(architecture):
    declared = ARCHITECTURES[architecture]
    assert find_depth_mistake(architecture, declared.shown_depth) is None
    has_additions = {"+" in program for program in declared.programs.values()}
    assert has_additions == {declared.kind == RESIDUAL}


@pytest.mark.parametrize(
    ("architecture", "program", "mistake"),
    [
        (
            "resnet18",
            "act norm, conv +",
            "'conv' is not an operation of 'norm + act': norm, act, +",
        ),
        ("resnet18", "act norm, act norm", "'act norm' adds 0 times, 'norm + act' adds once"),
        ("resnet18", "norm, norm + act", "'norm' has no 'act' and is linear"),
        (
            "resnet18",
            "act, norm + act",
            "norm stands in one part only; it stays in both, or leaves both",
        ),
        (
            "vgg16_bn",
            "act norm, act norm +",
            "torchvision/vgg16_bn takes one part, for 'norm act', and this is two",
        ),
    ],
)
def test_a_wrong_program_is_told_why(architecture, program, mistake):
    assert find_program_mistake(f"torchvision/{architecture}", program) == mistake


def test_a_model_has_one_depth():
    assert find_depth_mistake("torchvision/resnet50", 50) is None
    assert find_depth_mistake("torchvision/resnet50", 18) == "50"


def test_settings_of_other_architectures_are_let_be():
    assert find_setting_mistake("resnet", "pack_size", 5) is None
    assert find_setting_mistake("torchvision/resnet18", "pack_size", 1) is None
    assert find_setting_mistake("torchvision/resnet18", "lr", 0.3) is None


def test_a_word_no_model_has_is_left_to_whoever_asks():
    assert explain_absence("torchvision/vgg16_bn", "aftr") == ""


@pytest.mark.parametrize(
    ("architecture", "depth", "mistake"),
    [
        ("mlp", 0, "1 or more"),
        ("mlp", 1, None),
        ("vgg", 16, None),
        ("vgg", 17, "11, 13, 16 or 19"),
        ("plain", 8, None),
        ("plain", 2, "6n+2: 8"),
        ("resnet", 20, None),
        ("resnet", 21, "6n+2: 20 or 26"),
        ("preresnet", -3, "6n+2: 8"),
        ("densenet", 100, None),
        ("densenet", 43, "6n+4: 40 or 46"),
        ("densenet", 4, "6n+4: 10"),
    ],
)
def test_a_depth_that_an_architecture_lacks_names_its_neighbours(architecture, depth, mistake):
    assert find_depth_mistake(architecture, depth) == mistake


def test_a_densenet_without_bottlenecks_has_every_third_depth():
    assert find_depth_mistake("densenet", 43, bottleneck=False) is None
    assert find_depth_mistake("densenet", 41, bottleneck=False) == "3n+4: 40 or 43"


@given(st.sampled_from(["plain", "resnet", "preresnet"]), st.integers(-50, 2_000))
def test_a_residual_depth_is_right_where_three_stages_of_pairs_fit(architecture, depth):
    fits = depth in {2 + 3 * 2 * blocks for blocks in range(1, 400)}
    assert (find_depth_mistake(architecture, depth) is None) == fits


@pytest.mark.parametrize(
    ("architecture", "program", "mistake"),
    [
        ("mlp", "linear relu", "'relu' is not an operation: linear, norm, act"),
        ("resnet", "conv cat", "'cat' is not an operation: conv, +, norm, act"),
        (
            "plain",
            "",
            "without norm and act a block of plain is 'conv', this one is ''",
        ),
        (
            "resnet",
            "conv + norm conv act",
            "without norm and act a block of resnet is 'conv conv +', this one is 'conv + conv'",
        ),
        ("densenet", "norm act conv cat norm", "a block of densenet ends in 'cat'"),
        ("vgg", "conv norm", "a block without 'act' is linear"),
    ],
)
def test_a_program_that_is_no_block_says_why(architecture, program, mistake):
    assert find_program_mistake(architecture, program) == mistake
