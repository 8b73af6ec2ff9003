"""Draw grids whose truth is known, many at once, as outcomes that the verdicts judge like real ones.

Legend of shape suffixes: R replicates of the grid, P placements, C cells, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.effects import AFTER_AS_BEFORE, BEFORE_AS_AFTER
from analysis.judgement.outcomes import WINDOWS, Cell, Outcomes
from analysis.judgement.studies import frame_studies, name_ingredients
from analysis.statistics.contrasts import cell_moments
from analysis.statistics.looks import Look
from harness.study.records import AnalysisPlan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

PLACEMENTS = ("before", "after", "none", AFTER_AS_BEFORE, BEFORE_AS_AFTER)
_BEFORE, _AFTER, _NONE, _AFTER_AS_BEFORE, _BEFORE_AS_AFTER = range(len(PLACEMENTS))
REFERENCE_SEEDS = 5
REFERENCE_SD = 0.25  # percentage points, of a paired difference
CHANCE = 10.0  # percent: the accuracy of guessing
_TYPICAL = 90.0  # percent: the accuracy of `before`


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A grid to simulate: what is planned, and how widely outcomes spread.

    Shapes:
        sd_C, flow_sd_C: (C,), standard deviation of a paired difference in each cell; block_C
        (C,), equal where cells share their block seeds.
    Units:
        sd_C in percentage points, flow_sd_C in log10.
    """

    cells: tuple[Cell, ...]
    seeds: int
    sd_C: NDArray[np.float64]
    flow_sd_C: NDArray[np.float64]
    block_C: NDArray[np.intp]
    plan: AnalysisPlan
    name: str = "reference design"
    promises_power: bool = False
    """Of a design as large and as quiet as the reference; elsewhere power is what it gives."""


def make_reference_design(
    *,
    seeds: int = REFERENCE_SEEDS,
    depths: Sequence[int] = (8, 14, 20, 26),
    sd: float = REFERENCE_SD,
    flow_sd: float = 0.03,
) -> Design:
    """Two families at a few depths, all cells equally noisy."""
    cells = tuple(
        Cell(architecture=architecture, depth=depth)
        for architecture in ("plain", "resnet")
        for depth in depths
    )
    return Design(
        cells=cells,
        seeds=seeds,
        sd_C=np.full(len(cells), sd),
        flow_sd_C=np.full(len(cells), flow_sd),
        block_C=np.arange(len(cells)),
        plan=AnalysisPlan(grid="reference"),
        promises_power=seeds >= REFERENCE_SEEDS and sd <= REFERENCE_SD,
    )


