from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as transforms

from harness.study.errors import DataError
from harness.study.trials import derive_seed
from harness.training import images
from harness.training.images import (
    PADDING,
    Batches,
    Images,
    Normalize,
    Part,
    default_root,
    load_images,
)
from tests.harness.data_files import write_cifar

CPU = torch.device("cpu")


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


def test_digits_are_those_of_scikit_learn_however_they_are_read(digits, monkeypatch):
    """From their file, without importing scikit-learn, and by its own function elsewhere."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    expected = torch.from_numpy(np.column_stack([pixels, labels]))
    assert torch.equal(images._read_digits(), expected)
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    assert torch.equal(images._read_digits(), expected)


def test_training_on_digits_imports_no_scikit_learn():
    code = "import sys; from harness.training.images import load_images; load_images('digits'); "
    subprocess.run([sys.executable, "-c", f"{code}assert 'sklearn' not in sys.modules"], check=True)


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


GRATINGS = "synthetic:3x8x6x4x240"


def equal(one, other):
    def tensors(images):
        yield from (images.mean_C, images.std_C)
        for part in (images.train, images.validation, images.test):
            yield from (part.x_NHWC, part.y_N)

    return all(map(torch.equal, tensors(one), tensors(other)))


def start(root, *, preparation=""):
    """Load the gratings in a process of its own, which prints what it got."""
    program = f"""
import hashlib, os, pathlib, signal, sys
from harness.training import images as datasets
{preparation}
images = datasets.load_images({GRATINGS!r}, pathlib.Path({str(root)!r}))
content = b"".join(
    tensor.numpy().tobytes()
    for part in (images.train, images.validation, images.test)
    for tensor in (part.x_NHWC, part.y_N)
)
print(hashlib.sha256(content).hexdigest())
"""
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_parts_hold_a_tenth_out_of_training_stratified_by_class(tmp_path):
    images = load_images(GRATINGS, tmp_path)
    assert [len(part) for part in (images.train, images.validation, images.test)] == [180, 20, 40]
    assert images.validation.y_N.bincount().tolist() == [5, 5, 5, 5]
    assert images.name == GRATINGS
    pixels_PC = images.train.x_NHWC.flatten(0, 2).double()
    torch.testing.assert_close(images.mean_C, pixels_PC.mean(0).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        images.std_C, pixels_PC.std(0, correction=0).float(), rtol=1e-6, atol=0
    )


def test_never_more_than_5000_images_are_held_out(tmp_path):
    images = load_images("synthetic:1x4x4x2x72000", tmp_path)
    parts = (images.train, images.validation, images.test)
    assert [len(part) for part in parts] == [55_000, 5_000, 12_000]


def test_the_copy_is_mapped_and_who_writes_to_it_changes_only_his_own(tmp_path):
    first, second = load_images(GRATINGS, tmp_path), load_images(GRATINGS, tmp_path)
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert mapped.count(f"{tmp_path}/.shared/synthetic-3x8x6x4x240-v1/train_x.npy") == 2
    first.train.x_NHWC.zero_()
    assert equal(second, load_images(GRATINGS, tmp_path))


def test_processes_that_load_at_once_share_one_copy_and_see_it_whole(tmp_path):
    slow_and_told = """
import time
write = datasets._write_shared
def told(*arguments):
    print("writes", flush=True)
    time.sleep(0.5)
    write(*arguments)
datasets._write_shared = told
"""
    processes = [start(tmp_path, preparation=slow_and_told) for _ in range(3)]
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(words[0] == "writes" for words in printed) == 1
    assert len({words[-1] for words in printed}) == 1


def test_a_process_killed_while_writing_leaves_nothing_in_the_way(tmp_path):
    dies_within = """
flush = datasets._flush
def dying(stream):
    flush(stream)
    if "test_x" in stream.name:
        os.kill(os.getpid(), signal.SIGKILL)
