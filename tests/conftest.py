"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

from harness.study.trials import PROGRAMS, Trial

settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def trial_of() -> Callable[..., Trial]:
    """Make a trial small enough to train in a test: digits, narrow, short."""

    def make(architecture: str = "resnet", placement: str = "before", **settings: object) -> Trial:
        small = {
            "program": PROGRAMS[architecture][placement],
            "depth": {"mlp": 3, "vgg": 11, "densenet": 16}.get(architecture, 8),
            "seed": 0,
            "dataset": "digits",
            "width_factor": 0.25,
            "epochs": 2,
            "batch_size": 128,
            "warmup_epochs": 0.5,
            "augmentation": "none",
            "probe_size": 64,
        }
        return Trial(architecture=architecture, placement=placement, **(small | settings))

    return make