def find_design(outcomes: Outcomes, plan: AnalysisPlan) -> Design | None:
    """The design of a real study, with the spreads it was seen to have.

    A cell in which no spread could be estimated takes the median of the others; None if there is
    none at all, or if `after` and `before` are not both in the study.
    """
    is_planned_C = np.asarray(outcomes.are_planned("after", "before").any(-1))
    if not is_planned_C.any():
        return None
    spreads = []
    for quantity in ("accuracy", "whole"):
        diff_CS = outcomes.difference(quantity, "after", "before")[is_planned_C]
        pairs_C, _, deviation_CS = cell_moments(diff_CS)
        variance_C = (deviation_CS**2).sum(-1) / np.maximum(pairs_C - 1, 1)
        sd_C = np.sqrt(np.maximum(variance_C, outcomes.floor(quantity)))
        if not (pairs_C >= 2).any():
            return None
        spreads.append(np.where(pairs_C >= 2, sd_C, np.median(sd_C[pairs_C >= 2])))
    own = frame_studies([outcomes])
    return Design(
        cells=tuple(outcomes.cells[c] for c in np.flatnonzero(is_planned_C)),
        seeds=len(outcomes.seeds),
        sd_C=spreads[0],
        flow_sd_C=spreads[1],
        block_C=outcomes.block_C[is_planned_C],
        plan=plan,
        name=", ".join(
            filter(None, (f"{outcomes.dataset} {outcomes.recipe}", *name_ingredients(own)))
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true in a scenario, beyond the design.

    Shapes:
        effect_C: (C,), of `after` over `before`; flow_C the same in each window.
    Units:
        Effects in percentage points, flow in log10, probabilities per trial.
    """

    effect_C: NDArray[np.float64]
    flow_C: Mapping[str, NDArray[np.float64]]
    none_effect: float = -3.0
    """Of `none` over `before`, everywhere: the difference that is known to exist."""
    carried: tuple[float, float] = (0.0, 0.0)
    """Share of the effect that goes with the step sizes: of `after` with the steps of `before`,
    and of `before` with the steps of `after`."""
    level: float = _TYPICAL
    spread: float = 1.0
    """Factor on all noise of accuracy."""
    divergence: Mapping[str, float] = field(default_factory=dict)
    """Placement -> probability that a trial diverges, apart from the others."""
    collapse: float = 0.0
    """Probability that `none` learns nothing."""
    missing: float = 0.0
    """Probability that a trial is lost."""


def simulate(
    design: Design, truth: Truth, *, replicates: int, rng: np.random.Generator
) -> Outcomes:
    """Draw `replicates` grids: every placement of a block shares its luck, trials add their own."""
    shape = (replicates, len(PLACEMENTS), len(design.cells), design.seeds)
    block_shape = (replicates, 1, *shape[2:])
    # A difference of two trials has sqrt(2) times the spread of one.
    sd_C1 = truth.spread * design.sd_C[:, None] / np.sqrt(2)
    flow_sd_C1 = design.flow_sd_C[:, None] / np.sqrt(2)
    accuracy_PCS = truth.level + (rng.normal(size=block_shape) + rng.normal(size=shape)) * sd_C1
    accuracy_PCS[:, _AFTER] += truth.effect_C[:, None]
    accuracy_PCS[:, _NONE] += truth.none_effect
    accuracy_PCS[:, _AFTER_AS_BEFORE] += (1 - truth.carried[0]) * truth.effect_C[:, None]
    accuracy_PCS[:, _BEFORE_AS_AFTER] += truth.carried[1] * truth.effect_C[:, None]
    accuracy_PCS = np.minimum(accuracy_PCS, 100.0)
    is_collapsed_RCS = rng.random((replicates, *shape[2:])) < truth.collapse
    accuracy_PCS[:, _NONE] = np.where(is_collapsed_RCS, CHANCE, accuracy_PCS[:, _NONE])

    flow_PCS = {}
    for window in WINDOWS:
        noise = rng.normal(size=block_shape) + rng.normal(size=shape)
        flow_PCS[window] = noise * flow_sd_C1
        flow_PCS[window][:, _AFTER] += truth.flow_C[window][:, None]

    has_run_PCS = rng.random(shape) >= truth.missing
    risk_P11 = np.array([truth.divergence.get(name, 0.0) for name in PLACEMENTS])[:, None, None]
    has_diverged_PCS = (rng.random(shape) < risk_P11) & has_run_PCS
    is_finished_PCS = has_run_PCS & ~has_diverged_PCS
    return Outcomes(
        dataset="simulated",
        recipe="common",
        cells=design.cells,
        placements=PLACEMENTS,
        seeds=tuple(range(design.seeds)),
        block_C=design.block_C,
        accuracy_PCS=np.where(is_finished_PCS, accuracy_PCS, np.nan),
        flow_PCS={
            window: np.where(is_finished_PCS, values_PCS, np.nan)
            for window, values_PCS in flow_PCS.items()
        },
        ran_PCS=has_run_PCS,
        diverged_PCS=has_diverged_PCS,
        planned_PCS=np.ones(shape[1:], bool),
        wall_time_PCS=np.ones(shape[1:]),
        chance=CHANCE,
        images=10_000,
        graft_errors={AFTER_AS_BEFORE: 0.0, BEFORE_AS_AFTER: 0.0},
    )


def take_seeds(outcomes: Outcomes, seeds: int, look: Look) -> Outcomes:
    """The same grids when only the first seeds had been trained."""
    return replace(
        outcomes,
        seeds=outcomes.seeds[:seeds],
        accuracy_PCS=outcomes.accuracy_PCS[..., :seeds],
        flow_PCS={name: values[..., :seeds] for name, values in outcomes.flow_PCS.items()},
        ran_PCS=outcomes.ran_PCS[..., :seeds],
        diverged_PCS=outcomes.diverged_PCS[..., :seeds],
        planned_PCS=outcomes.planned_PCS[..., :seeds],
        wall_time_PCS=outcomes.wall_time_PCS[..., :seeds],
        look=look,
    )
