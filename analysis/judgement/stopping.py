"""Find out what stopping at planned looks costs in errors and saves in trials, by simulation.

Grids of known truth are drawn whole, and shown look by look to the very function that a run asks
(`deciding.find_standings`): what it does not want any more is hidden from all later looks.

Legend of shape suffixes: R replicates of the grid, M claims (of one study after the other), P
placements, C cells, S seeds, K arms in cells (of one study after the other).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.comparisons import Margins
from analysis.judgement.deciding import WORDS, find_standings
from analysis.judgement.effects import SKIP_FREE
from analysis.judgement.outcomes import WINDOWS
from analysis.judgement.promises import Rate
from analysis.judgement.simulation import Truth, simulate
from analysis.statistics.looks import Look
from harness.study.records import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes
    from analysis.judgement.simulation import Design
    from harness.study.records import AnalysisPlan

USUAL_LOOKS = (5, 10, 15, 20)
"""Of a design that plans none."""
_NOISE = 8.0
"""Factor on all noise where no number of seeds in reach can settle anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How simulated runs went that stop where they are decided.

    Shapes:
        trials_R (R,); called_WRM (words of `WORDS`, R, studies * M), whether a claim was called so at
        any look; last_RM (R, studies * M), the words at the last.
    """

    trials_R: NDArray[np.intp]
    called_WRM: NDArray[np.bool_]
    last_RM: NDArray[np.str_]
    fixed: int
    """Trials without looks."""

    def calls(self, word: str, *claims: str, since: int = 0) -> NDArray[np.bool_]:
        """Was any of the claims called so at any look, in the studies from this one on? (R,)."""
        places = [CLAIMS.index(claim) for claim in claims]
        called_RM = self.called_WRM[WORDS.index(word)]
        of_study = called_RM.reshape(len(called_RM), -1, len(CLAIMS))[:, since:]
        return of_study[..., places].any((-2, -1))

    def finds_difference(self, *, since: int = 0) -> NDArray[np.bool_]:
        """Did any claim find one at any look, in the studies from this one on? (R,)."""
        called = [self.calls(word, *CLAIMS, since=since) for word in ("supported", "contradicted")]
        return called[0] | called[1]


def follow(studies: Sequence[Outcomes], plan: AnalysisPlan) -> Course:
    """Show the looks of the plan to the rule that stops cells, in every replicate of one folder."""
    looks, count = plan.looks, studies[0].accuracy_PCS.shape[0]
    shapes = [outcomes.planned_PCS.shape[:-1] for outcomes in studies]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    claims = len(studies) * len(CLAIMS)
    trials_R = np.zeros(count, int)
    called_WRM = np.zeros((len(WORDS), count, claims), bool)
    last_RM = np.full((count, claims), "inconclusive", dtype="<U32")
    everywhere_K = np.full(ends[-1], looks[0])
    # Replicates in which the same cells go on are judged together.
    groups = {everywhere_K.tobytes(): (everywhere_K, [np.arange(count)])}
    for number in range(len(looks)):
        look = Look(tuple(seeds / looks[-1] for seeds in looks[: number + 1]))
        following = groups
        groups = {}
        for seeds_K, members in following.values():
            own_R = np.concatenate(members)
            seen = [
                _show(outcomes, own_R, part_K.reshape(shape), looks[number], look)
                for outcomes, part_K, shape in zip(
                    studies, np.split(seeds_K, ends[:-1]), shapes, strict=True
                )
            ]
            standings = find_standings(seen, plan)
            word_RM = np.concatenate([standing.word_M for standing in standings], axis=-1)
            last_RM[own_R] = word_RM
            for called_RM, word in zip(called_WRM, WORDS, strict=True):
                called_RM[own_R] |= word_RM == word
            trials_R[own_R] = seeds_K.sum()
            if number + 1 == len(looks):
                continue
            wants = [(it.wants_PC & it.is_running_PC).reshape(len(own_R), -1) for it in standings]
            flat_RK = np.concatenate(wants, axis=-1)
            patterns_NK, which_R = np.unique(flat_RK, axis=0, return_inverse=True)
            for n, pattern_K in enumerate(patterns_NK):
                if pattern_K.any():
                    next_K = np.where(pattern_K, looks[number + 1], seeds_K)
                    _, joined = groups.setdefault(next_K.tobytes(), (next_K, []))
                    joined.append(own_R[which_R.reshape(-1) == n])
    fixed = sum(int(outcomes.planned_PCS.any(-1).sum()) for outcomes in studies) * looks[-1]
    return Course(trials_R=trials_R, called_WRM=called_WRM, last_RM=last_RM, fixed=fixed)


def calibrate_stopping(
    design: Design, *, replicates: int, rng: np.random.Generator
) -> tuple[Rate, ...]:
    """Error rates of the words, and trials beside the fixed design's, scenario by scenario."""
    plan = replace(design.plan, looks=design.plan.looks or USUAL_LOOKS)
    design = replace(design, seeds=plan.looks[-1], plan=plan)
    at = ", ".join(map(str, plan.looks))
    found = []
    for scenario in _find_scenarios(design):
        outcomes = simulate(design, scenario.truth, replicates=replicates, rng=rng)
        course = follow([outcomes], plan)
        share_R = course.trials_R / course.fixed
        half = 0.5 if scenario.is_clear and design.promises_power else float("nan")
        measures = [
            ("takes more trials than without looks", share_R > 1, 0.0),
            (f"takes more than half (median {np.median(share_R):.0%})", share_R > 0.5, half),
        ]
        measures += [
            (f"{', '.join(claims)} {word}", course.calls(word, *claims), 0.05)
            for word, claims in scenario.errors
        ]
        if scenario.has_no_difference:
            differs_R = course.finds_difference()
            measures.append(("any claim finds a difference where none is", differs_R, 0.05))
        found += [
            Rate(
                scenario=f"{scenario.name}, looks at {at} seeds",
                measure=measure,
                share=float(happened_R.mean()),
                low=float("nan"),
                high=high,
                replicates=replicates,
            )
            for measure, happened_R, high in measures
        ]
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenario:
    name: str
    truth: Truth
    errors: Sequence[tuple[str, Sequence[str]]] = ()
    """A word, and the claims of which it would be wrong."""
    has_no_difference: bool = False
    is_clear: bool = False
    """Is the truth such that few seeds show it?"""


