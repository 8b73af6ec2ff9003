"""What only a CUDA device can show: run with `pytest -m gpu tests/harness/test_gpu.py`."""

from __future__ import annotations

import math
from dataclasses import asdict
from unittest import mock

import pytest
import torch

from harness.study.trials import PROGRAMS
from harness.training import train
from harness.training.images import Batches, load_images
from harness.training.learner import CapturedSteps, Learner
from harness.training.train import prepare_worker, train_pack
from tests.harness.training.test_train import content

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


@pytest.mark.parametrize(
    "settings",
    [
        *({"architecture": name, "placement": "after"} for name in PROGRAMS),
        {"architecture": "plain", "placement": "before", "flow": "after"},
        {"architecture": "resnet", "pack_size": 3, "augmentation": "crop-flip"},
        {"architecture": "resnet", "precision": "bfloat16", "label_smoothing": 0.1},
        {"architecture": "vgg", "memory_format": "contiguous"},
        {"architecture": "mlp", "placement": "none", "momentum": 0.0},
        {"architecture": "resnet", "norm": "layer", "activation": "gelu", "pack_size": 2},
        {"architecture": "plain", "norm": "instance", "activation": "leaky_relu"},
        {"architecture": "plain", "flow": "after", "optimizer": "adamw", "lr": 0.003},
        {"architecture": "resnet", "pack_size": 3, "optimizer": "adamw", "train_images": 500},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_captured_steps_leave_the_rows_of_plain_ones(trial_of, digits, settings):
    trial = trial_of(**settings)
    captured, plain = (
        train_pack([trial], digits, device=CUDA, captured=captured)[0] for captured in (True, False)
    )
    assert content(captured) == content(plain)


def test_a_step_is_captured_once(trial_of, digits):
    graphs = mock.patch.object(torch.cuda, "CUDAGraph", wraps=torch.cuda.CUDAGraph)
    with graphs as made:
        train_pack([trial_of("resnet")], digits, device=CUDA)
        assert made.call_count == 1
        train_pack([trial_of("resnet")], digits, device=CUDA, captured=False)
        assert made.call_count == 1


def test_the_memory_of_a_graph_is_given_back(trial_of, digits):
    train_pack([trial_of("resnet")], digits, device=CUDA)
    before = torch.cuda.memory_allocated()
    for seed in range(3):
        train_pack([trial_of("resnet", seed=seed)], digits, device=CUDA)
    assert torch.cuda.memory_allocated() <= before


def test_trials_in_parallel_branches_get_the_bits_they_get_alone(trial_of, digits):
    trials = [trial_of("resnet", "after", seed=seed) for seed in range(4)]
    batches = [list(Batches(digits, [trial], CUDA).epoch()) for trial in trials]
    together = [Learner([trial], digits, CUDA) for trial in trials]
    record = CapturedSteps(together, [of_learner[0] for of_learner in batches])
    for at_once in zip(*batches, strict=True):
        for learner in together:
            learner.set_rate(0.1)
        record(at_once)
    for learner, trial, of_learner in zip(together, trials, batches, strict=True):
        alone = Learner([trial], digits, CUDA, captured=False)
        for batch in of_learner:
            alone.step(*batch, lr=0.1)
        for ours, theirs in zip(learner.written(), alone.written(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize(("augmentation", "optimizer"), [("none", "sgd"), ("crop-flip", "adamw")])
def test_the_loop_never_waits_for_the_device(trial_of, digits, augmentation, optimizer, captured):
    """From the second batch of a trial on, epoch by epoch, nothing reads from the device."""

    class Watched(Batches):
        def epoch(self):
            batches = super().epoch()
            yield next(batches)  # with the first one the step is recorded, which waits
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield from batches
            finally:
                torch.cuda.set_sync_debug_mode("default")

    with mock.patch.object(train, "Batches", Watched):
        settings = {"augmentation": augmentation, "optimizer": optimizer, "snr_batches": 2}
        trial = trial_of("plain", "after", flow="before", **settings)
        (rows,) = train_pack([trial], digits, device=CUDA, captured=captured)
    assert rows.trial.status == "done"
