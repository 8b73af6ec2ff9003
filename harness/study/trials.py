"""A trial, its name, its neighbours, and the randomness that belongs to it.

The vocabulary lives here too: which placements an architecture has (each the *program* of its
block) and which depths. Standard library only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from harness.study import zoo
from harness.study.records import Settings

TRAINING_VERSION = 1
"""Raised when the same settings come to mean another training: old rows are then other trials."""

PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "mlp": {
        "before": "linear norm act",
        "after": "linear act norm",
        "none": "linear act",
    },
    "vgg": {
        "before": "conv norm act",
        "after": "conv act norm",
        "none": "conv act",
    },
    "plain": {
        "before": "conv norm act",
        "after": "conv act norm",
        "none": "conv act",
    },
    "resnet": {
        "before": "conv norm act conv norm + act",
        "after": "conv act norm conv act norm +",
        "after-inner": "conv act norm conv norm + act",
        "after-relu": "conv act norm conv act norm + act",
        "after-add": "conv act norm conv + act norm",
        "none": "conv act conv + act",
    },
    "preresnet": {
        "before": "norm act conv norm act conv +",
        "after": "act norm conv act norm conv +",
        "none": "act conv act conv +",
    },
    "densenet": {
        "before": "norm act conv cat",
        "after": "act norm conv cat",
        "none": "act conv cat",
    },
}
"""architecture -> placement -> the operations of one block, in the order they run."""

EVERY_PROGRAM: Mapping[str, Mapping[str, str]] = {**PROGRAMS, **zoo.PROGRAMS}
"""PROGRAMS, and those that rewrite torchvision's own models."""

_SKELETONS: Mapping[str, tuple[str, ...]] = {
    "mlp": ("linear",),
    "vgg": ("conv",),
    "plain": ("conv",),
    "resnet": ("conv", "conv", "+"),
    "preresnet": ("conv", "conv", "+"),
    "densenet": ("conv", "cat"),
}
"""What is left of an architecture's program when `norm` and `act` are taken out."""

