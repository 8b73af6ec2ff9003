"""What only a CUDA device can show: run with `pytest -m gpu tests/harness/test_gpu.py`."""

from __future__ import annotations

import math
from dataclasses import asdict
from unittest import mock

import pytest
import torch

from harness import train
from harness.datasets import Batches, load_images
from harness.train import prepare_worker, train_pack
from harness.trials import PROGRAMS

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def digits():
    prepare_worker(threads=1)
    return load_images("digits")


@pytest.mark.parametrize("architecture", PROGRAMS)
def test_every_arm_trains_on_the_gpu(trial_of, digits, architecture):
    for placement in PROGRAMS[architecture]:
        trial = trial_of(architecture, placement, epochs=1, lr=0.01)
        (rows,) = train_pack([trial], digits, device=CUDA)
        assert rows.trial.status == "done"
        assert rows.trial.device_kind == "cuda"
        assert rows.trial.driver
        assert rows.trial.peak_memory > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_trial_gives_the_same_bits(trial_of, digits, precision):
    trial = trial_of("resnet", "after", precision=precision)
    first, again = (train_pack([trial], digits, device=CUDA)[0] for _ in range(2))
    assert first.trial.test_correct == again.trial.test_correct
    assert [repr(asdict(row)) for row in first.gradients] == [
        repr(asdict(row)) for row in again.gradients
    ]


def test_a_gpu_starts_where_a_cpu_starts(trial_of, digits):
    trial = trial_of("plain", "before", epochs=1)
    here, there = (
        train_pack([trial], digits, device=device)[0] for device in (torch.device("cpu"), CUDA)
    )
    for row, other in zip(here.gradients, there.gradients, strict=True):
        if row.step == 0:
            assert math.isclose(row.actgrad_total, other.actgrad_total, rel_tol=1e-3)


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_the_loop_never_waits_for_the_device(trial_of, digits, augmentation):
    """From the first batch of an epoch to its last nothing reads from the device."""

    class Watched(Batches):
        def epoch(self):
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield from super().epoch()
            finally:
                torch.cuda.set_sync_debug_mode("default")

    with mock.patch.object(train, "Batches", Watched):
        trial = trial_of("resnet", "after", augmentation=augmentation, snr_batches=2)
        (rows,) = train_pack([trial], digits, device=CUDA)
    assert rows.trial.status == "done"
