from __future__ import annotations

import pytest

from harness.study import zoo
from harness.study.trials import find_depth_mistake, find_program_mistake


@pytest.mark.parametrize("architecture", zoo.PROGRAMS)
def test_every_program_of_the_zoo_is_right(architecture):
    for program in zoo.PROGRAMS[architecture].values():
        assert find_program_mistake(architecture, program) is None


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


def test_settings_of_other_architectures_are_not_the_zoos_business():
    assert zoo.find_setting_mistake("resnet", "pack_size", 5) is None
    assert zoo.find_setting_mistake("torchvision/resnet18", "pack_size", 1) is None
    assert zoo.find_setting_mistake("torchvision/resnet18", "lr", 0.3) is None


def test_a_word_no_model_has_is_left_to_whoever_asks():
    assert zoo.explain_absence("torchvision/vgg16_bn", "aftr") == ""
