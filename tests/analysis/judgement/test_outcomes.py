from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.judgement import outcomes
from analysis.judgement.outcomes import collect_outcomes, measure_flow
from analysis.load import load_results
from harness.study.records import AnalysisPlan
from tests.analysis.conftest import Study, write_study

PLAN = AnalysisPlan(grid="g")


def collect(folder, study):
    write_study(folder, study, rng=np.random.default_rng(0))
    results = load_results(str(folder))
    return results, collect_outcomes(results)


def readings(**columns):
    """One trial: layers 0 and 1 at steps 0, 10, 40 (the first epoch's end) and 80."""
    steps = [0, 10, 40, 80]
    frame = pd.DataFrame(
        [
            {
                "trial_id": "t",
                "step": step,
                "epoch": step / 40,
                "layer_index": layer,
                "actgrad_total": 10.0 ** (layer + number),
            }
            for number, step in enumerate(steps)
            for layer in (0, 1)
        ]
    )
    return frame.assign(**columns)


@pytest.mark.parametrize(
    ("window", "layer", "expected"),
    [
        ("first-epoch", "first", (1 + 2) / 2),  # steps 10 and 40, never step 0
        ("all", "first", (0 + 1 + 2 + 3) / 4),
        ("init", "first", 0),
        ("last", "first", 3),
        ("first-epoch", "mean", (1 + 2 + 2 + 3) / 4),
        ("first-epoch", "slope", 1),
    ],
)
def test_flow_is_the_scalar_the_plan_fixed(window, layer, expected):
    plan = replace(PLAN, gradient_window=window, gradient_layer=layer)
    assert measure_flow(readings(), plan)["t"] == pytest.approx(expected)


def test_flow_takes_the_column_of_the_plan():
    rows = readings(wgrad_norm=100.0)
    assert measure_flow(rows, replace(PLAN, gradient_column="wgrad_norm"))["t"] == 2


def test_the_slope_over_layers_is_least_squares_times_the_distance():
    rows = readings().iloc[:0]
    values = np.random.default_rng(0).normal(size=5)
    rows = pd.DataFrame(
        {
            "trial_id": "t",
            "step": 10,
            "epoch": 0.25,
            "layer_index": range(5),
            "actgrad_total": 10.0**values,
        }
    )
    flow = measure_flow(rows, replace(PLAN, gradient_layer="slope"))["t"]
    assert flow == pytest.approx(4 * np.polyfit(range(5), values, 1)[0])


def test_flow_that_died_out_is_small_and_not_missing():
    rows = readings(actgrad_total=0.0)
    assert measure_flow(rows, PLAN)["t"] == pytest.approx(np.log10(2.0**-126))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layer", ["first", "mean", "slope"])
def test_a_reading_that_is_no_number_is_not_averaged_away(value, layer):
    rows = readings()
    rows.loc[2, "actgrad_total"] = value
    assert np.isnan(measure_flow(rows, replace(PLAN, gradient_layer=layer))["t"])


def test_unknown_words_of_the_plan_are_refused():
    for name in ("gradient_window", "gradient_layer"):
        with pytest.raises(ValueError, match="'nonsense'"):
            measure_flow(readings(), replace(PLAN, **{name: "nonsense"}))


def test_every_value_lands_in_its_own_place(tmp_path):
    """The slow twin: each trial's row looked up by itself."""
    results, (outcomes,) = collect(tmp_path, Study(seeds=[0, 3, 7]))
    assert outcomes.seeds == (0, 3, 7)
    for row in results.trials.itertuples():
        p = outcomes.placements.index(row.placement)
        (c,) = (
            c
            for c, cell in enumerate(outcomes.cells)
            if (cell.architecture, cell.depth) == (row.architecture, row.depth)
        )
        s = outcomes.seeds.index(row.seed)
        assert outcomes.accuracy_PCS[p, c, s] == 100 * row.test_accuracy
        assert outcomes.wall_time_PCS[p, c, s] == row.wall_time
        assert outcomes.correct_PCSN[p, c, s].mean() == pytest.approx(row.test_accuracy)
    assert np.isfinite(outcomes.accuracy_PCS).sum() == len(results.trials)
    assert outcomes.resolution == 100 / 2_000


def test_lost_and_diverged_trials_are_told_apart(tmp_path):
    study = Study(
        architectures=["plain"],
        depths=[8],
        is_lost=lambda t: t.placement == "after" and t.seed == 1,
        diverges=lambda t: t.placement == "before" and t.seed == 2,
    )
    _, (outcomes,) = collect(tmp_path, study)
    diff_S = outcomes.difference("accuracy", "after", "before")[0]
    np.testing.assert_array_equal(np.isnan(diff_S), [False, True, True, False, False])
    np.testing.assert_array_equal(
        outcomes.have_run("after", "before")[0], [True, False, True, True, True]
    )
    counted = outcomes.count_divergences("after", "before", np.array([True]))
    assert (counted.arm_only, counted.baseline_only, counted.both) == (0, 1, 0)
    assert np.isnan(outcomes.difference("gradient", "after", "before")[0, 2])


def test_cells_of_one_architecture_and_depth_are_named_by_what_differs(tmp_path):
    small, large = (
        Study(architectures=["plain"], depths=[8], settings={"batch_size": size})
        for size in (16, 128)
    )
    results = [collect(tmp_path / str(n), study)[0] for n, study in enumerate((small, large))]
    both = replace(
        results[0],
        planned=pd.concat([r.planned for r in results]),
        trials=pd.concat([r.trials for r in results]),
        gradients=pd.concat([r.gradients for r in results]),
    )
    (outcomes,) = collect_outcomes(both)
    assert [cell.label for cell in outcomes.cells] == [
        "plain-8 batch_size=16",
        "plain-8 batch_size=128",
    ]
    assert outcomes.block_C[0] == outcomes.block_C[1]  # they share their block seeds


