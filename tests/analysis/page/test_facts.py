from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.judgement.studies import name_dataset
from analysis.page.facts import describe_facts
from tests.analysis.conftest import always
from tests.analysis.judgement.test_studies import write


def test_a_reader_learns_on_what_data_with_what_networks_and_how_often(tmp_path):
    results = write(
        tmp_path,
        {"epochs": 2, "train_images": 10_000, "width_factor": 0.5},
        {"epochs": 6, "train_images": 10_000, "width_factor": 0.5},
        dataset="fashion-mnist",
        seeds=range(4),
    )
    facts = dict(describe_facts(results))
    judged = dict(describe_facts(replace(results, plan=replace(results.plan, epochs=6))))
    assert judged["training"].startswith("2 and 6 epochs (the claims are judged after 6), batches")
    hardware = facts.pop("hardware")
    assert facts == {
        "data": "Fashion-MNIST, 10,000 of 55,000 training images, 10,000 to test",
        "networks": "plain and resnet of depth 8, width 0.5",
        "arms": "before, after, none",
        "seeds": "4 per arm and network",
        "training": "2 and 6 epochs, batches of 128, learning rate 0.1",
        "norm, activation, optimizer": "batch norm, ReLU, SGD",
    }
    assert hardware.startswith("EPYC, ")
    assert hardware.endswith("of training in all")


def test_each_norm_is_named_with_what_stands_beside_it(tmp_path):
    results = write(tmp_path, {}, {"norm": "layer", "activation": "gelu"}, seeds=range(2))
    told = dict(describe_facts(results))["norm, activation, optimizer"]
    assert told == "batch norm, ReLU, SGD; layer norm, GELU, SGD"


def test_hardware_is_not_known_ahead_of_the_first_trial(tmp_path):
    results = write(tmp_path, {}, is_lost=always)
    assert dict(describe_facts(results))["hardware"] == "nothing has run yet"


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("cifar10", "CIFAR-10"),
        ("synthetic:3x32x32x10x600", "synthetic images"),
        ("imagefolder:flowers:32@0123456789abcdef", "flowers"),
        ("arrays:mine@0123456789abcdef", "mine"),
        ("unheard-of", "unheard-of"),
    ],
)
def test_no_digest_is_in_the_name_of_a_data_set(dataset, name):
    assert name_dataset(dataset) == name
