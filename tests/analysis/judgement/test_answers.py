"""The answer of a study in one sentence: it says what the verdicts say, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.judgement.answers import answer_question
from analysis.judgement.effects import UNITS, find_effects
from analysis.judgement.lengths import LengthEffect
from analysis.judgement.networks import describe_networks
from analysis.judgement.verdicts import judge_outcomes
from harness.study.records import AnalysisPlan
from tests.analysis.judgement.conftest import make

PLAN = AnalysisPlan(grid="g")


def answer(*studies, lengths=(), **settings):
    effects = [e for quantity in UNITS for e in find_effects(quantity, studies, PLAN)]
    verdicts = judge_outcomes(studies, PLAN, effects=effects)
    networks = describe_networks(effects, verdicts)
    return answer_question(verdicts, networks, lengths, **{"is_complete": True, **settings})


def effects(plain, resnet):
    return {"plain": [plain] * 4, "resnet": [resnet] * 4}


@pytest.mark.parametrize(
    ("plain", "resnet", "said"),
    [
        (1.0, 0.0, ("batch norm is better after ReLU", "the order makes no difference that")),
        (-1.0, -1.5, ("batch norm is better before ReLU", "batch norm is better before ReLU")),
        (0.0, 1.5, ("the order makes no difference that", "batch norm is better after ReLU")),
    ],
)
def test_the_answer_names_the_side_that_was_shown(plain, resnet, said):
    (sentence,) = answer(make(effects(plain, resnet)))
    without, residual = sentence.split("; in residual networks ")
    assert without.startswith(f"Without skip connections {said[0]}")
    assert residual.startswith(said[1])
    assert f"(after minus before: {plain:+.2f} points of test accuracy [" in without


def test_what_is_open_is_called_open_with_its_numbers():
    (sentence,) = answer(make(effects(0.4, 0.4), sd=1.5))
    assert "without skip connections it is open which order is better (" in sentence.lower()
    assert (
        "in residual networks it is open whether the order matters by more than 0.5 points "
        "(+0.40 points [" in sentence
    )


def test_an_order_that_is_ahead_and_not_shown_to_matter_is_called_ahead():
    ahead = "batch norm after ReLU is ahead, though not surely by more than 0.5 points (+0.45 "
    (sentence,) = answer(make(effects(1.0, 0.45), sd=0.2))
    assert f"; in residual networks {ahead}points [" in sentence
    (sentence,) = answer(make(effects(1.0, 0.45), sd=0.2), deciding=8)
    assert sentence.startswith("After 8 epochs of training, without skip connections batch norm is")


def test_what_the_correction_alone_leaves_open_is_not_said_of_the_interval():
    (sentence,) = answer(make(effects(1.0, 0.65), sd=0.3, seeds=5))
    residual = sentence.split("; in residual networks ")[1]
    assert "0.5 points once corrected for all claims (+0.65 points [+0.51," in residual


def test_an_order_that_wins_and_loses_to_no_norm_at_all_is_not_best():
    (sentence,) = answer(make(effects(1.0, 0.0), none=5.0))
    assert sentence.startswith("Without skip connections batch norm after ReLU is not best (")


def test_where_one_order_alone_trains_no_side_is_read_off_the_pairs_that_are_left():
    """`before` fails to train in most pairs, and is a little ahead in the others."""
    lost = [("before", cell, seed) for cell in range(4) for seed in range(7)]
    few = make(effects(-0.05, 0.0), sd=0.5, seeds=10, diverges=lost)
    (sentence,) = answer(few)
    assert sentence.startswith("Without skip connections batch norm is better after ReLU (")
    (sentence,) = answer(
        make(
            effects(0.05, 0.0),
            sd=0.5,
            seeds=10,
            diverges=[("after", cell, seed) for _, cell, seed in lost],
        )
    )
    assert sentence.startswith("Without skip connections batch norm after ReLU is not best (")


def test_an_answer_from_some_of_the_trials_says_so():
    (sentence,) = answer(make(effects(1.0, 0.0)), is_complete=False)
    assert sentence.startswith("So far, without skip connections batch norm is better")


def test_where_nothing_ran_nothing_is_said():
    lost = [(p, c, s) for p in ("before", "after") for c in range(8) for s in range(5)]
    (sentence,) = answer(make(effects(1.0, 0.0), missing=lost), is_complete=False)
    assert sentence == (
        "So far, without skip connections nothing can be said yet; in residual networks nothing can "
        "be said yet."
    )


def test_other_studies_are_counted_by_what_they_say():
    paper, other, third = (make(effects(plain, 0.0)) for plain in (1.0, 1.0, 0.0))
    _, counted = answer(paper, replace(other, norm="layer"), replace(third, activation="gelu"))
    assert counted == (
        "The same question in 2 other studies of this grid: without skip connections after better in "
        "1, no difference that matters in 1; in residual networks no difference that matters in 2."
    )


@pytest.mark.parametrize(
    ("change", "verb"),
    [
        ((-1.4, -2.0, -0.8), "shrinks"),
        ((-1.4, -3.0, 0.2), "goes, perhaps by chance,"),
        ((1.4, 0.8, 2.0), "grows"),
    ],
)
def test_lengths_of_training_are_told_of_the_first_study(change, verb):
    study = make(effects(1.0, 0.0))
    numbers = {"cells": 1, "pairs": 5, "low": -0.2, "high": 0.4, "margin": 0.5}
    changes = dict(zip(("change", "change_low", "change_high"), change, strict=True))
    lengths = [
        LengthEffect(
            **replace(study, norm=norm).identity,
            networks=networks,
            arm="after",
            baseline="before",
            epochs=epochs,
            estimate=estimate,
            **numbers,
            **changes,
        )
        for norm in ("batch", "layer")
        for networks in ("plain", "resnet")
        for epochs, estimate in ((2, 1.5), (24, 0.1))
    ]
    _, told = answer(study, lengths=lengths)
    went = "from +1.50 [-0.20, +0.40] to +0.10 points [-0.20, +0.40] in"
    assert told == (
        f"From 2 to 24 epochs of training, after minus before {verb} {went} plain and {went} resnet."
    )


def test_networks_that_no_claim_is_about_are_told_without_a_verdict():
    (sentence,) = answer(make({"mlp": [1.0] * 4}, architectures=("mlp",)))
    assert sentence.startswith("In mlp after minus before is +1.00 points [")
    assert sentence.endswith("no claim is judged on it.")
