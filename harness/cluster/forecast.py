"""How long trials take and how much they write: roughly, then better with every finished one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harness.study.trials import Trial

MULTIPLY_ADDS_PER_SECOND = {"cpu": 3e10, "cuda": 2e12}
"""What small networks reach, everything around the sums included: one core of an AMD EPYC with
AVX-512 on 8x8 images, measured; a large GPU on 32x32 images, an order of magnitude."""

_IMAGES: Mapping[str, tuple[int, int]] = {"digits": (1_077, 8)}
_LIKE_CIFAR = 50_000, 32
"""Training images of a data set, and pixels along their side."""

_VGG_MULTIPLY_ADDS = {11: 153e6, 13: 229e6, 16: 314e6, 19: 399e6}
"""Of a forward pass on 32x32 pixels."""

SECONDS_PER_LAYER_AND_STEP = 2e-4
"""What a step costs however small its layers are: launching their operations."""

START_UP = 8.0
"""Seconds ahead of the first trial: Ray's start, and that of workers, which import torch."""

LEAST_LIMIT = 1_200.0
"""Seconds that any trial may take; and a trial longer than that so many times its own."""

LIMIT_OF_MEASURED = 10
LIMIT_OF_GUESSED = 50

_READINGS_WITHIN_EPOCHS = 8


@dataclass(slots=True)
class _Record:
    """What some trials have taken; as cheap to add to and to ask whatever their number."""

    trials: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def note(self, seconds: float) -> None:
        self.trials += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)


class Forecast:
    """Seconds of work in a trial: the mean of its own cell's, where some have been trained.

    Elsewhere the rough model, scaled by what it was wrong by so far.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._of_cell: dict[Trial, _Record] = defaultdict(_Record)
        self._of_all = _Record()
        self._guessed = 0.0

    def note(self, trial: Trial, seconds: float) -> None:
        """Learn from a finished trial."""
        self._of_cell[_cell(trial)].note(seconds)
        self._of_all.note(seconds)
        self._guessed += guess_seconds(trial, self._device)

    def seconds(self, trial: Trial) -> float:
        """Seconds that the trial will take on one worker."""
        if known := self._of_cell.get(_cell(trial)):
            return known.seconds / known.trials
        scale = self._of_all.seconds / self._guessed if self._guessed else 1.0
        return scale * guess_seconds(trial, self._device)

    def wall_time(self, trials: Iterable[Trial], workers: int, *, warm: bool = False) -> float:
        """Seconds until so many workers, warm or yet to be started, will have trained them all."""
        durations = list(map(self.seconds, trials))
        start_up = 0.0 if warm or not durations else START_UP
        return start_up + max(sum(durations) / workers, *durations, 0.0)

    def limit(self, trial: Trial) -> float:
        """Seconds after which the trial counts as hanging, rather than slow.

        Its own cell's slowest sets the measure where there is one, the rough model elsewhere. What
        a worker does once is inside: to import torch, to fetch a data set.
        """
        if known := self._of_cell.get(_cell(trial)):
            return LEAST_LIMIT + LIMIT_OF_MEASURED * known.slowest
        return LEAST_LIMIT + LIMIT_OF_GUESSED * self.seconds(trial)

    @property
    def basis(self) -> str:
        """What the numbers rest on, for whoever reads them."""
        known = self._of_all.trials
        return f"from {known} finished trials" if known else "guessed from the size of the networks"


def guess_seconds(trial: Trial, device: str = "cpu") -> float:
    """Seconds of training, from the multiply-adds of the network; right within a factor of 3 or so."""
    images, side = _IMAGES.get(trial.dataset, _LIKE_CIFAR)
    pixels = (side / 32) ** 2
    match trial.architecture:
        case "mlp":
            forward = 512**2 * trial.depth + 512 * 3 * side**2
        case "vgg":
            forward = _VGG_MULTIPLY_ADDS[trial.depth] * pixels
        case "densenet":  # 300 million at depth 100, 12 channels a layer, with bottlenecks
            forward = 300e6 * (trial.depth / 100) ** 2 * (trial.growth / 12) ** 2 * pixels
        case _:  # 6n+2: 41 million at depth 20
            forward = 2.05e6 * trial.depth * pixels
    passes = images * trial.epochs + trial.probe_size * _readings(trial)
    # The backward pass is two forward passes.
    sums = 3 * forward * trial.width_factor**2 * passes / MULTIPLY_ADDS_PER_SECOND[device]
    steps = images // trial.batch_size * trial.epochs
    return sums + SECONDS_PER_LAYER_AND_STEP * trial.depth * steps


def guess_bytes(trial: Trial) -> int:
    """Bytes of a trial's three files."""
    return 30_000 + 100 * _readings(trial) * trial.depth + 60 * trial.epochs


def count_cpus() -> int:
    """CPUs this process may run on, which under taskset or in a container are not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _readings(trial: Trial) -> int:
    """Times at which gradient flow is measured."""
    return _READINGS_WITHIN_EPOCHS + trial.epochs


def _cell(trial: Trial) -> Trial:
    return replace(trial, seed=0)
