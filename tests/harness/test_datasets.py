from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as transforms

from harness.datasets import PADDING, Batches, Images, Normalize, Part, load_images
from harness.errors import DataError
from harness.trials import derive_seed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def colours():
    """Colour images that are not square, so that a swapped axis shows."""
    generator = torch.Generator().manual_seed(0)

    def part(count):
        x_NHWC = torch.randint(256, (count, 6, 5, 3), dtype=torch.uint8, generator=generator)
        return Part(x_NHWC, torch.randint(4, (count,), generator=generator))

    train = part(50)
    pixels = train.x_NHWC.flatten(0, 2).double()
    return Images(
        "colours", 4, train, part(8), part(8), pixels.mean(0).float(), pixels.std(0).float()
    )


def test_digits_are_all_1797_images_each_in_one_part(digits):
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1077, 180, 540]
    images = torch.cat([part.x_NHWC for part in parts]).flatten(1)
    assert len(images.unique(dim=0)) == 1797


def test_the_split_is_stratified_and_always_the_same(digits):
    for part, share in ((digits.validation, 180 / 1797), (digits.test, 540 / 1797)):
        everything = digits.train.y_N.bincount() + digits.validation.y_N.bincount()
        everything = everything + digits.test.y_N.bincount()
        assert ((part.y_N.bincount() - share * everything).abs() <= 1).all()
    assert torch.equal(load_images("digits").test.x_NHWC, digits.test.x_NHWC)


def test_statistics_are_those_of_the_training_part(digits, trial_of):
    normalize = Normalize(digits, trial_of(), CPU)
    x_NDHW = normalize(digits.train.x_NHWC[:, None])
    assert abs(x_NDHW.mean()) < 1e-5
    assert abs(x_NDHW.std() - 1) < 1e-3
    assert abs(normalize(digits.test.x_NHWC[:, None]).mean()) > 1e-5


def test_an_epoch_shows_every_image_at_most_once_and_drops_the_partial_batch(colours, trial_of):
    batches = Batches(colours, [trial_of(batch_size=8)], CPU)
    shown = list(batches.epoch())
    assert len(shown) == batches.steps == 50 // 8
    images = torch.cat([x for x, _ in shown]).flatten(1)
    assert len(images.unique(dim=0)) == 48


def test_placements_see_equal_batches_and_seeds_see_others(colours, trial_of):
    def first_epochs(**settings):
        trial = trial_of(batch_size=8, augmentation="crop-flip", **settings)
        batches = Batches(colours, [trial], CPU)
        return torch.cat([x for _ in range(2) for x, _ in batches.epoch()])

    shown = first_epochs()
    assert torch.equal(shown, first_epochs(placement="after"))
    assert not torch.equal(shown, first_epochs(seed=1))
    assert not torch.equal(shown, first_epochs(depth=14))
    assert not torch.equal(shown[:48], shown[48:])


def test_a_replica_in_a_pack_sees_what_it_sees_alone(colours, trial_of):
    trials = [trial_of(batch_size=8, augmentation="crop-flip", seed=seed) for seed in range(3)]
    together = list(Batches(colours, trials, CPU).epoch())
    for replica, trial in enumerate(trials):
        for (x_BDHW, y_BR), (x, y) in zip(
            together, Batches(colours, [trial], CPU).epoch(), strict=True
        ):
            assert torch.equal(x_BDHW.unflatten(1, (3, 3))[:, replica], x)
            assert torch.equal(y_BR[:, replica], y[:, 0])


def test_augmentation_is_torchvisions_crop_and_flip_at_the_same_offsets(colours, trial_of):
    trial = trial_of(batch_size=8, augmentation="crop-flip")
    order = torch.Generator().manual_seed(derive_seed(trial.block_seed, "order"))
    augment = torch.Generator().manual_seed(derive_seed(trial.block_seed, "augment"))
    index = torch.randperm(50, generator=order)[:48]
    top, left = torch.randint(2 * PADDING + 1, (2, 48), generator=augment)
    flip = torch.randint(2, (48,), generator=augment)
    shown = torch.cat([x for x, _ in Batches(colours, [trial], CPU).epoch()])

    assert 0 < flip.sum() < 48
    for at in range(48):
        image = colours.train.x_NHWC[index[at]].permute(2, 0, 1)
        image = transforms.crop(transforms.pad(image, [PADDING]), int(top[at]), int(left[at]), 6, 5)
        image = transforms.hflip(image) if flip[at] else image
        expected = transforms.normalize(
            image.float(), colours.mean_C.tolist(), colours.std_C.tolist()
        )
        torch.testing.assert_close(shown[at], expected)


@pytest.mark.parametrize(
    ("memory_format", "torchs"),
    [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)],
)
def test_batches_arrive_in_the_trials_memory_format(colours, trial_of, memory_format, torchs):
    batches = Batches(colours, [trial_of(batch_size=8, memory_format=memory_format)] * 2, CPU)
    x_BDHW, _ = next(iter(batches.epoch()))
    assert x_BDHW.is_contiguous(memory_format=torchs)


def test_an_unknown_data_set_is_refused_by_name():
    with pytest.raises(DataError, match=r"'cifar11' is not a data set this version can load: "):
        load_images("cifar11")


def test_a_batch_larger_than_the_training_part_is_refused(colours, trial_of):
    message = r"colours has 50 training images, fewer than one batch of 64; lower batch_size"
    with pytest.raises(DataError, match=message):
        Batches(colours, [trial_of(batch_size=64)], CPU)
