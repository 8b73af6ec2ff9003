"""Calibration and accuracy per class against twins that count image by image."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.training.folding import Folding
from harness.training.quality import (
    BINS,
    Quality,
    examine,
    measure_calibration,
    measure_class_accuracy,
)


def drawn(images=400, replicas=3, classes=5, seed=0):
    """Logits of some skill, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    y_N = torch.randint(classes, (images,), generator=generator)
    logits_NRK = 2 * torch.randn(images, replicas, classes, generator=generator)
    logits_NRK[torch.arange(images), :, y_N] += 1.5
    return logits_NRK, y_N, logits_NRK.argmax(-1) == y_N[:, None]


def count_calibration(logits_NK, correct_N):
    """Guo et al.'s eq. 3, bin by bin."""
    power_NK = np.exp(logits_NK)
    confidence_N = (power_NK / power_NK.sum(1, keepdims=True)).max(1)
    error = 0.0
    for number in range(1, BINS + 1):
        is_in = (confidence_N > (number - 1) / BINS) & (confidence_N <= number / BINS)
        if is_in.any():
            gap = abs(correct_N[is_in].mean() - confidence_N[is_in].mean())
            error += is_in.sum() / len(correct_N) * gap
    return error


def test_the_calibration_error_is_that_of_a_count_bin_by_bin():
    logits_NRK, _, correct_NR = drawn()
    measured = measure_calibration(logits_NRK, correct_NR).tolist()
    for replica, error in enumerate(measured):
        counted = count_calibration(
            logits_NRK[:, replica].double().numpy(), correct_NR[:, replica].numpy()
        )
        assert error == pytest.approx(counted, rel=1e-12)
    assert min(measured) > 0.01


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """Right at 3/15 and wrong just above: in one bin the two would make up for each other."""
    logits_NRK = torch.zeros(2, 1, 5, dtype=torch.float64)
    logits_NRK[1, 0, 0] = 1e-9
    error = measure_calibration(logits_NRK, torch.tensor([[True], [False]]))
    assert error.item() == pytest.approx((0.8 + 0.2) / 2)
    logits_NRK[0, 0, 0] = 1e-3  # now both are above
    error = measure_calibration(logits_NRK, torch.tensor([[True], [False]]))
    assert error.item() == pytest.approx((0.8 - 0.2) / 2, abs=1e-3)


@pytest.mark.parametrize("logit", [0.0, 800.0])
def test_a_network_as_sure_as_it_is_right_has_no_calibration_error(logit):
    logits_NRK = torch.tensor([[[logit, 0.0]]] * 4)
    correct_NR = torch.tensor([[True], [True], [logit > 0], [logit > 0]])
    assert measure_calibration(logits_NRK, correct_NR).item() == pytest.approx(0, abs=1e-12)


def test_the_accuracy_of_a_class_is_the_share_right_of_its_images():
    _, y_N, correct_NR = drawn()
    y_N[y_N == 3] = 2
    measured_RK = measure_class_accuracy(correct_NR, y_N, classes=5)
    for replica in range(3):
        for of_class in (0, 1, 2, 4):
            counted = correct_NR[y_N == of_class, replica].double().mean()
            assert measured_RK[replica, of_class].item() == pytest.approx(counted.item())
    assert measured_RK[:, 3].isnan().all(), "a class without an image has no accuracy"


def test_each_replica_gets_its_own_numbers():
    logits_NRK, y_N, correct_NR = drawn()
    folding = Folding(0.5, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.25, 0.5]))
    together = examine(logits_NRK, correct_NR, y_N, folding)
    for replica, quality in enumerate(together):
        own = slice(replica, replica + 1)
        (alone,) = examine(
            logits_NRK[:, own],
            correct_NR[:, own],
            y_N,
            Folding(0.5, folding.error_R[own], folding.flips_R[own]),
        )
        assert replace(quality, calibration_error=0) == replace(alone, calibration_error=0)
        assert quality.calibration_error == pytest.approx(alone.calibration_error, rel=1e-12)
    assert [quality.folding_flips for quality in together] == [0.0, 0.25, 0.5]
    per_class = np.frombuffer(together[1].class_accuracy)
    assert per_class == pytest.approx(measure_class_accuracy(correct_NR, y_N, classes=5)[1])


def test_a_diverged_trial_has_none_of_them():
    missing = Quality()
    assert missing.class_accuracy == b""
    numbers = (missing.calibration_error, missing.folding_error, missing.folding_flips)
    assert all(map(math.isnan, (*numbers, missing.folded_norms)))
