from __future__ import annotations

from dataclasses import replace

import pytest

from harness.study.tuning import Tuning, apply_choices, choose, expand_tuning
from tests.builders import make_rows

RATES = (0.05, 0.1, 0.2)


@pytest.fixture
def study(trial_of):
    return tuple(
        trial_of("resnet", placement, seed=seed, lr=0.1)
        for seed in range(3)
        for placement in ("before", "after")
    )


@pytest.fixture
def score():
    """Rows of tuning trials whose validation accuracy is a function of the trial."""

    def rows(trials, accuracy):
        return [
            make_rows(
                trial,
                validation_accuracy=accuracy(trial),
                status="done" if accuracy(trial) > 0 else "diverged",
            ).trial
            for trial in trials
        ]

    return rows


def tuning(**fields):
    return Tuning(**({"lr": RATES, "weight_decay": (), "seeds": 2, "extensions": 0} | fields))


def test_every_arm_is_tried_at_every_rate_on_every_tuning_seed(study):
    trials = expand_tuning(study, tuning())
    assert len(trials) == len(set(trials)) == 2 * 3 * 2
    assert {(t.placement, t.lr, t.seed) for t in trials} == {
        (placement, lr, seed)
        for placement in ("before", "after")
        for lr in RATES
        for seed in (0, 1)
    }
    assert [t.seed for t in trials] == sorted(t.seed for t in trials)


def test_tuning_shares_no_randomness_with_the_study(study):
    seeds = {trial.block_seed for trial in study}
    assert not seeds & {trial.block_seed for trial in expand_tuning(study, tuning())}


def test_placements_are_tuned_on_the_same_blocks(study):
    seeds = {trial.block_seed for trial in expand_tuning(study, tuning())}
    assert len(seeds) == 2


def test_each_arm_runs_at_the_rate_that_validated_best(study, score):
    best = {"before": 0.2, "after": 0.05}
    trials = expand_tuning(study, tuning())
    rows = score(trials, lambda t: 0.9 - abs(t.lr - best[t.placement]))
    choices = choose(study, tuning(), rows)

    assert sum(choice.chosen for choice in choices) == 2
    tuned = apply_choices(study, choices)
    assert {(t.placement, t.lr, t.recipe, t.stage) for t in tuned} == {
        ("before", 0.2, "tuned", "study"),
        ("after", 0.05, "tuned", "study"),
    }
    assert [(t.placement, t.seed) for t in tuned] == [(t.placement, t.seed) for t in study]
    assert not {t.id for t in tuned} & {t.id for t in study}


def test_the_test_part_has_no_say(study):
    trials = expand_tuning(study, tuning())
    rows = [
        make_rows(trial, validation_accuracy=0.5 + trial.lr, test_accuracy=1 - trial.lr).trial
        for trial in trials
    ]
    assert {c.lr for c in choose(study, tuning(), rows) if c.chosen} == {0.2}


def test_a_recipe_that_diverges_once_scores_nothing_for_it(study, score):
    trials = expand_tuning(study, tuning())
    rows = score(trials, lambda t: 0.0 if (t.lr, t.seed) == (0.2, 1) else 0.5 + t.lr)
    choices = choose(study, tuning(), rows)
    (worst,) = {c.validation_accuracy for c in choices if c.lr == 0.2}
    assert worst == pytest.approx(0.35)
    assert {c.diverged for c in choices if c.lr == 0.2} == {1}
    assert {c.lr for c in choices if c.chosen} == {0.1}


def test_equal_scores_go_to_the_smaller_rate(study, score):
    rows = score(expand_tuning(study, tuning()), lambda _: 0.9)
    assert {c.lr for c in choose(study, tuning(), rows) if c.chosen} == {0.05}


def test_rates_at_the_edge_of_the_list_are_marked(study, score):
    rows = score(expand_tuning(study, tuning()), lambda _: 0.9)
    assert {c.lr for c in choose(study, tuning(), rows) if c.at_edge} == {0.05, 0.2}


def test_nothing_is_chosen_while_a_score_is_missing(study, score):
    rows = score(expand_tuning(study, tuning()), lambda _: 0.9)
    assert choose(study, tuning(), rows[1:]) == ()
    assert apply_choices(study, ()) == ()