def _find_scenarios(design: Design) -> Iterator[_Scenario]:
    margins = Margins.of_plan(design.plan)
    cells = design.cells
    zero_C = np.zeros(len(cells))
    is_free_C = np.array([cell.architecture in SKIP_FREE for cell in cells], float)
    deepest = max(cell.depth for cell in cells)
    is_deepest_C = np.array([cell.depth == deepest for cell in cells], float)
    null = Truth(effect_C=zero_C, flow_C=dict.fromkeys(WINDOWS, zero_C))
    yield _Scenario(
        name="a clear difference",
        truth=replace(
            null,
            effect_C=2 * margins.accuracy * is_free_C,
            flow_C=dict.fromkeys(WINDOWS, 3 * margins.flow * is_free_C),
            carried=(1.0, 1.0),
        ),
        errors=[
            ("contradicted", CLAIMS),
            ("equivalent", ("C1", "C2", "C5")),
        ],
        is_clear=True,
    )
    yield _Scenario(
        name="no difference, little noise",
        truth=replace(null, spread=0.5),
        has_no_difference=True,
        is_clear=True,
    )
    yield _Scenario(name="no difference", truth=null, has_no_difference=True)
    for size in (1.0, 1.5):
        yield _Scenario(
            name=f"one depth off by {size:g} margin{'s' * (size != 1)}",
            truth=replace(
                null,
                effect_C=size * margins.accuracy * is_deepest_C,
                flow_C=dict.fromkeys(WINDOWS, size * margins.flow * is_deepest_C),
            ),
            errors=[("equivalent", ("C1", "C3", "C4"))],
        )
    yield _Scenario(
        name="no difference, too much noise for any number of seeds",
        truth=replace(null, spread=_NOISE),
        has_no_difference=True,
    )


def _show(
    outcomes: Outcomes,
    own_R: NDArray[np.intp],
    seeds_PC: NDArray[np.intp],
    seeds: int,
    look: Look,
) -> Outcomes:
    """These replicates as far as they were trained, `seeds` where most."""
    is_there_PCS = np.arange(seeds) < seeds_PC[..., None]

    def hide(values_PCS: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(is_there_PCS, values_PCS[own_R][..., :seeds], np.nan)

    return replace(
        outcomes,
        seeds=outcomes.seeds[:seeds],
        accuracy_PCS=hide(outcomes.accuracy_PCS),
        flow_PCS={name: hide(values_PCS) for name, values_PCS in outcomes.flow_PCS.items()},
        ran_PCS=outcomes.ran_PCS[own_R][..., :seeds] & is_there_PCS,
        diverged_PCS=outcomes.diverged_PCS[own_R][..., :seeds] & is_there_PCS,
        planned_PCS=outcomes.planned_PCS[..., :seeds] & is_there_PCS,
        wall_time_PCS=outcomes.wall_time_PCS[..., :seeds],
        look=look,
    )