def test_arms_pair_across_learning_rates_unless_the_grid_crosses_them(tmp_path):
    slow, fast = (
        collect(tmp_path / str(n), Study(architectures=["plain"], depths=[8], settings={"lr": lr}))[
            0
        ]
        for n, lr in enumerate((0.01, 0.1))
    )

    def join(first, second):
        return replace(
            slow,
            planned=pd.concat([first(slow.planned), second(fast.planned)]),
            trials=pd.concat([first(slow.trials), second(fast.trials)]),
        )

    def is_after(rows):
        return rows[rows["placement"] == "after"]

    def is_not_after(rows):
        return rows[rows["placement"] != "after"]

    (tuned,) = collect_outcomes(join(is_after, is_not_after))
    assert np.isfinite(tuned.difference("accuracy", "after", "before")).sum() == 5
    (crossed,) = collect_outcomes(join(lambda rows: rows, lambda rows: rows))
    assert [cell.variant for cell in crossed.cells] == ["lr=0.01", "lr=0.1"]


def test_an_arm_with_borrowed_flow_has_a_name_of_its_own(tmp_path):
    own, _ = collect(tmp_path / "own", Study(architectures=["plain"], depths=[8]))
    borrowed, _ = collect(
        tmp_path / "borrowed",
        Study(
            architectures=["plain"],
            depths=[8],
            placements=["before", "after"],
            settings={"flow": "after"},
        ),
    )
    both = replace(
        own,
        planned=pd.concat([own.planned, borrowed.planned]),
        trials=pd.concat([own.trials, borrowed.trials]),
    )
    (outcomes,) = collect_outcomes(both)
    # 'after' with its own flow borrowed is 'after' again, and told once.
    assert outcomes.placements == ("before", "after", "none", "before with the flow of after")
    # And it is paired with the arm that has its own.
    diff_CS = outcomes.difference("accuracy", "before with the flow of after", "before")
    assert np.isfinite(diff_CS).all()
    assert len(outcomes.cells) == 1
    expected = 100 * own.trials.query("placement == 'after' and seed == 0")["test_accuracy"].item()
    assert outcomes.values_of("accuracy", "after")[0, 0] == expected


@pytest.mark.parametrize(
    ("accuracies", "bits", "images"),
    [
        ([0.8], [b"\xf0\x0f"], 10),
        ([np.nan, 0.5], [b"", b"\xf0\x00"], 9),  # 8 images need but one byte
        ([0.0, 0.0], [b"\x00\x00", b"\x00\x00"], 9),
        ([0.0, 0.8], [b"\x00\x00", b"\xf0\x0f"], 10),
        ([1e-9], [b"\xf0\x0f"], 16),
        ([0.9], [b""], 0),
        ([], [], 0),
    ],
)
def test_the_test_part_is_as_large_as_its_bits_and_accuracy_say(accuracies, bits, images):
    """And never larger than its bytes have room for, whatever a row claims."""
    assert outcomes._count_test_images(bits, np.array(accuracies)) == images


def test_cells_carry_the_settings_that_others_are_compared_by(tmp_path):
    _, (found,) = collect(tmp_path, Study(architectures=["plain", "resnet"], depths=[8, 14]))
    assert len({cell.settings for cell in found.cells}) == 1
    assert 128 in found.cells[0].settings  # the batch size


@pytest.mark.parametrize("layer", ["first", "mean", "slope"])
@pytest.mark.parametrize("window", ["init", "first-epoch", "last", "all"])
def test_flow_is_also_measured_with_another_layer_or_time(tmp_path, layer, window):
    plan = replace(PLAN, gradient_layer=layer, gradient_window=window)
    results, (found,) = collect(tmp_path, Study(seeds=range(2), plan=plan))
    plans = dict(outcomes.vary_flow(plan))
    assert list(found.other_flows) == list(plans)
    for other in plans.values():
        same = [other.gradient_layer == layer, other.gradient_window == window]
        assert sorted(same) == [False, True]
    trial = results.trials.query("placement == 'after' and depth == 8 and seed == 1").iloc[0]
    assert trial["architecture"] == "plain"
    p, c = found.placements.index("after"), [cell.label for cell in found.cells].index("plain-8")
    for name, other in plans.items():
        expected = measure_flow(results.gradients, other)[trial["trial_id"]]
        assert found.other_flows[name][p, c, 1] == expected
    assert len({float(flow_PCS[p, c, 1]) for flow_PCS in found.other_flows.values()}) == len(plans)


def test_tuning_trials_take_no_part(tmp_path):
    results, _ = collect(tmp_path, Study(settings={"stage": "tuning"}))
    assert collect_outcomes(results) == ()


def test_the_floor_is_the_variance_that_rounding_alone_gives_a_difference(tmp_path):
    _, (outcomes,) = collect(tmp_path, Study(architectures=["plain"], depths=[8]))
    exact = np.random.default_rng(0).uniform(80, 100, size=(2, 200_000))
    rounded = np.rint(exact / outcomes.resolution) * outcomes.resolution
    error = (rounded - exact)[0] - (rounded - exact)[1]
    assert outcomes.floor("accuracy") == pytest.approx(error.var(), rel=0.02)
    assert 0 < outcomes.floor("gradient") < 1e-12
