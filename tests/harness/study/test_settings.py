"""The reference of a grid: complete, up to date, and its examples are right."""

from __future__ import annotations

import re

import pytest

from harness.study.forms import FORMS, ONLY_WITH
from harness.study.grid import load_grid
from harness.study.settings import README, describe_settings, splice

GRID = """
defaults: {architecture: resnet, placement: [after, none], depth: 20}
seeds: 5
grid: [{threads: 2}, {compile: true}]
"""
SECTIONS = ("defaults", "margins", "analysis", "tuning")


def test_the_reference_in_grids_is_up_to_date():
    text = README.read_text(encoding="utf-8")
    assert text == splice(text), "python -m harness.study.settings rewrites grids/README.md"


def test_every_key_of_a_section_is_described_with_an_example():
    described = re.findall(r"^([a-z_\d]+) +[A-Z\d']", describe_settings(), re.MULTILINE)
    keys = [key for section in SECTIONS for key in FORMS[section].model_fields]
    assert described == ["name", "seeds", *keys]


@pytest.mark.parametrize(
    ("prefix", "key", "example"),
    [
        (prefix, key, field.examples[0])
        for section, prefix in (
            ("defaults", ""),
            ("margins", "margins."),
            ("analysis", "analysis."),
        )
        for key, field in FORMS[section].model_fields.items()
    ],
)
def test_an_example_is_accepted(tmp_path, prefix, key, example):
    path = tmp_path / "small.yaml"
    path.write_text(GRID, encoding="utf-8")
    said = {f"{prefix}{key}": example}
    if key in ONLY_WITH:
        said |= [ONLY_WITH[key]]
    if said.get("optimizer") == "adamw":
        said["lr"] = "0.001"
    assert load_grid(path, [f"{name}={value}" for name, value in said.items()]).trials


def test_the_examples_of_tuning_are_accepted_together(tmp_path):
    path = tmp_path / "small.yaml"
    lines = [f"  {key}: {field.examples[0]}" for key, field in FORMS["tuning"].model_fields.items()]
    path.write_text("\n".join([GRID, "tuning:", *lines]), encoding="utf-8")
    assert load_grid(path).tuning is not None


def test_the_reference_says_what_the_declarations_say():
    text = describe_settings()
    assert (
        "epochs           Passes over the training part.\n"
        "                 Allowed: whole number from 1 to 10,000. Default: 200.\n"
        "                 Example: epochs: [50, 200]\n"
    ) in text
    assert "Allowed: one of float32, bfloat16. Default: float32.\n" in text
    assert "below 1. Default: 0.999. Only with optimizer: adamw.\n" in text
    assert "resnet, depth 6n+2\n  before         conv norm act conv norm + act\n" in text
    assert "densenet, depth 6n+4 or 3n+4\n" in text