def test_weight_decay_can_be_tuned_too(study, score):
    both = tuning(weight_decay=(0.0, 1e-3))
    trials = expand_tuning(study, both)
    assert len(trials) == 24
    rows = score(trials, lambda t: 0.5 + t.weight_decay)
    assert {c.weight_decay for c in choose(study, both, rows) if c.chosen} == {1e-3}


@pytest.mark.parametrize(
    ("best", "added"),
    [(0.4, [0.4, 0.8]), (9.0, [0.4, 0.8, 1.6]), (0.1, []), (0.025, [0.0125, 0.025])],
)
def test_an_arm_that_does_best_at_an_edge_is_tried_beyond_it(study, score, best, added):
    wide = tuning(extensions=3)
    rows, trials = [], expand_tuning(study, wide)
    for _ in range(5):  # as a run does: train, look, train what came beside it
        rows = score(trials, lambda t: 1 / (1 + abs(t.lr - best)))
        trials = expand_tuning(study, wide, rows)
    assert sorted({t.lr for t in trials} - set(RATES)) == added
    choices = choose(study, wide, rows)
    assert {c.lr for c in choices if c.chosen} == {
        min({t.lr for t in trials}, key=lambda lr: abs(lr - best))
    }
    assert any(c.chosen and c.at_edge for c in choices) == (best == 9.0)


def test_an_arm_that_borrows_flow_takes_the_recipe_of_its_placement_and_its_donors(study, score):
    borrowed = tuple(replace(t, flow="before") for t in study if t.placement == "after")
    whole = (*study, *borrowed)
    trials = expand_tuning(whole, tuning())
    assert all(trial.flow == "own" for trial in trials)
    rows = score(trials, lambda t: 0.5 + (t.lr if t.placement == "before" else -t.lr))
    tuned = apply_choices(whole, choose(whole, tuning(), rows))
    grafts = [t for t in tuned if t.flow == "before"]
    assert {t.lr for t in grafts} == {0.05}
    # The donor trains as the tuned arm does, seed by seed.
    assert {t.donor for t in grafts} == {t for t in tuned if t.placement == "before"}


def test_tuning_seeds_fill_one_pack(study):
    packed = [replace(trial, pack_size=3) for trial in study]
    assert {trial.pack for trial in expand_tuning(packed, tuning(seeds=4))} == {(0, 1, 2, 3)}


def test_fewer_epochs_shorten_the_warm_up_with_them(study):
    long = [replace(trial, epochs=20, warmup_epochs=5.0) for trial in study]
    trials = expand_tuning(long, tuning(epochs=3))
    assert {(t.epochs, t.warmup_epochs) for t in trials} == {(3, 3)}


def test_a_stage_of_one_length_serves_every_length_of_the_study(study, score):
    both = (*study, *(replace(trial, epochs=2 * trial.epochs) for trial in study))
    plan = tuning(epochs=3)
    trials = expand_tuning(both, plan)
    assert trials == expand_tuning(study, plan)
    rows = score(trials, lambda trial: trial.lr)
    tuned = apply_choices(both, choose(both, plan, rows))
    assert [trial.epochs for trial in tuned] == [trial.epochs for trial in both]
    assert {trial.lr for trial in tuned} == {max(RATES)}


def test_arms_of_two_optimizers_are_tuned_each_for_itself(study, score):
    adamw = tuple(replace(t, optimizer="adamw", lr=0.001, beta2=0.95) for t in study)
    rates = tuning(lr=(0.001, 0.01, 0.1), weight_decay=(0.0, 0.1))
    both = (*study, *adamw)
    trials = expand_tuning(both, rates)
    assert len(trials) == 2 * 2 * 6 * 2
    best = {"sgd": (0.1, 0.0), "adamw": (0.001, 0.1)}
    rows = score(trials, lambda t: 0.9 if (t.lr, t.weight_decay) == best[t.optimizer] else 0.5)
    tuned = apply_choices(both, choose(both, rates, rows))
    assert len(tuned) == len(both)
    assert all((t.lr, t.weight_decay) == best[t.optimizer] for t in tuned)
    assert {t.beta2 for t in tuned if t.optimizer == "adamw"} == {0.95}
