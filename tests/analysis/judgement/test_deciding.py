from dataclasses import replace

import numpy as np
import pytest

from analysis.judgement.deciding import _describe, find_standings
from analysis.judgement.outcomes import WINDOWS
from analysis.judgement.simulation import (
    PLACEMENTS,
    Truth,
    make_reference_design,
    simulate,
    take_seeds,
)
from analysis.statistics.looks import Look
from harness.study.records import CLAIMS

LOOKS = (5, 10, 20)


@pytest.fixture
def design():
    made = make_reference_design(seeds=LOOKS[-1], depths=(8, 14, 20))
    return replace(made, plan=replace(made.plan, looks=LOOKS))


def look(design, number, effect=0.0, *, residual=0.0, **truth):
    """One grid at its look of that number, where `after` gains without skips and with them."""
    is_free_C = np.array([cell.architecture == "plain" for cell in design.cells], float)
    effect_C = effect * is_free_C + residual * (1 - is_free_C)
    flow_C = 0.3 * (effect_C > 0)
    made = Truth(
        effect_C=effect_C, flow_C=dict.fromkeys(WINDOWS, flow_C), carried=(1.0, 1.0), **truth
    )
    drawn = simulate(design, made, replicates=1, rng=np.random.default_rng(3))
    names = ("accuracy_PCS", "ran_PCS", "diverged_PCS")
    one = replace(
        drawn,
        **{name: getattr(drawn, name)[0] for name in names},
        flow_PCS={name: values[0] for name, values in drawn.flow_PCS.items()},
    )
    fractions = tuple(seeds / LOOKS[-1] for seeds in LOOKS[: number + 1])
    return take_seeds(one, LOOKS[number], Look(fractions))


def states(design, *studies):
    standings = find_standings(studies, design.plan)
    return [(one.state, one.why) for one in _describe(studies, standings, design.plan)]


def test_what_is_settled_wants_nothing_and_what_is_open_wants_all_of_its_cells(design):
    seen = look(design, 0, effect=2.0)
    (standing,) = find_standings([seen], design.plan)
    state = dict(zip(CLAIMS, states(design, seen), strict=True))
    assert state["C1"] == ("supported", "")
    assert state["C3"] == ("open", "")
    is_residual_C = seen.members(["resnet"])
    wants = dict(zip(PLACEMENTS, standing.wants_PC, strict=True))
    assert wants["before"][is_residual_C].all()
    assert wants["after"][is_residual_C].all()
    assert not wants["none"].any()


def test_a_control_goes_on_with_the_claims_it_stands_for(design):
    design = replace(design, plan=replace(design.plan, control="none"))
    seen = look(design, 0, effect=1.0)
    (standing,) = find_standings([seen], design.plan)
    wants = dict(zip(PLACEMENTS, standing.wants_PC, strict=True))
    assert (wants["none"] == wants["before"]).all()


def test_without_a_gain_there_is_no_cause_to_look_for(design):
    assert states(design, look(design, 2))[1] == ("given up", "there is no gain to explain")


def test_networks_that_learned_nothing_are_given_up(design):
    seen = look(design, 0, level=10.0, none_effect=0.0, spread=0.2)
    assert {why for state, why in states(design, seen)[:1]} == {
        "its networks learned nothing, or leave nothing to gain"
    }


def test_a_claim_is_given_up_where_the_noise_is_far_beyond_what_the_last_look_can_show(design):
    assert states(design, look(design, 1, spread=8.0))[0] == (
        "given up",
        "20 seeds would hardly settle it",
    )


def test_a_claim_of_which_cells_have_stopped_is_not_taken_up_again(design):
    seen = look(design, 1, effect=0.2, spread=2.0)
    assert states(design, seen)[0][0] == "open"
    is_there_PCS = seen.planned_PCS.copy()
    is_there_PCS[PLACEMENTS.index("none"), :, LOOKS[0] :] = False
    halted = replace(
        seen,
        planned_PCS=is_there_PCS,
        accuracy_PCS=np.where(is_there_PCS, seen.accuracy_PCS, np.nan),
        ran_PCS=seen.ran_PCS & is_there_PCS,
    )
    assert states(design, halted)[0] == (
        "given up",
        "it was settled at an earlier look, and no longer is",
    )


def test_a_study_that_stopped_is_judged_beside_one_that_goes_on(design):
    """The word of the first is that of its own, earlier look."""
    stopped = look(design, 0, effect=1.0)
    on = replace(look(design, 1, effect=1.0), norm="layer")
    standings = find_standings([stopped, on], design.plan)
    assert not standings[0].is_running_PC.any()
    assert standings[1].is_running_PC.all()
