"""What one asks of a trained classifier beside its accuracy, from the logits of the test part.

Shapes (letters of this module):
    N images, R replicas, K classes, M bins of confidence
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from harness.training.folding import Folding

BINS = 15


@dataclass(frozen=True, slots=True)
class Quality:
    """The columns of `Outcome` of the same names; without arguments those of a diverged trial."""

    calibration_error: float = math.nan
    class_accuracy: bytes = b""
    folded_norms: float = math.nan
    folding_error: float = math.nan
    folding_flips: float = math.nan


def examine(logits_NRK: Tensor, correct_NR: Tensor, y_N: Tensor, folding: Folding) -> list[Quality]:
    """The quality of each replica, copied to the host once."""
    columns_RX = torch.cat(
        [
            measure_calibration(logits_NRK, correct_NR)[:, None],
            folding.error_R.double()[:, None],
            folding.flips_R.double()[:, None],
            measure_class_accuracy(correct_NR, y_N, classes=logits_NRK.shape[-1]),
        ],
        dim=1,
    )
    return [
        Quality(
            calibration_error=calibration,
            class_accuracy=struct.pack(f"<{len(classes)}d", *classes),
            folded_norms=folding.folded,
            folding_error=error,
            folding_flips=flips,
        )
        for calibration, error, flips, *classes in columns_RX.tolist()
    ]


def measure_calibration(logits_NRK: Tensor, correct_NR: Tensor) -> Tensor:
    """Expected calibration error (R,): how far confidence is from the share right, over its bins.

    A bin holds its upper edge and not its lower one.

    Source:
        Guo et al. 2017, arXiv:1706.04599, eq. 2 and 3.
    """
    confidence_NR = functional.softmax(logits_NRK.double(), dim=-1).amax(-1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits_NRK.device)
    bin_NR = torch.bucketize(confidence_NR, edges[1:-1])
    is_in_MNR = bin_NR == torch.arange(BINS, device=bin_NR.device)[:, None, None]
    # Not scattered: on a GPU the order of a scattered sum, and so its last bits, would be chance.
    excess_MR = (is_in_MNR * (correct_NR.double() - confidence_NR)).sum(1)
    return excess_MR.abs().sum(0) / len(correct_NR)


def measure_class_accuracy(correct_NR: Tensor, y_N: Tensor, *, classes: int) -> Tensor:
    """Share right of each class (R, K); NaN where a class has no image."""
    is_of_NK = functional.one_hot(y_N, classes).double()
    return correct_NR.double().T @ is_of_NK / is_of_NK.sum(0)
