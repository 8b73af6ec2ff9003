"""Find out how often verdicts err where several studies are read side by side.

One family holds the claims of all studies, so that "is it batch norm, or any norm?" may be asked of
many norms without finding a difference by chance in one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.comparisons import Margins
from analysis.judgement.effects import SKIP_FREE
from analysis.judgement.evidence import call, weigh
from analysis.judgement.outcomes import WINDOWS
from analysis.judgement.promises import Rate, list_looks
from analysis.judgement.simulation import Design, Truth, simulate, take_seeds
from analysis.judgement.stopping import follow
from analysis.statistics.looks import ONLY_LOOK, Look
from harness.study.records import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MEASURE = "any claim of a study without an effect finds a difference"
_BAR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenario:
    name: str
    gaining: int = 0
    """Studies, from the first, in which `after` gains where there are no skips."""
    looks: Sequence[int] = ()
    """Seeds at each look; empty: once, at the end."""


def calibrate_together(
    designs: Sequence[Design], *, replicates: int, rng: np.random.Generator
) -> tuple[Rate, ...]:
    """Judge simulated studies of these designs as one family, of which some have no effect."""
    count, seeds = len(designs), max(design.seeds for design in designs)
    looks = list_looks(seeds)
    scenarios = [
        _Scenario(name=f"no effect in any of {count} studies"),
        _Scenario(name=f"an effect in the first of {count} studies alone", gaining=1),
    ]
    if len(looks) > 1:
        name = f"no effect in any of {count} studies, {len(looks)} looks"
        scenarios.append(_Scenario(name=name, looks=looks))
    found = []
    for scenario in scenarios:
        errs_R = _find_errors(designs, scenario, replicates=replicates, rng=rng)
        found.append(
            Rate(
                scenario=scenario.name,
                measure=MEASURE,
                share=float(errs_R.mean()),
                low=float("nan"),
                high=_BAR,
                replicates=replicates,
            )
        )
    return tuple(found)


def calibrate_stopping_together(
    designs: Sequence[Design], *, replicates: int, rng: np.random.Generator
) -> tuple[Rate, ...]:
    """The same where seeds are added at the planned looks, only where a claim of a study is open.

    The designs are those of one folder, and have its looks.
    """
    plan = designs[0].plan
    designs = [replace(design, seeds=plan.looks[-1]) for design in designs]
    found = []
    for gaining, which in enumerate(("no effect in any", "an effect in the first alone")):
        drawn = [
            simulate(design, _truth_of(design, gains=n < gaining), replicates=replicates, rng=rng)
            for n, design in enumerate(designs)
        ]
        errs_R = follow(drawn, plan).finds_difference(since=gaining)
        found.append(
            Rate(
                scenario=f"{which} of {len(designs)} studies, stopped where decided",
                measure=MEASURE,
                share=float(errs_R.mean()),
                low=float("nan"),
                high=_BAR,
                replicates=replicates,
            )
        )
    return tuple(found)


def _find_errors(
    designs: Sequence[Design], scenario: _Scenario, *, replicates: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """In which replicates a word tells of a difference that does not exist, at any look: (R,)."""
    drawn = [
        simulate(
            design, _truth_of(design, gains=n < scenario.gaining), replicates=replicates, rng=rng
        )
        for n, design in enumerate(designs)
    ]
    most = max(design.seeds for design in designs)
    looks = scenario.looks or [most]
    errs_R = np.zeros(replicates, bool)
    for number, seeds in enumerate(looks):
        fractions = tuple(look / most for look in looks[: number + 1])
        look = Look(fractions) if scenario.looks else ONLY_LOOK
        weighed = [
            weigh(
                take_seeds(outcomes, seeds, look),
                margins=Margins.of_plan(design.plan),
                alpha=design.plan.alpha,
                control=design.plan.control,
            )
            for outcomes, design in zip(drawn, designs, strict=True)
        ]
        word_RM = call(weighed, alpha=designs[0].plan.alpha).word_M
        without_RM = word_RM[:, scenario.gaining * len(CLAIMS) :]
        errs_R |= np.isin(without_RM, ("supported", "contradicted")).any(-1)
    return errs_R


def _truth_of(design: Design, *, gains: bool) -> Truth:
    """Nothing at all, or what the paper says, of twice the margin."""
    zero_C = np.zeros(len(design.cells))
    truth = Truth(effect_C=zero_C, flow_C=dict.fromkeys(WINDOWS, zero_C))
    if not gains:
        return truth
    is_free_C = np.array([cell.architecture in SKIP_FREE for cell in design.cells], float)
    margins = Margins.of_plan(design.plan)
    return replace(
        truth,
        effect_C=2 * margins.accuracy * is_free_C,
        flow_C=dict.fromkeys(WINDOWS, 2 * margins.flow * is_free_C),
        carried=(1.0, 1.0),
    )
