"""Forecast over measured time of short trainings: ahead of any, and once the first is finished."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harness.cluster.forecast import Forecast, guess_seconds
from harness.study.trials import EVERY_PROGRAM, Trial
from harness.training.images import Images, load_images
from harness.training.train import prepare_worker, train_pack

NETWORKS = (
    ("mlp", 4, 1.0),
    ("vgg", 11, 0.25),
    ("plain", 8, 0.5),
    ("plain", 20, 0.5),
    ("resnet", 8, 1.0),
    ("resnet", 20, 0.5),
    ("preresnet", 20, 0.5),
    ("densenet", 40, 1.0),
    ("torchvision/resnet18", 18, 1.0),
)

DATASETS = {
    "digits": "digits",
    "small": "synthetic:1x8x8x4x400",
    "like fashion": "synthetic:1x28x28x10x1000",
    "like cifar": "synthetic:3x32x32x10x1000",
}


def measure_forecast() -> list[dict[str, Any]]:
    """Forecast over measured for each network and data set; below, over every choice of the first.

    A trial that is finished scales the forecast of all others: how well that does depends on
    which one is first, so each of them is tried.
    """
    prepare_worker(threads=1)
    ratios: dict[tuple[str, str], float] = {}
    trials: dict[tuple[str, str], tuple[Trial, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for title, dataset in DATASETS.items():
            images = load_images(dataset, Path(root))
            for architecture, depth, width in NETWORKS:
                trial = _make_trial(dataset, architecture, depth, width)
                cell = f"{architecture}-{depth}", title
                trials[cell] = trial, _train(trial, images)
                ratios[cell] = guess_seconds(trial) / trials[cell][1]
    rows = [
        {"forecast over measured": network} | {title: ratios[network, title] for title in DATASETS}
        for network in dict.fromkeys(network for network, _ in ratios)
    ]
    factors = sorted(
        max(over, 1 / over)
        for first in trials.values()
        for over in _compare(first, trials.values())
    )
    quantiles = {f"{q:.0%}": factors[int(q * (len(factors) - 1))] for q in (0.5, 0.9, 0.95, 1.0)}
    columns = dict(zip(DATASETS, (f"{k}: {v:.2f}" for k, v in quantiles.items()), strict=True))
    return [*rows, {"forecast over measured": "off by, once one is finished"} | columns]


def _compare(first: tuple[Trial, float], trials: Any) -> list[float]:
    """Forecast over measured of every other trial, when `first` is finished."""
    forecast = Forecast()
    forecast.note(*first)
    return [forecast.seconds(trial) / took for trial, took in trials if trial != first[0]]


def _make_trial(dataset: str, architecture: str, depth: int, width: float) -> Trial:
    return Trial(
        dataset=dataset,
        architecture=architecture,
        placement="before",
        program=EVERY_PROGRAM[architecture]["before"],
        depth=depth,
        width_factor=width,
        seed=0,
        epochs=1,
        warmup_epochs=0.0,
        batch_size=64,
        augmentation="none",
        probe_size=32,
    )


def _train(trial: Trial, images: Images) -> float:
    """Seconds of one core: what others do on the machine is not the forecast's to know."""
    begun = time.process_time()
    train_pack([trial], images, device=torch.device("cpu"))
    return time.process_time() - begun
