from dataclasses import replace

import numpy as np
import pytest

from analysis.judgement import stopping as module
from analysis.judgement.outcomes import WINDOWS
from analysis.judgement.simulation import PLACEMENTS, Truth, make_reference_design, simulate
from analysis.judgement.stopping import calibrate_stopping, follow
from analysis.statistics.looks import Look
from harness.study.records import CLAIMS

REPLICATES = 400


def rng(seed=0):
    return np.random.default_rng(seed)


def design(looks=(5, 10, 15, 20)):
    reference = make_reference_design(seeds=looks[-1])
    return replace(reference, plan=replace(reference.plan, looks=looks))


def of(rates, scenario, measure):
    (found,) = [r for r in rates if r.scenario.startswith(scenario) and measure in r.measure]
    return found


def test_words_keep_their_bars_and_clear_truths_take_half_the_trials():
    """Shares of 400 grids: 0.05 + 3 * sqrt(0.05 * 0.95 / 400) = 8.3 %; a median, 50 + 7.5 %."""
    rates = calibrate_stopping(make_reference_design(), replicates=REPLICATES, rng=rng())
    assert [rate for rate in rates if not rate.is_kept] == []
    for scenario in ("a clear difference", "no difference, little noise"):
        assert of(rates, scenario, "more than half").high == 0.5
    assert all(of(rates, r.scenario, "more trials than").share == 0 for r in rates)


@pytest.mark.slow
@pytest.mark.parametrize("looks", [(5, 10, 15, 20), (4, 8, 12, 16, 20), (3, 5, 8, 10)])
def test_words_keep_their_bars_with_other_looks(looks):
    """Of 1,000 grids: 5 + 2.1 %."""
    rates = calibrate_stopping(design(looks), replicates=1_000, rng=rng(1))
    assert [rate for rate in rates if not rate.is_kept and "half" not in rate.measure] == []


@pytest.mark.slow
def test_levels_without_regard_to_the_looks_err_more_than_twice_as_often(monkeypatch):
    made = design(tuple(range(3, 16)))
    zero_C = np.zeros(len(made.cells))
    truth = Truth(effect_C=zero_C, flow_C=dict.fromkeys(WINDOWS, zero_C), spread=8.0)
    drawn = simulate(made, truth, replicates=REPLICATES, rng=rng())

    def err():
        course = follow([drawn], made.plan)
        return course.finds_difference().mean()

    honest = err()
    monkeypatch.setattr(module, "Look", lambda _: Look())
    assert honest <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPLICATES)
    assert err() > 2 * honest


def test_cells_stop_with_the_claims_that_rest_on_them():
    """A clear gain without skips is found at the first look; equivalence with skips takes longer."""
    made = design()
    free_C = np.array([cell.architecture == "plain" for cell in made.cells], float)
    flow_C = 0.3 * free_C
    truth = Truth(effect_C=free_C, flow_C=dict.fromkeys(WINDOWS, flow_C), carried=(1.0, 1.0))
    drawn = simulate(made, truth, replicates=100, rng=rng())
    course = follow([drawn], made.plan)
    arms, cells = len(PLACEMENTS), len(made.cells)
    assert course.fixed == 20 * arms * cells
    # Of residual cells `before` and `after` go on to the second look; of others at most all do.
    residual = (cells // 2) * 2 * 5
    least = 5 * arms * cells + residual
    assert least <= np.median(course.trials_R) <= least + (cells // 2) * arms * 5
    assert course.trials_R.min() >= 5 * arms * cells
    assert course.calls("supported", "C1").mean() > 0.95
    assert (course.last_RM[:, CLAIMS.index("C3")] == "equivalent").mean() > 0.95


def test_replicates_do_not_depend_on_those_drawn_beside_them():
    made = design((4, 8))
    zero_C = np.zeros(len(made.cells))
    truth = Truth(effect_C=zero_C, flow_C=dict.fromkeys(WINDOWS, zero_C))
    drawn = simulate(made, truth, replicates=30, rng=rng())
    alone = replace(
        drawn,
        accuracy_PCS=drawn.accuracy_PCS[7:8],
        flow_PCS={name: values[7:8] for name, values in drawn.flow_PCS.items()},
        ran_PCS=drawn.ran_PCS[7:8],
        diverged_PCS=drawn.diverged_PCS[7:8],
    )
    together, single = follow([drawn], made.plan), follow([alone], made.plan)
    assert together.trials_R[7] == single.trials_R[0]
    assert together.last_RM[7].tolist() == single.last_RM[0].tolist()
