"""What is known of a data set ahead of training is what training will find."""

from __future__ import annotations

import pytest

from harness.study.facts import DATASETS, facts_of, look_up_facts
from harness.training.images import load_images
from harness.training.pictures import name_folder
from tests.harness.data_files import write_pictures

FOLDER = "imagefolder:flowers:16@0123456789abcdef"


def sizes(facts):
    return facts.train_images, facts.validation_images, facts.test_images


def sizes_of(images):
    return len(images.train), len(images.validation), len(images.test)


@pytest.mark.parametrize("dataset", ["digits", "synthetic:2x9x8x5x613"])
def test_the_facts_are_those_of_the_images(dataset, tmp_path):
    images, facts = load_images(dataset, tmp_path), facts_of(dataset)
    assert (facts.shape, facts.classes) == (images.shape, images.classes)
    assert sizes(facts) == sizes_of(images)
    assert not facts.is_assumed


def test_every_named_data_set_has_facts_and_only_its_name_is_needed(tmp_path):
    for dataset in DATASETS:
        assert not facts_of(dataset).is_assumed
        assert look_up_facts(dataset, tmp_path) == facts_of(dataset)
    assert facts_of("cifar100").classes == 100
    assert facts_of("synthetic") == facts_of("synthetic:3x32x32x10x60000")


def test_fewer_test_images_vary_more_from_seed_to_seed():
    few, many = facts_of("synthetic:3x32x32x10x600"), facts_of("synthetic:3x32x32x10x600000")
    assert few.run_sd > facts_of("digits").run_sd > many.run_sd == 0.2


def test_a_folder_that_is_not_here_is_guessed_and_says_so(tmp_path):
    facts = look_up_facts(FOLDER, tmp_path)
    assert facts.is_assumed
    assert facts.shape == (3, 16, 16)


def test_a_folder_is_counted_where_it_lies_and_as_it_was_made_ready(tmp_path):
    write_pictures(tmp_path / "flowers")
    name = name_folder("imagefolder:flowers:8", tmp_path)
    counted = look_up_facts(name, tmp_path)
    images = load_images(name, tmp_path)
    assert not counted.is_assumed
    assert (sizes(counted), counted.classes) == (sizes_of(images), images.classes)
    (tmp_path / "flowers").rename(tmp_path / "away")
    made_ready = look_up_facts(name, tmp_path)
    assert (sizes(made_ready), made_ready.classes) == (sizes_of(images), images.classes)