datasets._flush = dying
"""
    process = start(tmp_path, preparation=dies_within)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    [unfinished] = (tmp_path / ".shared").glob(".synthetic*")
    assert (unfinished / "test_x.npy").exists()
    assert equal(load_images(GRATINGS, tmp_path), load_images(GRATINGS, tmp_path / "elsewhere"))
    assert not unfinished.exists()


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
    ids=["flipped", "truncated", "empty", "missing"],
)
@pytest.mark.parametrize("file", ["train_x.npy", "test_y.npy", "mean.npy", "contents.json"])
def test_a_damaged_copy_is_made_again(file, damage, tmp_path):
    load_images(GRATINGS, tmp_path)
    [copy] = (tmp_path / ".shared").glob("*-v1")
    damage(copy / file)
    assert equal(load_images(GRATINGS, tmp_path), load_images(GRATINGS, tmp_path / "elsewhere"))
    assert (copy / file).exists()


def test_the_copy_outlives_the_files_it_was_made_from(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    first = load_images("cifar10", tmp_path)
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    assert equal(first, load_images("cifar10", tmp_path))


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BN_ORDER_DATA", str(tmp_path / "data"))
    load_images(GRATINGS)
    assert (tmp_path / "data" / ".shared").is_dir()
    monkeypatch.setenv("BN_ORDER_DATA", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "bn-order"


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    message = r"cannot be written: Not a directory; let BN_ORDER_DATA name a folder"
    with pytest.raises(DataError, match=message):
        load_images(GRATINGS, tmp_path / "file")


def test_digits_touch_no_disk(tmp_path):
    load_images("digits", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("synthetic:3x32x32", "goes on with channels x height x width x classes x images"),
        ("synthetic:3x32x32x10x60000x1", "goes on with"),
        ("synthetic:0x8x8x4x400", "goes on with"),
        ("synthetic:1x4x4x4x400", "images of 4x4 have room for 2 to 3 classes, not 4"),
        ("synthetic:1x8x8x1x400", "have room for 2 to 15 classes, not 1"),
        ("synthetic:1x8x8x4x79", "4 classes need 80 images or more, not 79"),
        ("imagefolder:flowers", "goes on with FOLDER:PIXELS@DIGEST"),
        ("imagefolder:../etc:8@0123456789abcdef", "goes on with FOLDER:PIXELS@DIGEST"),
        ("imagefolder:flowers:64", "the digest of its files is missing: `python -m"),
        ("", "'' is not a data set"),
    ],
)
def test_a_name_that_describes_no_data_set_is_explained(name, mistake, tmp_path):
    with pytest.raises(DataError, match=re.escape(mistake)):
        load_images(name, tmp_path)


def test_an_unknown_data_set_is_refused_by_name():
    with pytest.raises(DataError, match=r"'cifar11' is not a data set: digits, cifar10, "):
        load_images("cifar11")


def test_a_batch_larger_than_the_training_part_is_refused(colours, trial_of):
    message = r"colours has 50 training images, fewer than one batch of 64; lower batch_size"
    with pytest.raises(DataError, match=message):
        Batches(colours, [trial_of(batch_size=64)], CPU)


def shown(images, trial):
    """Which training images an epoch shows, each as one row of bytes, and their labels."""
    x_NDHW, y_NR = map(torch.cat, zip(*Batches(images, [trial], CPU).epoch(), strict=True))
    x_NHWC = x_NDHW.permute(0, 2, 3, 1) * images.std_C + images.mean_C
    return {bytes(row) for row in x_NHWC.round().to(torch.uint8).flatten(1).numpy()}, y_NR[:, 0]


def test_fewer_training_images_are_stratified_and_among_those_of_more(digits, trial_of):
    few, few_y = shown(digits, trial_of(train_images=100, batch_size=50))
    more, more_y = shown(digits, trial_of(train_images=300, batch_size=50))
    assert (len(few), len(more)) == (100, 300)
    assert few < more < {bytes(row) for row in digits.train.x_NHWC.flatten(1).numpy()}
    for y_N in (few_y, more_y):
        share_K = len(y_N) / len(digits.train) * digits.train.y_N.bincount()
        assert ((y_N.bincount(minlength=10) - share_K).abs() <= 1).all()


def test_all_trials_are_shown_the_same_images_in_orders_of_their_own(digits, trial_of):
    settings = {"train_images": 100, "batch_size": 50}
    first, first_y = shown(digits, trial_of(**settings))
    for other in (trial_of("mlp", "after", seed=1, **settings), trial_of(depth=14, **settings)):
        others, other_y = shown(digits, other)
        assert others == first
        assert not torch.equal(other_y, first_y)


def test_as_many_as_there_are_is_all(digits, trial_of):
    """And 0 is for all: the very batches of a trial that never heard of the setting."""
    named, unsaid = (
        Batches(digits, [trial_of(augmentation="crop-flip", train_images=count)], CPU).epoch()
        for count in (len(digits.train), 0)
    )
    order = torch.Generator().manual_seed(derive_seed(trial_of().block_seed, "order"))
    index_SB = torch.randperm(1077, generator=order)[: 8 * 128].view(8, 128)
    for (x, y), (other_x, other_y), index_B in zip(named, unsaid, index_SB, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
        assert torch.equal(y[:, 0], digits.train.y_N[index_B])


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"train_images": 51}, "colours has 50 training images, fewer than 51; lower train_images"),
        ({"train_images": 3}, "3 training images are fewer than the 4 classes of colours; raise"),
        (
            {"train_images": 7},
            "7 training images are fewer than one batch of 8; raise train_images",
        ),
    ],
)
def test_a_count_of_training_images_that_makes_no_epoch_is_refused(
    colours, trial_of, settings, mistake
):
    with pytest.raises(DataError, match=mistake):
        Batches(colours, [trial_of(batch_size=8, **settings)], CPU)
    Batches(colours, [trial_of(batch_size=8, train_images=50)], CPU)
