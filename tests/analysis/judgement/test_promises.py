from dataclasses import replace

import numpy as np
import pytest

from analysis.judgement import promises as module
from analysis.judgement.promises import Rate, calibrate, list_looks
from analysis.judgement.simulation import make_reference_design
from analysis.statistics.looks import Look


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def rates():
    return calibrate(make_reference_design(), replicates=1_000, rng=rng())


def test_every_promise_is_kept_at_five_seeds_four_depths_and_two_families(rates):
    assert not [rate for rate in rates if not rate.is_kept]
    assert sum(bool(rate.promise) for rate in rates) >= 40


@pytest.mark.parametrize(
    ("scenario", "measure", "low", "high"),
    [
        ("no effect anywhere", "any claim finds a difference where none is", np.nan, 0.05),
        ("no effect anywhere", "95 % interval of C1 holds the truth", 0.93, 0.97),
        ("no effect, 3 looks", "any claim finds a difference where none is", np.nan, 0.05),
        ("no effect, 3 looks", "95 % interval of C3 holds the truth", 0.93, np.nan),
        ("as the paper says", "C1 supported", 0.95, np.nan),
        ("one depth off by 1 margin", "C3 equivalent", np.nan, 0.05),
        ("one depth off by 1.5 margins", "C4 equivalent", np.nan, 0.05),
        ("a gain that step sizes do not carry", "C2 supported", np.nan, 0.05),
        ("a gain that step sizes carry one way only", "C2 contradicted", np.nan, 0.05),
        ("flow is higher in the first epoch only", "C4 equivalent", np.nan, 0.05),
        ("'after' diverges in 30% of its trials", "C3 equivalent", np.nan, 0.05),
        (
            "'none' learns nothing in 20% of its trials, 'after' gains",
            "C1 supported",
            0.95,
            np.nan,
        ),
        ("nothing learned anywhere", "any word at all", np.nan, 0.01),
        ("nothing left to learn", "any word at all", np.nan, 0.01),
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
    assert all(rate.is_kept for rate in calibrate(design, replicates=4_000, rng=rng()))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_lie_in_the_estimator_breaks_a_promise(monkeypatch, factor):
    honest = module.weigh

    def weigh(outcomes, **settings):
        evidence = honest(outcomes, **settings)
        lies = {
            claim: tuple(
                replace(one, pooled=replace(one.pooled, se=factor * one.pooled.se))
                for one in several
            )
            for claim, several in evidence.comparisons.items()
        }
        return replace(evidence, comparisons=lies)

    monkeypatch.setattr(module, "weigh", weigh)
    rates = calibrate(make_reference_design(), replicates=300, rng=rng())
    assert not all(rate.is_kept for rate in rates if "interval" in rate.measure)


def test_a_look_that_forgets_those_before_it_breaks_a_promise(monkeypatch):
    """Fourteen looks by which nothing is paid."""
    monkeypatch.setattr(module, "Look", lambda _: Look())
    design = make_reference_design(seeds=16, depths=(8,))
    rates = calibrate(design, replicates=300, rng=rng())
    broken = {rate.scenario for rate in rates if not rate.is_kept}
    assert "no effect, 14 looks" in broken


def test_a_study_is_looked_at_at_each_number_of_seeds_and_of_many_at_some():
    assert list_looks(2) == []
    assert list_looks(10) == [*range(3, 11)]
    of_many = list_looks(500)
    assert of_many[0] == 3
    assert of_many[-1] == 500
    assert len(of_many) == len(set(of_many)) == 20


def test_grids_simulated_in_parts_are_counted_together(monkeypatch):
    """The cost of a large grid grows with its trials, and its memory does not."""
    design = make_reference_design(seeds=3, depths=(8,))
    drawn = []
    simulate = module.simulate

    def note(*of, replicates, **how):
        drawn.append(replicates)
        return simulate(*of, replicates=replicates, **how)

    monkeypatch.setattr(module, "simulate", note)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 40 * 3 * len(design.cells))
    rates = calibrate(design, replicates=100, rng=rng())
    assert drawn[:3] == [40, 40, 20]
    counted = {rate.replicates for rate in rates if rate.measure.startswith("any claim")}
    assert counted == {100}


def test_a_bar_allows_for_three_monte_carlo_errors():
    rate = Rate(scenario="s", measure="m", share=0.05, low=np.nan, high=0.05, replicates=10_000)
    error = np.sqrt(0.05 * 0.95 / 10_000)
    assert rate.error == pytest.approx(error)
    assert replace(rate, share=0.05 + 2.9 * error).is_kept
    assert not replace(rate, share=0.05 + 3.1 * error).is_kept
    assert not replace(rate, share=0.05 - 0.0066, low=0.05, high=np.nan).is_kept
    assert not replace(rate, high=0.0, share=0.0001).is_kept
    assert replace(rate, high=np.nan, share=1.0).is_kept


def test_the_generator_decides_and_repeats():
    design = make_reference_design(depths=(8, 14), seeds=4)
    first, again, other = (calibrate(design, replicates=20, rng=rng(seed)) for seed in (0, 0, 1))
    shares = [[rate.share for rate in rates] for rates in (first, again, other)]
    assert shares[0] == shares[1] != shares[2]
