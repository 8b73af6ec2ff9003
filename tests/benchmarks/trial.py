"""Images per second of a trial: the harness, a bare loop over data in memory, and the tutorial.

The probe is off here: how often it reads depends on the length of an epoch, and `probe` measures it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from harness.datasets import Batches, Images, Part, load_images
from harness.gradients import Probe
from harness.networks import build_network, initialize
from harness.optimizers import make_optimizer, make_schedule
from harness.train import prepare_worker, train_pack
from harness.trials import PROGRAMS, Trial
from tests.benchmarks.timing import alternate
from tests.benchmarks.tutorial import train_like_the_tutorial

CPU = torch.device("cpu")

SUBJECTS = (
    ("mlp", 8, 0.25, 8),
    ("vgg", 11, 0.25, 32),
    ("plain", 20, 1.0, 32),
    ("plain", 20, 1.0, 8),
    ("resnet", 20, 1.0, 32),
    ("resnet", 20, 1.0, 8),
)
"""Architecture, depth, width factor, pixels along a side."""


def measure_trials(*, repeats: int, images_each: int = 1_280) -> list[dict[str, Any]]:
    """Images per second of the three ways to train, and their ratios, per architecture."""
    prepare_worker(threads=1)
    rows: list[dict[str, Any]] = []
    for architecture, depth, width, side in SUBJECTS:
        images = make_images(side, images_each)
        trial = Trial(
            architecture=architecture,
            placement="before",
            program=PROGRAMS[architecture]["before"],
            depth=depth,
            seed=0,
            dataset="digits",
            width_factor=width,
            epochs=1,
            warmup_epochs=0.0,
            augmentation="crop-flip" if side == 32 else "none",
        )
        half = replace(trial, precision="bfloat16")
        with mock.patch.multiple(Probe, is_due=lambda *_: False, read=lambda *_: None):
            timing = alternate(
                {
                    "harness": lambda t=trial, i=images: train_pack([t], i, device=CPU),
                    "bfloat16": lambda t=half, i=images: train_pack([t], i, device=CPU),
                    "bare": lambda t=trial, i=images: train_bare(t, i),
                    "tutorial": lambda t=trial, i=images: train_like_the_tutorial(
                        t, i, lambda _: None
                    ),
                },
                repeats=repeats,
            )
        median = {name: side_timing.median for name, side_timing in timing.items()}
        rows.append(
            {
                "network": f"{architecture}-{depth} {side}x{side}",
                "harness images/s": images_each / median["harness"],
                "x bare loop": median["bare"] / median["harness"],
                "x tutorial": median["tutorial"] / median["harness"],
                "bfloat16 x tutorial": median["tutorial"] / median["bfloat16"],
            }
        )
    return rows


def make_images(side: int, count: int) -> Images:
    """Digits blown up to `side` pixels, so that every size has learnable images."""
    digits = load_images("digits")

    def enlarge(part: Part, count: int) -> Part:
        index = torch.arange(count) % len(part)
        x_NHWC = part.x_NHWC[index].repeat_interleave(side // 8, 1).repeat_interleave(side // 8, 2)
        return Part(x_NHWC, part.y_N[index])

    return replace(
        digits,
        train=enlarge(digits.train, count),
        validation=enlarge(digits.validation, 128),
        test=enlarge(digits.test, 128),
    )


def train_bare(trial: Trial, images: Images) -> None:
    """The same optimizer steps with nothing round them: no probe, no ledger, no evaluation."""
    network = build_network(trial, images.shape, images.classes)
    initialize(network, [trial])
    if trial.memory_format == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    batches = list(Batches(images, [trial], CPU).epoch())
    optimizer = make_optimizer(network, trial)
    schedule = iter(make_schedule(trial, len(batches)))
    network.train()
    for x_BDHW, y_BR in batches:
        lr = next(schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(x_BDHW)[:, 0], y_BR[:, 0]).backward()
        optimizer.step()
