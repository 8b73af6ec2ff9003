"""Images per second of a trial: the harness, a bare loop over data in memory, and the tutorial.

Each side runs in processes that are warm: on one core one of them, on two cores two at a time, a
thread each, and once more the tutorial as the tutorials have it, one process with both threads.
What the harness sets for a whole process (`prepare_worker`) is not set where the tutorial trains.
The probe is off here: how often it reads depends on the length of an epoch, and `probe` measures it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.study.trials import PROGRAMS, Trial
from harness.training.gradients import Probe
from harness.training.images import Batches, Images, Normalize, Part, load_images
from harness.training.networks import build_network, initialize
from harness.training.optimizers import make_optimizer, make_schedule
from harness.training.train import EVALUATION_BATCH, prepare_worker, train_pack
from tests.benchmarks.ceilings import count_work, measure_ceilings
from tests.benchmarks.tutorial import train_like_the_tutorial

CPU = torch.device("cpu")
PACK = 5
HELD_OUT = 256
"""Images of the validation and of the test part: a tenth each of the training images."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and its images, `side` pixels square."""

    architecture: str
    depth: int
    width_factor: float
    side: int

    @property
    def name(self) -> str:
        network = f"{self.architecture}-{self.depth} width {self.width_factor}"
        return f"{network} {self.side}x{self.side}"

    @property
    def trial(self) -> Trial:
        """A short run of it; the small images are not augmented, as in the quickstart."""
        return Trial(
            architecture=self.architecture,
            placement="before",
            program=PROGRAMS[self.architecture]["before"],
            depth=self.depth,
            seed=0,
            dataset="digits",
            width_factor=self.width_factor,
            epochs=4 if self.side == 8 else 1,
            warmup_epochs=0.0,
            augmentation="crop-flip" if self.side == 32 else "none",
        )


SUBJECTS = (
    Subject("mlp", 8, 0.25, 8),
    Subject("plain", 20, 0.5, 8),
    Subject("resnet", 20, 0.5, 8),
    Subject("resnet", 20, 0.5, 28),
    Subject("resnet", 20, 1.0, 28),
    Subject("resnet", 20, 0.5, 32),
    Subject("resnet", 20, 1.0, 32),
    Subject("plain", 20, 1.0, 32),
    Subject("vgg", 11, 0.25, 32),
)


def measure_trials(*, repeats: int, images_each: int = 2_560) -> list[dict[str, Any]]:
    """Images per second of the ways to train, and their ratios, per network and number of cores."""
    rows: list[dict[str, Any]] = []
    with _warm_workers(1, threads=1) as workers:
        floors = dict(zip(SUBJECTS, workers.map(_find_floor, SUBJECTS), strict=True))
    for cores in (1, 2):
        with (
            _warm_workers(cores, threads=1) as prepared,
            _warm_workers(cores, threads=1, prepare=torch.set_num_threads) as plain,
            _warm_workers(1, threads=cores, prepare=torch.set_num_threads) as wide,
        ):
            for subject in SUBJECTS:
                sides = dict.fromkeys(("harness", "packs", "bfloat16", "bare"), (prepared, cores))
                sides["tutorial"] = (plain, cores)
                if cores > 1:
                    sides["tutorial, threads"] = (wide, 1)
                if subject.side > 8:
                    del sides["packs"]  # grouped convolutions gain nothing on images that large
                speeds: dict[str, list[float]] = {side: [] for side in sides}
                for _ in range(1 + repeats):
                    for side, (workers, copies) in sides.items():
                        jobs = [(side.partition(",")[0], subject, images_each)] * copies
                        begun, ended = zip(*workers.map(_time, jobs), strict=True)
                        images = copies * images_each * subject.trial.epochs
                        images *= PACK if side == "packs" else 1
                        speeds[side].append(images / (max(ended) - min(begun)))
                # The first turn of each side is for warming up.
                speeds = {side: of_side[1:] for side, of_side in speeds.items()}
                rows.append(_compare(subject, cores, speeds, floors[subject]))
    return rows


def _compare(
    subject: Subject, cores: int, speeds: dict[str, list[float]], floor: float
) -> dict[str, Any]:
    speed = {side: statistics.median(of_side) for side, of_side in speeds.items()}
    ratios = {
        "x bare loop": ("harness", "bare"),
        "x tutorial": ("harness", "tutorial"),
        "packs of 5 x tutorial": ("packs", "tutorial"),
        "bfloat16 x tutorial": ("bfloat16", "tutorial"),
        "x tutorial of two threads": ("harness", "tutorial, threads"),
    }
    return {
        "network": subject.name,
        "cores": cores,
        "harness images/s": speed["harness"],
        "of the cores' arithmetic %": 100 * floor * speed["harness"] / cores,
        **{
            title: speed[ours] / speed[theirs] if {ours, theirs} <= speed.keys() else ""
            for title, (ours, theirs) in ratios.items()
        },
    }