DATASETS = ("digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "svhn", "synthetic")
"""The data sets with a plain name; `find_dataset_mistake` knows those that are described by theirs."""

SYNTHETIC = re.compile("synthetic:" + "x".join(["([1-9][0-9]{0,9})"] * 5))
"""Channels, height, width, classes, images."""

MOST_IMAGE_BYTES = 2**35
"""Of a synthetic data set, a byte for each channel of each pixel: a machine holds it in memory."""

IMAGE_FOLDER = re.compile(
    r"imagefolder:([A-Za-z0-9][\w.-]*):([1-9]\d{0,3})@([0-9a-f]{16})", re.ASCII
)
"""Name of the folder, pixels along a side, digest of the files: equal names, equal images."""

WORDS: Mapping[str, tuple[str, ...]] = {
    "dataset": DATASETS,
    "augmentation": ("crop-flip", "none"),
    "precision": ("float32", "bfloat16"),
    "memory_format": ("channels_last", "contiguous"),
}
"""The settings that are one of a few words; architectures and placements are in PROGRAMS."""


def find_dataset_mistake(dataset: str) -> str | None:
    """Say why `dataset` names no data set; None if it names one.

    >>> find_dataset_mistake("synthetic:3x32x32x10x60000")
    >>> find_dataset_mistake("synthetic:3x32x32")
    "'synthetic:' goes on with channels x height x width x classes x images: 3x32x32x10x60000"
    >>> find_dataset_mistake("imagefolder:flowers:64")
    'the digest of its files is missing: `python -m harness.datasets imagefolder:flowers:64` prints it'
    """
    if dataset.startswith("synthetic:"):
        return _find_synthetic_mistake(dataset)
    if dataset.startswith("imagefolder:"):
        if IMAGE_FOLDER.fullmatch(dataset):
            return None
        if IMAGE_FOLDER.fullmatch(f"{dataset}@{'0' * 16}"):
            return (
                "the digest of its files is missing: "
                f"`python -m harness.datasets {dataset}` prints it"
            )
        return "'imagefolder:' goes on with FOLDER:PIXELS@DIGEST: flowers:64@0123456789abcdef"
    if dataset in DATASETS:
        return None
    return f"{dataset!r} is not a data set: {', '.join(DATASETS)}, synthetic:..., imagefolder:..."


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


def find_program_mistake(architecture: str, program: str) -> str | None:
    """Say why `program` is not a block of `architecture`; None if it is one.

    >>> find_program_mistake("resnet", "conv norm act conv")
    "without norm and act a block of resnet is 'conv conv +', this one is 'conv conv'"
    >>> find_program_mistake("mlp", "linear relu")
    "'relu' is not an operation: linear, norm, act"
    """
    if architecture in zoo.PROGRAMS:
        return zoo.find_program_mistake(architecture, program)
    skeleton = _SKELETONS[architecture]
    known = (*dict.fromkeys(skeleton), "norm", "act")
    operations = program.split()
    for operation in operations:
        if operation not in known:
            return f"{operation!r} is not an operation: {', '.join(known)}"
    found = tuple(op for op in operations if op not in {"norm", "act"})
    if found != skeleton:
        return (
            f"without norm and act a block of {architecture} is {' '.join(skeleton)!r}, "
            f"this one is {' '.join(found)!r}"
        )
    if architecture == "densenet" and operations[-1] != "cat":
        return "a block of densenet ends in 'cat'"
    if "act" not in operations:
        return "a block without 'act' is linear"
    return None


MAX_DEPTH = 2_000


def find_depth_mistake(architecture: str, depth: int, *, bottleneck: bool = True) -> str | None:
    """Say which depths `architecture` has, if `depth` is not one of them.

    >>> find_depth_mistake("resnet", 21)
    '6n+2: 20 or 26'
    >>> find_depth_mistake("vgg", 17)
    '11, 13, 16 or 19'
    """
    if architecture in zoo.DEPTHS:
        return zoo.find_depth_mistake(architecture, depth)
    match architecture:
        case "mlp":
            return None if depth >= 1 else "1 or more"
        case "vgg":
            return None if depth in {11, 13, 16, 19} else "11, 13, 16 or 19"
        case "plain" | "resnet" | "preresnet":
            return _nearest(depth, factor=6, offset=2, text="6n+2")
        case "densenet" if bottleneck:  # each of the 3n layers has two convs
            return _nearest(depth, factor=6, offset=4, text="6n+4")
        case "densenet":
            return _nearest(depth, factor=3, offset=4, text="3n+4")
        case _:
            raise AssertionError(architecture)


def _nearest(depth: int, *, factor: int, offset: int, text: str) -> str | None:
    if depth > offset and (depth - offset) % factor == 0:
        return None
    below = depth - (depth - offset) % factor
    choices = [value for value in (below, below + factor) if value > offset] or [factor + offset]
    return f"{text}: {' or '.join(map(str, choices))}"


@dataclass(frozen=True, kw_only=True)
class Trial(Settings):
    """One training run. Frozen and complete: nothing else decides its result."""

    @cached_property
    def id(self) -> str:
        """16 hex digits that name the content: equal settings, equal name, wherever it runs."""
        return self.id_under(TRAINING_VERSION)

    def id_under(self, training_version: int) -> str:
        """The id of these settings where TRAINING_VERSION is `training_version`."""
        return _digest([training_version, asdict(self)]).hex()

    @property
    def label(self) -> str:
        """The trial as one would say it aloud."""
        return f"{self.dataset} {self.architecture}-{self.depth} {self.placement} seed {self.seed}"

    @cached_property
    def block_seed(self) -> int:
        """What all placements of one block share, and nothing else does.

        Batches, augmentation and (where shapes agree) initial weights come from it, so that
        placements are compared in pairs while data sets, architectures, depths and seeds are
        independent of each other.
        """
        block = [self.dataset, self.architecture, self.depth, self.seed, self.stage]
        return int.from_bytes(_digest(block), "big")

    @property
    def donor(self) -> Trial:
        """The trial whose update sizes this one borrows: its own block, in the placement `flow`."""
        program = EVERY_PROGRAM[self.architecture][self.flow]
        return replace(self, placement=self.flow, program=program, flow="own")

    @property
    def pack(self) -> tuple[int, ...]:
        """The seeds trained together: aligned, so that further seeds never change a pack."""
        first = self.seed - self.seed % self.pack_size
        return tuple(range(first, first + self.pack_size))


def expand(
    products: Sequence[Mapping[str, Sequence[Any]]],
    seeds: Sequence[int],
    *,
    programs: Mapping[str, Mapping[str, str]] = EVERY_PROGRAM,
) -> Iterator[Trial]:
    """Every combination of every product, for every seed.

    The seed runs outermost: a study cut short leaves whole pairs rather than whole arms.
    """
    for seed in seeds:
        for product in products:
            for values in itertools.product(*product.values()):
                settings = dict(zip(product, values, strict=True))
                program = programs[settings["architecture"]][settings["placement"]]
                yield Trial(seed=seed, program=program, **settings)


def derive_seed(block_seed: int, *names: str) -> int:
    """Seed of the stream called `names`: 63 bits, independent of every other stream.

    >>> derive_seed(7, "order") == derive_seed(7, "order")
    True
    >>> derive_seed(7, "order") == derive_seed(7, "augment")
    False
    """
    return int.from_bytes(_digest([block_seed, *names]), "big") >> 1


def _digest(content: object) -> bytes:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).digest()
