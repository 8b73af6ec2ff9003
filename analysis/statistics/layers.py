"""Summarise the layers of a reading by three numbers: their mean, the first, the fall over them.

Legend of shape suffixes: L rows, one per (reading, layer), G readings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

SMALLEST = 2.0**-126
"""The smallest normal float32: a gradient norm below it has vanished and is replaced by it."""


def summarise_layers(
    value_L: NDArray[np.float64], layer_L: NDArray[np.integer], reading_L: NDArray[np.integer]
) -> Mapping[str, NDArray[np.float64]]:
    """The log10 of each reading over its layers: "mean", "first" and "fall" (first minus last).

    Zero means that the gradient vanished, and counts as the smallest number; one NaN makes its
    whole reading NaN.

    Shapes:
        All (L,); `reading_L` numbers the readings from 0. Results (G,).
    Units:
        log10 of the unit of the values. The fall is that of the least-squares line over the layers.
    """
    log_L = np.log10(np.maximum(value_L, SMALLEST, where=~np.isnan(value_L), out=value_L.copy()))
    log_L = np.where(np.isfinite(value_L), log_L, np.nan)
    count_G = np.bincount(reading_L)
    mean_G = np.bincount(reading_L, log_L) / count_G
    first_L = np.lexsort((layer_L, reading_L))
    first_G = np.full(len(count_G), np.nan)
    first_G[reading_L[first_L][::-1]] = log_L[first_L][::-1]  # the lowest layer is written last
    center_G = np.bincount(reading_L, layer_L) / count_G
    offset_L = layer_L - center_G[reading_L]
    spread_G = np.bincount(reading_L, offset_L**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope_G = np.bincount(reading_L, offset_L * log_L) / spread_G
    return {"mean": mean_G, "first": first_G, "fall": -slope_G * (count_G - 1)}
