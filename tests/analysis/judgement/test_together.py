from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.judgement import deciding
from analysis.judgement import together as module
from analysis.judgement.evidence import call
from analysis.judgement.simulation import make_reference_design
from analysis.judgement.together import calibrate_stopping_together, calibrate_together

REPLICATES = 1_000


def designs(count, seeds=4):
    return [make_reference_design(seeds=seeds, depths=(8, 14))] * count


def test_three_norms_read_side_by_side_err_no_more_often_than_one():
    """At most 5 % and three Monte-Carlo errors: 0.05 + 3 * sqrt(0.05 * 0.95 / 1000) = 7.1 %."""
    rates = calibrate_together(designs(3), replicates=REPLICATES, rng=np.random.default_rng(0))
    assert [rate.scenario for rate in rates] == [
        "no effect in any of 3 studies",
        "an effect in the first of 3 studies alone",
        "no effect in any of 3 studies, 2 looks",
    ]
    assert all(rate.high == 0.05 and rate.is_kept for rate in rates)
    assert all(rate.replicates == REPLICATES for rate in rates)


def call_apart(evidence, *, alpha):
    """A family for each study."""
    words = [call([one], alpha=alpha).word_M for one in evidence]
    return SimpleNamespace(word_M=np.concatenate(words, axis=-1))


def test_a_family_for_each_study_breaks_the_promise(monkeypatch):
    """Without one family ten studies without an effect find one in more than 5 % of the grids."""

    def measure():
        rates = calibrate_together(designs(10), replicates=500, rng=np.random.default_rng(0))
        return rates[0]

    assert measure().is_kept
    monkeypatch.setattr(module, "call", call_apart)
    assert not measure().is_kept


def with_looks(count):
    made = make_reference_design(depths=(8, 14))
    return [replace(made, plan=replace(made.plan, looks=(5, 10)))] * count


def test_studies_that_stop_where_decided_err_no_more_often():
    rates = calibrate_stopping_together(with_looks(3), replicates=400, rng=np.random.default_rng(0))
    assert [rate.scenario for rate in rates] == [
        "no effect in any of 3 studies, stopped where decided",
        "an effect in the first alone of 3 studies, stopped where decided",
    ]
    assert all(rate.high == 0.05 and rate.is_kept for rate in rates)


@pytest.mark.slow
def test_stopping_with_a_family_for_each_study_breaks_the_promise(monkeypatch):
    monkeypatch.setattr(deciding, "call", call_apart)
    (none, _) = calibrate_stopping_together(
        with_looks(10), replicates=400, rng=np.random.default_rng(0)
    )
    assert not none.is_kept


def test_the_effect_that_exists_is_no_error(monkeypatch):
    """Only the first study has it; were it counted, nearly every grid would err."""
    rates = calibrate_together(designs(2, seeds=5), replicates=100, rng=np.random.default_rng(0))
    assert rates[1].share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    monkeypatch.setattr(module, "CLAIMS", ())
    rates = calibrate_together(designs(2, seeds=5), replicates=100, rng=np.random.default_rng(0))
    assert rates[1].share > 0.9


def test_the_generator_decides_and_repeats():
    shares = [
        [
            r.share
            for r in calibrate_together(designs(3), replicates=300, rng=np.random.default_rng(s))
        ]
        for s in (0, 0, 1)
    ]
    assert shares[0] == shares[1] != shares[2]
    assert shares[0] == pytest.approx(shares[2], abs=0.05)
