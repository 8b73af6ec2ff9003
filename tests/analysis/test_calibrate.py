from dataclasses import replace

import numpy as np
import pytest

from analysis import calibrate as module
from analysis.calibrate import main
from analysis.judgement.outcomes import collect_outcomes
from analysis.judgement.simulation import (
    Rate,
    Truth,
    calibrate,
    find_design,
    make_reference_design,
    simulate,
)
from analysis.load import load_results
from tests.analysis.conftest import Study, write_study


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def rates():
    return calibrate(make_reference_design(), replicates=1_000, rng=rng())


def test_every_promise_is_kept_at_five_seeds_four_depths_and_two_families(rates):
    broken = [rate for rate in rates if not rate.is_kept]
    assert not broken
    assert sum(bool(rate.promise) for rate in rates) >= 25


@pytest.mark.parametrize(
    ("scenario", "measure", "low", "high"),
    [
        ("no effect anywhere", "any claim finds a difference where none is", np.nan, 0.05),
        ("no effect anywhere", "95 % interval of C1 holds the truth", 0.93, 0.97),
        ("as the paper says", "C1 supported", 0.99, np.nan),
        ("an effect of exactly the margin", "C3 equivalent", np.nan, 0.05),
        ("a sign that flips with depth", "C3 equivalent", np.nan, 0.03),
        ("the opposite", "C1 supported", np.nan, 0.05),
    ],
)
def test_what_is_promised(rates, scenario, measure, low, high):
    (rate,) = (r for r in rates if (r.scenario, r.measure) == (scenario, measure))
    assert [rate.low, rate.high] == pytest.approx([low, high], nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("sd", [0.2, 0.5, 1.0])
def test_errors_are_bounded_in_other_designs_too(seeds, sd):
    design = replace(make_reference_design(seeds=seeds, sd=sd), promises_power=False)
    assert all(rate.is_kept for rate in calibrate(design, replicates=10_000, rng=rng()))


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("a standard error half as long", lambda se: se / 2),
        ("a standard error twice as long", lambda se: se * 2),
    ],
)
def test_a_lie_in_the_estimator_breaks_a_promise(monkeypatch, name, lie):
    honest = module.weigh

    def weigh(outcomes, **settings):
        evidence = honest(outcomes, **settings)
        return replace(
            evidence,
            comparisons={
                claim: tuple(
                    replace(one, pooled=replace(one.pooled, se=lie(one.pooled.se)))
                    for one in several
                )
                for claim, several in evidence.comparisons.items()
            },
        )

    monkeypatch.setattr(module, "weigh", weigh)
    rates = calibrate(make_reference_design(), replicates=300, rng=rng())
    assert not all(rate.is_kept for rate in rates if "interval" in rate.measure)


def test_a_bar_allows_for_three_monte_carlo_errors():
    rate = Rate(scenario="s", measure="m", share=0.05, low=np.nan, high=0.05, replicates=10_000)
    error = np.sqrt(0.05 * 0.95 / 10_000)
    assert rate.error == pytest.approx(error)
    assert replace(rate, share=0.05 + 2.9 * error).is_kept
    assert not replace(rate, share=0.05 + 3.1 * error).is_kept
    assert not replace(rate, share=0.05 - 0.0066, low=0.05, high=np.nan).is_kept
    assert not replace(rate, high=0.0, share=0.0001).is_kept
    assert replace(rate, high=np.nan, share=1.0).is_kept


def test_simulated_grids_have_the_truth_and_the_spread_asked_for():
    design = make_reference_design(sd=0.7, flow_sd=0.05)
    count = len(design.cells)
    effect_C = np.arange(count) / 10
    truth = Truth(effect_C=effect_C, flow_C=np.full(count, 0.3), none_effect=-2.0, path=4.0)
    outcomes = simulate(design, truth, replicates=4_000, rng=rng())
    diff_RCS = outcomes.difference("accuracy", "after", "before")
    np.testing.assert_allclose(diff_RCS.mean((0, 2)), effect_C, atol=0.03)
    np.testing.assert_allclose(diff_RCS.std((0, 2)), np.hypot(0.7, 4 * 0.05), rtol=0.03)
    flow_RCS = outcomes.difference("gradient", "after", "before")
    assert flow_RCS.mean() == pytest.approx(0.3, abs=0.002)
    assert flow_RCS.std() == pytest.approx(0.05, rel=0.02)
    assert np.mean(outcomes.difference("accuracy", "none", "before")) == pytest.approx(-2, abs=0.02)
    slope = np.polyfit(flow_RCS.ravel(), (diff_RCS - effect_C[:, None]).ravel(), 1)[0]
    assert slope == pytest.approx(4, abs=0.2)


