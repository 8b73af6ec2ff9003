"""Statistics of paired comparisons: arrays in, numbers out, with numpy and scipy alone.

Take the folder elsewhere and it works. In go paired differences or counts; out come estimates,
intervals, p-values and plans. Read in any order::

    contrasts     weighted sums of cell means, their t tests and equivalence tests
    proportions   how much more often one of a pair fails
    resampling    sign flips, ranks
    multiplicity  many tests: Holm; Benjamini and Hochberg
    looks         many looks: alpha spending, repeated p-values and intervals
    power         what so many pairs can show, and how many it takes
    layers        many layers of a network to one number
"""

from analysis.statistics.contrasts import (
    Contrast,
    cell_moments,
    estimate_cells,
    estimate_contrast,
    mean_weights,
    trend_weights,
    twin_weights,
)
from analysis.statistics.layers import summarise_layers
from analysis.statistics.looks import ONLY_LOOK, Look, find_bounds
from analysis.statistics.multiplicity import benjamini_hochberg, holm, holm_level
from analysis.statistics.power import (
    detectable_difference,
    pairs_needed,
    pairs_needed_to_equate,
    sd_upper_bound,
    seeds_needed_to_decide,
    seeds_needed_to_settle,
    t_power,
    tost_power,
)
from analysis.statistics.proportions import RiskDifference, mcnemar_test
from analysis.statistics.resampling import (
    hodges_lehmann,
    sign_flip_floor,
    sign_flip_tails,
    sign_flip_test,
    signed_rank_test,
    superiority,
)

__all__ = [
    "ONLY_LOOK",
    "Contrast",
    "Look",
    "RiskDifference",
    "benjamini_hochberg",
    "cell_moments",
    "detectable_difference",
    "estimate_cells",
    "estimate_contrast",
    "find_bounds",
    "hodges_lehmann",
    "holm",
    "holm_level",
    "mcnemar_test",
    "mean_weights",
    "pairs_needed",
    "pairs_needed_to_equate",
    "sd_upper_bound",
    "seeds_needed_to_decide",
    "seeds_needed_to_settle",
    "sign_flip_floor",
    "sign_flip_tails",
    "sign_flip_test",
    "signed_rank_test",
    "summarise_layers",
    "superiority",
    "t_power",
    "tost_power",
    "trend_weights",
    "twin_weights",
]
