"""What is known of each data set ahead of training: its shape, its size, where it comes from.

Forecast, plan, claims and the reading of files all ask here. A name that describes its data set is
read; what a name does not tell is looked up where the data lies, or assumed, and that is said.
Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.study.arrays import ARRAYS, read_arrays, read_named
from harness.study.errors import DataError
from harness.study.wording import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One data set.

    Units:
        run_sd: percentage points.
    """

    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    train_images: int
    """Without those held out for validation."""
    validation_images: int
    test_images: int
    classes: int
    source: str
    """Where it comes from."""
    run_sd: float
    """Standard deviation of test accuracy from seed to seed that is assumed ahead of any row."""
    is_assumed: bool = False
    """How many images and classes there are is a guess: nobody has looked at the data."""


def count_held_out(images: int) -> int:
    """Of so many published training images, those that become the validation part."""
    return min(5_000, images // 10)


def _facts(
    shape: tuple[int, int, int],
    published: int,
    test: int,
    classes: int,
    source: str,
    *,
    is_assumed: bool = False,
) -> Facts:
    held_out = count_held_out(published)
    return Facts(
        shape=shape,
        train_images=published - held_out,
        validation_images=held_out,
        test_images=test,
        classes=classes,
        source=source,
        # As full CIFAR-10 recipes; more where so few images are tested that chance alone makes
        # more of 97 % right.
        run_sd=max(0.2, 100 * math.sqrt(0.03 * 0.97 / max(1, test))),
        is_assumed=is_assumed,
    )


_NAMED: Mapping[str, Facts] = {
    "digits": Facts(
        shape=(1, 8, 8),
        train_images=1_077,
        validation_images=180,
        test_images=540,
        classes=10,
        source="scikit-learn, which carries it",
        run_sd=1.0,
    ),
    "cifar10": _facts((3, 32, 32), 50_000, 10_000, 10, "University of Toronto"),
    "cifar100": _facts((3, 32, 32), 50_000, 10_000, 100, "University of Toronto"),
    "mnist": _facts((1, 28, 28), 60_000, 10_000, 10, "a mirror of torchvision's"),
    "fashion-mnist": _facts((1, 28, 28), 60_000, 10_000, 10, "Zalando Research"),
    "svhn": _facts((3, 32, 32), 73_257, 26_032, 10, "Stanford University"),
}

LIKE_CIFAR10 = "synthetic:3x32x32x10x60000"
"""What plain `synthetic` stands for: the shape and the size of CIFAR-10."""

DATASETS = (*_NAMED, "synthetic")
"""The data sets with a plain name; `find_dataset_mistake` knows those that are described by theirs."""

SYNTHETIC = re.compile("synthetic:" + "x".join(["([1-9][0-9]{0,9})"] * 5))
"""Channels, height, width, classes, images."""

MOST_IMAGE_BYTES = 2**35
"""Of a synthetic data set, a byte for each channel of each pixel: a machine holds it in memory."""

IMAGE_FOLDER = re.compile(
    r"imagefolder:([A-Za-z0-9][\w.-]*):([1-9]\d{0,3})@([0-9a-f]{16})", re.ASCII
)
"""Name of the folder, pixels along a side, digest of the files: equal names, equal images."""


def facts_of(dataset: str) -> Facts:
    """What the name of a data set tells; the same on every machine.

    >>> facts_of("synthetic:3x32x32x10x60000").train_images
    45000
    """
    if dataset in _NAMED:
        return _NAMED[dataset]
    if shape := SYNTHETIC.fullmatch(LIKE_CIFAR10 if dataset == "synthetic" else dataset):
        channels, height, width, classes, images = map(int, shape.groups())
        test = count_synthetic_test(images)
        return _facts((channels, height, width), images - test, test, classes, "a formula")
    folder = IMAGE_FOLDER.fullmatch(dataset)
    pixels, source = (int(folder[2]), "a folder of pictures") if folder else (32, "unknown")
    if ARRAYS.fullmatch(dataset):
        source = "a file of arrays"
    return _facts((3, pixels, pixels), 50_000, 10_000, 10, source, is_assumed=True)


def count_synthetic_test(images: int) -> int:
    """Of so many synthetic images, those of the test part."""
    return images // 6


def look_up_facts(dataset: str, root: Path | None = None) -> Facts:
    """The same, and what the name leaves open as the data has it, where it lies on this machine."""
    facts = facts_of(dataset)
    folder, arrays = IMAGE_FOLDER.fullmatch(dataset), ARRAYS.fullmatch(dataset)
    if not facts.is_assumed or not (folder or arrays):
        return facts
    root = root or default_root()
    if arrays:
        return _look_into(root / f"{arrays[1]}.npz", facts)
    assert folder
    try:
        contents = json.loads((prepared_folder(dataset, root) / CONTENTS).read_text("utf-8"))
        sizes = {f"{part}_images": count for part, count in contents["images"].items()}
        return replace(facts, **sizes, classes=contents["classes"], is_assumed=False)
    except (OSError, ValueError, KeyError):  # not made ready here, or by an earlier version
        pass
    train, test = (
        [len([*of_class.glob("[!.]*")]) for of_class in (root / folder[1] / half).glob("[!.]*/")]
        for half in ("train", "test")
    )
    if not train:
        return facts
    return _facts(facts.shape, sum(train), sum(test), len(train), facts.source)


def find_count_mistake(
    dataset: str, images: int, classes: int, *, train_images: int, batch_size: int
) -> str | None:
    """Say why `train_images` of so many `images`, 0 for all, make no epoch; None if they do.

    >>> find_count_mistake("digits", 1_077, 10, train_images=0, batch_size=128)
    >>> find_count_mistake("digits", 1_077, 10, train_images=100, batch_size=128)
    '100 training images are fewer than one batch of 128; raise train_images or lower batch_size'
    """
    if train_images > images:
        has = f"{dataset} has {images:,} training images, fewer than {train_images:,}"
        return f"{has}; lower train_images, or say 0 for all"
    if 0 < train_images < classes:
        few = f"{train_images:,} training images are fewer than the {classes:,} classes"
        return f"{few} of {dataset}; raise train_images"
    if 0 < train_images < batch_size:
        few = f"{train_images:,} training images are fewer than one batch of {batch_size:,}"
        return f"{few}; raise train_images or lower batch_size"
    if images < batch_size:
        has = f"{dataset} has {images:,} training images, fewer than one batch of {batch_size:,}"
        return f"{has}; lower batch_size"
    return None


def _look_into(file: Path, guessed: Facts) -> Facts:
    """The facts of a file of arrays; those guessed where it is not here, or not right."""
    try:
        arrays = read_arrays(file, ("y", "is_test"))
    except DataError:  # who reads it says why
        return guessed
    labels, tests = arrays.labels(), arrays.contents["is_test"].count(1)
    classes = max(labels, default=0) + 1
    return _facts(arrays.shape, len(labels) - tests, tests, classes, guessed.source)


def explain_lack_of_data(dataset: str) -> str | None:
    """What a user's own data set lacks on this machine, as its reading would say; None: nothing.

    The pictures of a folder are not read for this.
    """
    folder, arrays = IMAGE_FOLDER.fullmatch(dataset), ARRAYS.fullmatch(dataset)
    if not (folder or arrays):
        return None
    try:
        root = default_root()
        if (prepared_folder(dataset, root) / CONTENTS).exists():
            return None
        if arrays:
            read_named(root / f"{arrays[1]}.npz", arrays[2])
    except DataError as error:
        return str(error)
    halves = (root / folder[1] / half for half in ("train", "test")) if folder else ()
    return next(filter(None, map(explain_lack_of_half, halves)), None)


def explain_lack_of_half(half: Path) -> str | None:
    """The same of `train` or `test` in a folder of pictures."""
    if half.is_dir():
        return None
    return (
        f"{half.parent} should hold train/CLASS/PICTURE and test/CLASS/PICTURE: "
        f"there is no folder {half}"
    )


def default_root() -> Path:
    """The folder of all data sets, where the caller does not say.

    Raises:
        DataError: it would be below a home that nobody has.
    """
    asked = os.environ.get("BN_ORDER_DATA")
    try:
        return Path(asked or "~/.cache/bn-order").expanduser()
    except RuntimeError as error:
        said = f"BN_ORDER_DATA={asked}" if asked else "HOME is not set, and this user has none"
        raise DataError(
            f"{said}: no such home. Set BN_ORDER_DATA to the folder of the data sets"
        ) from error


_PREPARED_VERSION = 1
"""Raised when the parts of a data set, or the files that keep them, come to be others."""

CONTENTS = "contents.json"
"""The file of a prepared folder that says what is in it."""


def prepared_folder(dataset: str, root: Path) -> Path:
    """Where the parts of a data set lie as all workers of a machine read them."""
    return root / ".shared" / f"{dataset.replace(':', '-')}-v{_PREPARED_VERSION}"


def find_dataset_mistake(dataset: str) -> str | None:
    """Say why `dataset` names no data set; None if it names one.

    >>> find_dataset_mistake("synthetic:3x32x32x10x60000")
    >>> find_dataset_mistake("synthetic:3x32x32")
    "'synthetic:' goes on with channels x height x width x classes x images: 3x32x32x10x60000"
    >>> find_dataset_mistake("imagefolder:flowers:64")
    'the digest of its files is missing: `python -m harness.datasets imagefolder:flowers:64` prints it'
    """
    match dataset.partition(":"):
        case "synthetic", ":", _:
            return _find_synthetic_mistake(dataset)
        case "imagefolder", ":", _:
            return _find_folder_mistake(dataset)
        case "arrays", ":", _:
            return _find_arrays_mistake(dataset)
        case _ if dataset in DATASETS:
            return None
        case _:
            described = "synthetic:..., imagefolder:..., arrays:..."
            rest = dataset.partition(":")[2]
            families = [f"{family}:{rest}" for family in ("synthetic", "imagefolder", "arrays")]
            likely = did_you_mean(dataset, families if rest else DATASETS)
            return f"{dataset!r} is not a data set: {', '.join(DATASETS)}, {described}{likely}"


def _find_folder_mistake(dataset: str) -> str | None:
    if IMAGE_FOLDER.fullmatch(dataset):
        return None
    if IMAGE_FOLDER.fullmatch(f"{dataset}@{'0' * 16}"):
        return (
            f"the digest of its files is missing: `python -m harness.datasets {dataset}` prints it"
        )
    where = ""
    if "/" in dataset or "\\" in dataset:
        where = (
            f"; FOLDER is a name, no path, and is looked for in {default_root()} "
            "(BN_ORDER_DATA sets another place)"
        )
    return f"'imagefolder:' goes on with FOLDER:PIXELS@DIGEST: flowers:64@0123456789abcdef{where}"


def _find_arrays_mistake(dataset: str) -> str | None:
    """The same of a file of arrays.

    >>> _find_arrays_mistake("arrays:mine")
    'the digest of its arrays is missing: `python -m harness.datasets arrays:mine` prints it'
    """
    name, _, digest = dataset.partition("@")
    if name.endswith(".npz"):
        whole = name.removesuffix(".npz") + ("@" + digest) * bool(digest)
        return f"{dataset!r} names the array file with its suffix; leave out .npz: {whole}"
    if ARRAYS.fullmatch(dataset):
        return None
    if ARRAYS.fullmatch(f"{dataset}@{'0' * 16}"):
        return (
            f"the digest of its arrays is missing: `python -m harness.datasets {dataset}` prints it"
        )
    return (
        "'arrays:' goes on with NAME@DIGEST: mine@0123456789abcdef, for the file mine.npz in "
        f"{default_root()} (BN_ORDER_DATA sets another place)"
    )


def _find_synthetic_mistake(dataset: str) -> str | None:
    match = SYNTHETIC.fullmatch(dataset)
    if match is None:
        return (
            "'synthetic:' goes on with channels x height x width x classes x images: "
            "3x32x32x10x60000"
        )
    channels, height, width, classes, images = map(int, match.groups())
    most = (height + 1) // 2 * ((width + 1) // 2) - 1  # waves that differ on such a lattice
    if not 2 <= classes <= most:
        return f"images of {height}x{width} have room for 2 to {most} classes, not {classes}"
    if images < 20 * classes:
        return f"{classes} classes need {20 * classes} images or more, not {images}"
    if (size := channels * height * width * images) > MOST_IMAGE_BYTES:
        return f"its images have {size:,} bytes; {MOST_IMAGE_BYTES:,} at most"
    return None
