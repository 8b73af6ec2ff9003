"""What a reading of gradient flow costs, in optimizer steps, and its share of a usual epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.training.gradients import EARLY_STEPS, Probe
from harness.training.images import Batches
from harness.training.learner import Learner
from harness.training.train import prepare_worker
from tests.benchmarks.timing import alternate
from tests.benchmarks.trial import SUBJECTS, make_images

CPU = torch.device("cpu")
STEPS_PER_EPOCH, EPOCHS = 390, 200
"""Of the usual CIFAR-10 recipe: readings come at the early steps and after each epoch."""


def measure_probe(*, repeats: int) -> list[dict[str, Any]]:
    """Steps that one reading costs, and the share of training time at the default schedule."""
    prepare_worker(threads=1)
    rows: list[dict[str, Any]] = []
    for subject in SUBJECTS:
        images = make_images(subject.side, 256)
        trial = replace(subject.trial, augmentation="none", probe_size=256)
        learner = Learner([trial], images, CPU)
        x_BDHW, y_BR = next(iter(Batches(images, [trial], CPU).epoch()))
        probe = Probe.on(images, learner.network, trial, steps_per_epoch=STEPS_PER_EPOCH)
        timing = alternate(
            {
                "step": lambda a=learner, x=x_BDHW, y=y_BR: a.step(x, y, lr=0.01),
                "reading": lambda p=probe: p.read(0),
            },
            repeats=repeats,
        )
        cost = timing["reading"].median / timing["step"].median
        readings = EPOCHS + len(EARLY_STEPS)
        share = readings * cost / (readings * cost + EPOCHS * STEPS_PER_EPOCH)
        rows.append(
            {
                "network": subject.name,
                "step ms": 1e3 * timing["step"].median,
                "reading in steps": cost,
                "share of training %": 100 * share,
            }
        )
    return rows