@contextmanager
def _warm_workers(
    count: int, *, threads: int, prepare: Callable[[int], None] = prepare_worker
) -> Iterator[ProcessPoolExecutor]:
    """Processes of `threads` each, which keep what they have imported and made."""
    with ProcessPoolExecutor(
        count, get_context("spawn"), initializer=prepare, initargs=(threads,)
    ) as workers:
        yield workers


def _find_floor(subject: Subject) -> float:
    """Seconds per image, were a step nothing but its arithmetic at the pace of a matrix product."""
    work = count_work(subject.trial, make_images(subject.side, HELD_OUT), CPU)
    ceilings = measure_ceilings(CPU, matrix=2_048, copied=2**26)
    return work["FLOP"] / ceilings["float32 FLOP/s"]


def _time(job: tuple[str, Subject, int]) -> tuple[float, float]:
    """Begin and end of a short training of a side, by the clock that all processes share."""
    side, subject, images_each = job
    train = _prepare(side, subject, images_each)
    with mock.patch.multiple(Probe, is_due=lambda *_: False, read=lambda *_: None):
        begun = time.monotonic()
        train()
        return begun, time.monotonic()


@cache
def _prepare(side: str, subject: Subject, images_each: int) -> Callable[[], object]:
    """What is timed; the images are in memory before."""
    images = make_images(subject.side, images_each)
    trial = subject.trial
    match side:
        case "harness":
            return lambda: train_pack([trial], images, device=CPU)
        case "packs":
            first = replace(trial, pack_size=PACK)
            seeds = [replace(first, seed=seed) for seed in range(PACK)]
            return lambda: train_pack(seeds, images, device=CPU)
        case "bfloat16":
            return lambda: train_pack([replace(trial, precision="bfloat16")], images, device=CPU)
        case "bare":
            batches = list(Batches(images, [trial], CPU).epoch())  # in each epoch the same
            normalize = Normalize(images, trial, CPU)
            held_out = [
                (normalize(part.x_NHWC[:, None]), part.y_N)
                for part in (images.validation, images.test)
            ]
            return lambda: train_bare(trial, images, batches, held_out)
        case "tutorial":
            return lambda: train_like_the_tutorial(trial, images, lambda _: None)
    raise ValueError(side)


@cache
def make_images(side: int, count: int) -> Images:
    """Digits blown up to `side` pixels, at 32 in three channels, so that every size can be learned."""
    digits = load_images("digits")
    channels = 3 if side == 32 else 1
    nearest = torch.arange(side) * 8 // side

    def enlarge(part: Part, count: int) -> Part:
        index = torch.arange(count) % len(part)
        x_NHWC = part.x_NHWC[index][:, nearest][:, :, nearest]
        return Part(x_NHWC.expand(-1, -1, -1, channels).contiguous(), part.y_N[index])

    return replace(
        digits,
        train=enlarge(digits.train, count),
        validation=enlarge(digits.validation, HELD_OUT),
        test=enlarge(digits.test, HELD_OUT),
        mean_C=digits.mean_C.expand(channels),
        std_C=digits.std_C.expand(channels),
    )


def train_bare(
    trial: Trial,
    images: Images,
    batches: list[tuple[Tensor, Tensor]],
    held_out: list[tuple[Tensor, Tensor]],
) -> None:
    """The same steps and evaluations on tensors that are ready, with nothing round them.

    `held_out` are the validation part, scored after each epoch, and the test part, at the end.
    """
    network = build_network(trial, images.shape, images.classes)
    initialize(network, [trial])
    if trial.memory_format == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, trial)
    schedule = iter(make_schedule(trial, len(batches)))
    for _ in range(trial.epochs):
        network.train()
        for x_BDHW, y_BR in batches:
            lr = next(schedule)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(x_BDHW)[:, 0], y_BR[:, 0]).backward()
            optimizer.step()
        _evaluate(network, *held_out[0])
    _evaluate(network, *held_out[1])


def _evaluate(network: nn.Module, x_NDHW: Tensor, y_N: Tensor) -> None:
    network.eval()
    batches = zip(x_NDHW.split(EVALUATION_BATCH), y_N.split(EVALUATION_BATCH), strict=True)
    with torch.no_grad():
        for x_BDHW, y_B in batches:
            functional.cross_entropy(network(x_BDHW)[:, 0], y_B)
