"""A trial, its name, its neighbours, and the randomness that belongs to it.

Standard library only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.study.architectures import ARCHITECTURES, PREFIX, find_architecture
from harness.study.facts import DATASETS
from harness.study.records import Settings, settings_of

TRAINING_VERSION = 1
"""Increased when the same settings train differently: old rows are then other trials."""

EARLY_STEPS = (0, 1, 2, 5, 10, 30, 100, 300)
"""Steps after which gradient flow is read, besides every epoch's end: the first instants are where
placements differ most."""

EVERY_PROGRAM: Mapping[str, Mapping[str, str]] = {
    name: architecture.programs for name, architecture in ARCHITECTURES.items()
}
"""architecture -> placement -> the operations of one block, in the order they run."""

PROGRAMS = {name: of for name, of in EVERY_PROGRAM.items() if not name.startswith(PREFIX)}
"""EVERY_PROGRAM without those that rewrite torchvision's own models."""

WORDS: Mapping[str, tuple[str, ...]] = {
    "dataset": DATASETS,
    "norm": ("batch", "layer", "group", "instance"),
    "activation": ("relu", "leaky_relu", "gelu", "silu", "tanh"),
    "optimizer": ("sgd", "adamw"),
    "augmentation": ("crop-flip", "none"),
    "precision": ("float32", "bfloat16"),
    "memory_format": ("channels_last", "contiguous"),
}
"""The settings that are one of a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Settings):
    """One training run. Frozen and complete: nothing else affects its result."""

    @cached_property
    def id(self) -> str:
        """16 hex digits derived from the settings: equal settings, equal id, everywhere."""
        return self.id_under(TRAINING_VERSION)

    def id_under(self, training_version: int) -> str:
        """The id that these settings have under TRAINING_VERSION `training_version`."""
        return _digest([training_version, settings_of(self)]).hex()

    @property
    def arm(self) -> str:
        """The trial's name in comparisons within its cell; stored as a column of every row.

        >>> trial = Trial(architecture="mlp", placement="before", program="linear", depth=1, seed=0)
        >>> trial.arm, replace(trial, flow="after", recipe="tuned").arm
        ('before', 'before with the flow of after, tuned')
        """
        is_borrowed = self.flow not in {"own", self.placement}
        flow = f" with the flow of {self.flow}" if is_borrowed else ""
        special = [name for name in (self.stage, self.recipe) if name not in {"study", "common"}]
        return ", ".join([self.placement + flow, *special])

    @property
    def label(self) -> str:
        """A readable name of the trial."""
        return f"{self.dataset} {self.architecture}-{self.depth} {self.placement} seed {self.seed}"

    @property
    def has_norms(self) -> bool:
        """Whether its network has any norm; if not, the settings of norms affect nothing."""
        return self.final_norm or "norm" in self.program

    @cached_property
    def block_seed(self) -> int:
        """The random seed that all placements of one block share, and no other trials do.

        Batches, augmentation and (where shapes agree) initial weights come from it, so that
        placements are compared in pairs, while data sets, architectures, depths and seeds are
        independent of each other.
        """
        block = [self.dataset, self.architecture, self.depth, self.seed, self.stage]
        return int.from_bytes(_digest(block), "big")

    @property
    def donor(self) -> Trial:
        """The trial whose update sizes this one borrows: its own block, in the placement `flow`."""
        program = find_architecture(self.architecture).programs[self.flow]
        donor = replace(self, placement=self.flow, program=program, flow="own")
        if self.flow_lr:
            donor = replace(donor, lr=self.flow_lr, weight_decay=self.flow_weight_decay)
        return replace(donor, flow_lr=0.0, flow_weight_decay=0.0)

    @property
    def pack(self) -> tuple[int, ...]:
        """The seeds trained together: aligned, so that adding seeds never changes a pack."""
        first = self.seed - self.seed % self.pack_size
        return tuple(range(first, first + self.pack_size))


def expand(
    products: Sequence[Mapping[str, Sequence[Any]]],
    seeds: Sequence[int],
    *,
    programs: Mapping[str, Mapping[str, str]] = EVERY_PROGRAM,
    digests: Mapping[str, str] = {},
) -> Iterator[Trial]:
    """Every combination of every product, for every seed; `digests` are of users' own networks.

    The seed is the outermost loop: a study cut short leaves whole pairs rather than whole arms. A
    warm-up is never longer than the training. A network without norms is the same under every
    `norm`, and comes once.
    """
    for seed in seeds:
        without: set[Trial] = set()
        for product in products:
            for trial in expand_product(product, seed, programs=programs, digests=digests):
                if trial.has_norms:
                    yield trial
                elif (same := replace(trial, **_NO_NORM)) not in without:
                    without.add(same)
                    yield same


def expand_product(
    product: Mapping[str, Sequence[Any]],
    seed: int,
    *,
    programs: Mapping[str, Mapping[str, str]],
    digests: Mapping[str, str] = {},
) -> Iterator[Trial]:
    """Every combination of one product, as it is said."""
    for values in itertools.product(*product.values()):
        settings = dict(zip(product, values, strict=True))
        epochs = float(settings.get("epochs", Settings.epochs))
        warmup = settings.get("warmup_epochs", Settings.warmup_epochs)
        settings["warmup_epochs"] = min(warmup, epochs)
        architecture = settings["architecture"]
        yield Trial(
            seed=seed,
            architecture_digest=digests.get(architecture, ""),
            program=programs[architecture][settings["placement"]],
            **settings,
        )


_NO_NORM: Mapping[str, Any] = {
    name: getattr(Settings, name) for name in ("norm", "norm_groups", "norm_affine")
}


def find_pack_mistake(size: int, seeds: Collection[int]) -> str | None:
    """Say which seeds a pack of `size` lacks; None if it lacks none.

    >>> find_pack_mistake(2, [0, 1, 2])
    'a pack of 2 trains seeds 2 to 3 together; 3 not among the seeds'
    """
    firsts = sorted({seed - seed % size for seed in seeds})
    for first in firsts:
        missing = [seed for seed in range(first, first + size) if seed not in seeds]
        if missing:
            return (
                f"a pack of {size} trains seeds {first} to {first + size - 1} together; "
                f"{', '.join(map(str, missing))} not among the seeds"
            )
    return None


def derive_seed(block_seed: int, *names: str) -> int:
    """Derive the seed of the stream called `names`: 63 bits, independent of every other stream.

    >>> derive_seed(7, "order") == derive_seed(7, "order")
    True
    >>> derive_seed(7, "order") == derive_seed(7, "augment")
    False
    """
    return int.from_bytes(_digest([block_seed, *names]), "big") >> 1


def _digest(content: object) -> bytes:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).digest()