def test_simulated_grids_lose_and_diverge_as_often_as_asked():
    design = make_reference_design()
    zero_C = np.zeros(len(design.cells))
    truth = Truth(effect_C=zero_C, flow_C=zero_C, divergence=0.3, missing=0.2)
    outcomes = simulate(design, truth, replicates=2_000, rng=rng())
    assert outcomes.ran_PCS.mean() == pytest.approx(0.8, abs=0.01)
    assert outcomes.diverged_PCS[:, 1].mean() == pytest.approx(0.3 * 0.8, abs=0.01)
    assert not outcomes.diverged_PCS[:, [0, 2]].any()
    trained = outcomes.ran_PCS & ~outcomes.diverged_PCS
    np.testing.assert_array_equal(np.isfinite(outcomes.accuracy_PCS), trained)


def test_a_hidden_cause_moves_both_and_no_flow_does():
    design = make_reference_design()
    zero_C = np.zeros(len(design.cells))
    outcomes = simulate(
        design, Truth(effect_C=zero_C, flow_C=zero_C, confounding=1.0), replicates=500, rng=rng()
    )
    both = [outcomes.difference(q, "after", "before").ravel() for q in ("accuracy", "gradient")]
    assert np.corrcoef(both)[0, 1] == pytest.approx(0.5, abs=0.03)


def test_the_generator_decides_and_repeats():
    design = make_reference_design(depths=(8, 14), seeds=4)
    first, again, other = (calibrate(design, replicates=50, rng=rng(seed)) for seed in (0, 0, 1))
    shares = [[rate.share for rate in rates] for rates in (first, again, other)]
    assert shares[0] == shares[1] != shares[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, Study(seeds=range(6), trial_sd=0.5), rng=rng())
    return folder


def test_a_real_study_is_simulated_at_its_own_spread(folder):
    results = load_results(str(folder))
    (outcomes,) = collect_outcomes(results)
    design = find_design(outcomes, results.plan)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    np.testing.assert_allclose(design.sd_C, diff_CS.std(-1, ddof=1))
    assert (design.cells, design.seeds) == (outcomes.cells, 6)
    assert not design.promises_power
    assert design.name == "digits common"
    np.testing.assert_array_equal(design.block_C, outcomes.block_C)


def test_power_is_promised_to_designs_as_large_and_as_quiet_as_the_reference():
    promised = {
        (seeds, sd): make_reference_design(seeds=seeds, sd=sd).promises_power
        for seeds in (4, 5, 8)
        for sd in (0.3, 0.5, 0.6)
    }
    assert {key for key, promises in promised.items() if promises} == {
        (5, 0.3),
        (5, 0.5),
        (8, 0.3),
        (8, 0.5),
    }


def test_cells_of_unequal_spread_are_so_in_accuracy_and_in_flow(monkeypatch):
    honest, spreads = module.simulate, []

    def simulate(design, truth, **settings):
        spreads.append((design.sd_C / 0.5, design.flow_sd_C / 0.06))
        return honest(design, truth, **settings)

    monkeypatch.setattr(module, "simulate", simulate)
    calibrate(make_reference_design(), replicates=2, rng=rng())
    for of_accuracy_C, of_flow_C in spreads:
        np.testing.assert_allclose(of_accuracy_C, of_flow_C)
    assert max(np.ptp(of_flow_C) for _, of_flow_C in spreads) > 1


def test_a_study_without_a_spread_cannot_be_simulated(tmp_path):
    write_study(tmp_path, Study(seeds=[0]), rng=rng())
    results = load_results(str(tmp_path))
    assert find_design(collect_outcomes(results)[0], results.plan) is None
    assert main([str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--replicates", "0"], "'0' is not a count from 1 up"),
        (["--seeds", "-1"], "'-1' is not a count from 1 up"),
        (["--sd", "0"], "'0' is not a number of points between 0 and 100"),
        (["--sd", "nan"], "'nan' is not a number"),
        (["somewhere", "--sd", "1"], "RESULTS have spreads of their own"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_words(arguments, told, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_the_seeds_of_a_real_study_can_be_changed_in_thought(folder, capsys):
    assert main([str(folder), "--replicates", "50", "--seeds", "1"]) == 0
    assert "digits common: 4 cells, 1 seed, 50 grids per scenario" in capsys.readouterr().out


def test_the_command_prints_every_rate_and_answers_with_its_exit_code(folder, capsys, monkeypatch):
    assert main([str(folder), "--replicates", "300"]) == 0
    printed = capsys.readouterr().out
    assert "digits common: 4 cells, 6 seeds, 300 grids per scenario" in printed
    assert "95 % interval of C3 holds the truth" in printed
    assert "NOT KEPT" not in printed
    monkeypatch.setattr(Rate, "is_kept", False)
    assert main([str(folder), "--replicates", "20"]) == 1
    assert "NOT KEPT" in capsys.readouterr().out


def test_a_folder_without_results_is_said_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 3
    assert "no plan.parquet" in capsys.readouterr().err
