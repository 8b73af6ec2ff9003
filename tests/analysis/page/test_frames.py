"""Tables: each against an obvious twin that loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.load import load_results
from analysis.page import frames as tables
from tests.analysis.conftest import Study, effects_of, write_plan, write_study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    study = Study(
        architectures=("plain", "resnet"),
        gradient=lambda t: 0.3 * (t.placement == "after"),
        is_lost=lambda t: t.seed == 4 and t.placement == "before",
        fails=lambda t: t.seed == 3 and t.placement == "none" and t.depth == 8,
        diverges=lambda t: t.seed == 2 and t.placement == "none" and t.depth == 14,
    )
    write_study(folder, study, rng=np.random.default_rng(0))
    return load_results(str(folder))


@pytest.fixture(scope="module")
def readings(results):
    return tables.read_flow(results, tables.tabulate_trials(results))


def test_every_planned_trial_has_one_state(results):
    trials = tables.tabulate_trials(results)
    counts = trials["state"].value_counts().to_dict()
    assert counts == {"done": 52, "missing": 4, "failed": 2, "diverged": 2}


def test_flow_is_the_mean_of_logs_with_the_interval_of_student(results, readings):
    flow = tables.tabulate_flow(readings)
    row = flow[(flow["panel"] == "plain") & (flow["arm"] == "after")].iloc[17]
    trials = results.trials[
        (results.trials["architecture"] == "plain")
        & (results.trials["placement"] == "after")
        & (results.trials["depth"] == row["depth"])
    ]
    logs = []
    for name in trials["trial_id"]:
        rows = results.gradients[results.gradients["trial_id"] == name]
        one = rows[(rows["step"] == row["step"]) & (rows["layer_index"] == row["layer_index"])]
        logs.append(math.log10(one["actgrad_rel"].item()))
    low, high = stats.t.interval(0.95, len(logs) - 1, np.mean(logs), stats.sem(logs))
    assert row["mean"] == pytest.approx(np.mean(logs))
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_differences_of_flow_are_paired_by_seed(results, readings):
    table = tables.tabulate_flow_differences(readings, arm="after", baseline="before")
    row = table[table["panel"] == "resnet"].iloc[5]
    trials = results.trials[
        (results.trials["architecture"] == "resnet") & (results.trials["depth"] == row["depth"])
    ]
    pairs = []
    for seed in range(5):
        values = {}
        for placement in ("after", "before"):
            name = trials["trial_id"][
                (trials["seed"] == seed) & (trials["placement"] == placement)
            ].tolist()
            rows = results.gradients[results.gradients["trial_id"].isin(name)]
            one = rows[(rows["step"] == row["step"]) & (rows["layer_index"] == row["layer_index"])]
            values[placement] = one["actgrad_rel"].tolist()
        if values["after"] and values["before"]:
            pairs.append(math.log10(values["after"][0]) - math.log10(values["before"][0]))
    assert row["trials"] == len(pairs) == 4
    assert row["mean"] == pytest.approx(np.mean(pairs))
    assert row["p"] == pytest.approx(stats.ttest_1samp(pairs, 0)[1])


def test_an_absent_placement_has_no_differences(readings):
    assert tables.tabulate_flow_differences(readings, arm="after", baseline="nowhere").empty


def test_readings_without_a_logarithm_are_left_out(results):
    silent = results.gradients.assign(actgrad_rel=0.0)
    muted = type(results)(**{**vars(results), "gradients": silent})
    assert tables.read_flow(muted, tables.tabulate_trials(results)).empty


def test_rates_compared_within_a_study_tell_its_panels_apart(tmp_path):
    slow, fast = (
        Study(architectures=("plain",), depths=(8,), seeds=range(2), settings={"lr": lr})
        for lr in (0.05, 0.2)
    )
    trials = [
        trial
        for study in (slow, fast)
        for trial in write_study(tmp_path, study, rng=np.random.default_rng(0))
    ]
    write_plan(tmp_path, trials, slow.plan)
    results = load_results(str(tmp_path))
    named = tables.tabulate_trials(results)
    assert set(named["panel"]) == {"plain, learning rate 0.05", "plain, learning rate 0.2"}
    pairs = tables.name_panels(tables.tabulate_pairs(effects_of("accuracy", results)))
    assert set(pairs["panel"]) == set(named["panel"])
    assert set(tables.read_flow(results, named)["panel"]) == set(named["panel"])


def test_rates_that_arms_were_given_are_no_part_of_the_cell(tmp_path):
    before = Study(architectures=("plain",), depths=(8,), placements=("before",))
    after = replace(before, placements=("after",), settings={"lr": 0.2})
    trials = [
        trial
        for study in (before, after)
        for trial in write_study(tmp_path, study, rng=np.random.default_rng(0))
    ]
    write_plan(tmp_path, trials, before.plan)
    assert set(tables.tabulate_trials(load_results(str(tmp_path)))["panel"]) == {"plain"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=cmd|'/C calc'!A0", "'=cmd|'/C calc'!A0"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("after-add", "after-add"),
    ],
)
def test_no_text_runs_as_a_formula_in_a_spreadsheet(text, written):
    frame = pd.DataFrame({"placement": [text], "estimate": [-0.5]})
    assert tables.without_formulas(frame).to_dict("records") == [
        {"placement": written, "estimate": -0.5}
    ]


def test_failures_are_counted_by_what_was_said():
    failures = pd.DataFrame(
        [
            (f"{number % 3}", f"trial {number % 3}", "out of memory", "no room", number)
            for number in range(9)
        ]
        + [("0", "trial 0", "timeout", "too long", 20)],
        columns=["trial_id", "trial", "kind", "message", "failed_at"],
    )
    first, second = tables.tabulate_failures(failures).to_dict("records")
    assert first["message"] == "no room"
    assert (first["attempts"], first["trials"], first["trial"], first["last"]) == (
        *(9, 3, "trial 0"),
        8,
    )
    assert second["attempts"] == 1


@pytest.mark.parametrize("count", [1, 8, 32, 56, 110])
def test_a_map_shows_few_layers_the_first_and_the_last_among_them(count):
    layers = tables._spread_layers(list(range(count)))
    assert len(layers) == min(count, tables.FLOW_LAYERS)
    assert {0, count - 1} <= layers


def test_what_all_cells_of_an_architecture_share_is_in_no_label(tmp_path):
    shared = Study(architectures=("plain",), depths=(8,), settings={"width_factor": 0.5})
    wide = Study(architectures=("resnet",), depths=(8,))
    frames = []
    for name, study in {"shared": shared, "wide": wide}.items():
        write_study(tmp_path / name, study, rng=np.random.default_rng(0))
        frames.append(load_results(str(tmp_path / name)).planned)
    named = tables.name_panels(tables.name_variants(pd.concat(frames, ignore_index=True)))
    assert set(named["panel"]) == {"plain", "resnet"}


def test_what_tells_cells_of_one_depth_apart_is_in_the_label(results):
    wide = results.planned.assign(width_factor=2.0, trial_id=results.planned["trial_id"] + "w")
    named = tables.name_variants(pd.concat([results.planned, wide], ignore_index=True))
    assert set(named["variant"]) == {"width 1", "width 2"}


def test_an_arm_with_borrowed_flow_is_an_arm_of_its_own(results):
    borrowed = results.planned.assign(flow="before")
    named = tables.name_variants(pd.concat([results.planned, borrowed], ignore_index=True))
    assert set(named["arm"]) == {
        *("before", "after", "none"),
        *("after (steps of before)", "none (steps of before)"),
    }
    assert set(named["variant"]) == {""}


def test_recipes_are_told_apart_where_there_are_several(results):
    tuned = results.planned.assign(recipe="tuned")
    named = tables.name_panels(
        tables.name_variants(pd.concat([results.planned, tuned], ignore_index=True))
    )
    assert set(named["panel"]) == {
        f"{architecture}, {recipe}"
        for architecture in ("plain", "resnet")
        for recipe in ("common recipe", "tuned recipes")
    }


def test_one_recipe_has_no_name_beside_the_stage_that_found_it(results):
    study = results.planned.assign(recipe="tuned")
    stage = results.planned.assign(recipe="tuning")
    named = tables.name_studies(pd.concat([study, stage], ignore_index=True))
    assert named == [""] * len(study) + ["tuning stage"] * len(stage)
    assert tables.name_studies(stage) == [""] * len(stage)


def test_pairs_are_the_differences_of_the_effects(results):
    effects = effects_of("accuracy", results)
    pairs = tables.tabulate_pairs(effects)
    cell = next(effect for effect in effects if effect.kind == "cell" and effect.pairs > 2)
    rows = pairs[
        (pairs["label"] == cell.label)
        & (pairs["arm"] == cell.arm)
        & (pairs["baseline"] == cell.baseline)
    ]
    assert rows["difference"].mean() == pytest.approx(cell.estimate)
    assert len(rows) == cell.pairs


def test_more_pairs_find_smaller_differences(tmp_path):
    found = {}
    for seeds in (4, 16):
        study = Study(architectures=("plain",), depths=(8,), seeds=range(seeds), epochs=1)
        write_study(tmp_path / str(seeds), study, rng=np.random.default_rng(0))
        effects = effects_of("accuracy", load_results(str(tmp_path / str(seeds))))
        found[seeds] = tables.tabulate_precision(effects, alpha=0.05)["detectable"].iloc[0]
    assert found[16] < found[4]
