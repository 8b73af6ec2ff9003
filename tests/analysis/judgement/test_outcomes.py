from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.judgement import outcomes
from analysis.judgement.lengths import compare_lengths
from analysis.judgement.outcomes import WINDOWS, collect_outcomes, measure_flows
from analysis.load import load_results
from tests.analysis.conftest import Study, write_study
from tests.analysis.judgement.conftest import make


def collect(folder, study):
    write_study(folder, study, rng=np.random.default_rng(0))
    results = load_results(str(folder))
    return results, collect_outcomes(results)


def readings(**columns):
    """One trial: one reading at steps 0, 10, 40 (the first epoch's end), 60, 80 and 120."""
    steps = np.array([0, 10, 40, 60, 80, 120])
    frame = {"trial_id": "t", "step": steps, "epoch": steps / 40, "mean": [0.0, 1, 2, 9, 3, 7]}
    return pd.DataFrame({**frame, "first": 5.0, "fall": -1.0, **columns})


@pytest.mark.parametrize(
    ("window", "expected"),
    [("init", 0), ("first", (1 + 2) / 2), ("whole", (2 + 3 + 7) / 3)],
)
def test_flow_is_the_mean_of_the_readings_of_a_window(window, expected):
    """Equally spaced over the whole training: its early, dense readings are not most of it."""
    flows = measure_flows(readings())
    assert flows.loc["t", ("mean", window)] == pytest.approx(expected)
    assert flows.loc["t", ("first", window)] == 5
    assert flows.loc["t", ("fall", window)] == -1


def test_a_reading_that_is_no_number_is_not_averaged_away():
    flows = measure_flows(readings(mean=[0, 1, 2, 9, np.nan, 7])).loc["t"]
    assert np.isnan(flows["mean", "whole"])
    assert flows["mean", "first"] == 1.5


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
    risk = outcomes.risk("after", "before", np.array([True]))
    assert (risk.arm_only, risk.baseline_only, risk.pairs) == (0, 1, 4)
    assert np.isnan(outcomes.difference("whole", "after", "before")[0, 2])


def test_a_trial_that_finished_at_chance_did_not_train(tmp_path):
    """Digits have ten classes and these files 2,000 test images: guessing seldom reaches 12.1 %."""
    study = Study(
        architectures=["plain"],
        depths=[8],
        trial_sd=0.0,
        block_sd=0.0,
        accuracy=lambda t: (
            {0: -80.0, 1: -78.2, 2: -77.7}.get(t.seed, 0.0) * (t.placement == "after")
        ),
    )
    _, (outcomes,) = collect(tmp_path, study)
    assert outcomes.least_accuracy == pytest.approx(10 + 310 * np.sqrt(0.09 / 2_000))
    assert outcomes.trained_PCS[1, 0].tolist() == [False, False, True, True, True]
    assert np.isnan(outcomes.values_of("whole", "after")[0, :2]).all()
    assert outcomes.scores_of("after")[0, 0] == pytest.approx(10.0)
    unknown = replace(outcomes, chance=float("nan"))
    assert unknown.trained_PCS[1, 0].all()


def test_a_diverged_trial_scores_as_guessing():
    outcomes = make([0.0], diverges=[("after", 0, 1)], architectures=("plain",))
    assert outcomes.scores_of("after")[0, 1] == 10.0
    assert np.isnan(outcomes.values_of("accuracy", "after")[0, 1])


@pytest.mark.parametrize(
    ("accuracy_PS", "dull"),
    [
        ([[99.9, 99.8], [99.9, 99.7]], True),
        ([[99.0, 99.2], [99.1, 99.3]], False),
        ([[98.0, 98.2], [99.8, 99.9]], False),  # one has nothing left to gain, and that shows
        ([[99.4, 99.4], [99.8, 99.8]], True),  # 0.4 left on average
        ([[10.0, 9.8], [10.3, 10.0]], True),
        ([[10.0, 9.8], [99.9, 99.9]], False),
        ([[np.nan, np.nan], [np.nan, np.nan]], False),  # not run: missing, not dull
    ],
)
def test_cells_in_which_nothing_could_have_shown(accuracy_PS, dull):
    accuracy_PCS = np.array(accuracy_PS)[:, None]
    outcomes = make([0.0], architectures=("plain",), seeds=2, placements=("before", "after"))
    outcomes = replace(outcomes, accuracy_PCS=accuracy_PCS, ran_PCS=np.isfinite(accuracy_PCS))
    assert outcomes.are_uninformative("after", "before", 0.5).tolist() == [dull]


def test_an_arm_that_borrows_steps_is_checked_against_its_donors(tmp_path):
    """The largest of all layers and readings, the one at initialisation aside."""
    own, _ = collect(tmp_path / "own", Study(architectures=["plain"], depths=[8], seeds=[0, 1]))
    grafted = Study(
        architectures=["plain"],
        depths=[8],
        seeds=[0, 1],
        placements=["after"],
        settings={"flow": "before"},
    )
    borrowed, _ = collect(tmp_path / "borrowed", grafted)
    both = replace(
        own,
        **{
            name: pd.concat([getattr(own, name), getattr(borrowed, name)], ignore_index=True)
            for name in ("planned", "trials", "gradients", "readings")
        },
    )
    arm = "after (steps of before)"
    ids = set(borrowed.planned["trial_id"])

    def error(step, factor):
        gradients = both.gradients.copy()
        one = gradients["trial_id"].isin(ids) & (gradients["step"] == step)
        one &= gradients["layer_index"] == 3
        gradients.loc[gradients.index[one][:1], "update_ratio"] *= factor
        (outcomes,) = collect_outcomes(replace(both, gradients=gradients))
        return outcomes.graft_errors[arm]

    assert error(0, 3.0) == 0.0
    assert error(10, 1.1) == pytest.approx(np.log(1.1))
    assert error(10, 0.5) == pytest.approx(np.log(2))
    assert error(10, 0.0) == np.inf
    tiny = both.gradients.assign(
        update_ratio=both.gradients["update_ratio"].where(both.gradients["step"] != 30, 1e-7)
    )
    both = replace(both, gradients=tiny)
    assert error(30, 1.2) == 0.0  # the rounding of a step that hardly is one
    nothing = replace(both, gradients=both.gradients[~both.gradients["trial_id"].isin(ids)])
    assert np.isnan(collect_outcomes(nothing)[0].graft_errors[arm])
    assert not np.isnan(collect_outcomes(own)[0].chance)
    assert collect_outcomes(own)[0].graft_errors == {}


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
        readings=pd.concat([r.readings for r in results]),
    )
    (outcomes,) = collect_outcomes(both)
    assert [cell.label for cell in outcomes.cells] == [
        "plain-8, batches of 16",
        "plain-8, batches of 128",
    ]
    assert outcomes.block_C[0] == outcomes.block_C[1]  # they share their block seeds


def test_only_the_length_that_the_grid_names_decides_and_the_others_stand_beside(tmp_path):
    short, long = (
        collect(
            tmp_path / str(epochs),
            Study(architectures=["plain", "resnet"], depths=[8], settings={"epochs": epochs}),
        )[0]
        for epochs in (2, 6)
    )
    both = replace(
        short,
        planned=pd.concat([short.planned, long.planned]),
        trials=pd.concat([short.trials, long.trials]),
        readings=pd.concat([short.readings, long.readings]),
    )
    (together,) = collect_outcomes(both)
    assert together.members(["plain"]).sum() == 2
    (apart,) = collect_outcomes(replace(both, plan=replace(both.plan, epochs=6)))
    assert [cell.beside for cell in apart.cells] == ["length", "length", "", ""]
    assert apart.members(["plain", "resnet"]).tolist() == [False, False, True, True]
    # The lengths are still compared with each other.
    lengths = list(compare_lengths([apart], both.plan))
    assert {one.epochs for one in lengths} == {cell.epochs for cell in apart.cells}


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
    assert [cell.variant for cell in crossed.cells] == ["learning rate 0.01", "learning rate 0.1"]


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
    assert outcomes.placements == ("before", "after", "none", "before (steps of after)")
    # And it is paired with the arm that has its own.
    diff_CS = outcomes.difference("accuracy", "before (steps of after)", "before")
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
    assert ("batch_size", 128) in found.cells[0].settings


def test_the_layers_are_also_reduced_in_other_ways(tmp_path):
    results, (found,) = collect(tmp_path, Study(seeds=range(2)))
    trial = results.trials.query(
        "architecture == 'plain' and placement == 'after' and depth == 8 and seed == 1"
    ).iloc[0]
    p, c = found.placements.index("after"), [cell.label for cell in found.cells].index("plain-8")
    measured = measure_flows(results.readings).loc[trial["trial_id"]]
    assert found.other_flows.keys() == {"at the first layer", "as its fall over the layers"}
    for window in WINDOWS:
        assert found.flow_PCS[window][p, c, 1] == measured["mean", window]
        for column, name in (
            ("first", "at the first layer"),
            ("fall", "as its fall over the layers"),
        ):
            assert found.other_flows[name][window][p, c, 1] == measured[column, window]
    # The twin: the rows of the file, the mean over layers at the first reading.
    rows = results.gradients.query(f"trial_id == '{trial['trial_id']}' and step == 0")
    assert measured["mean", "init"] == pytest.approx(np.log10(rows["actgrad_rel"]).mean())


def test_tuning_trials_take_no_part(tmp_path):
    results, _ = collect(tmp_path, Study(settings={"stage": "tuning"}))
    assert collect_outcomes(results) == ()


def test_the_floor_is_the_variance_that_rounding_alone_gives_a_difference(tmp_path):
    _, (outcomes,) = collect(tmp_path, Study(architectures=["plain"], depths=[8]))
    exact = np.random.default_rng(0).uniform(80, 100, size=(2, 200_000))
    rounded = np.rint(exact / outcomes.resolution) * outcomes.resolution
    error = (rounded - exact)[0] - (rounded - exact)[1]
    assert outcomes.floor("accuracy") == pytest.approx(error.var(), rel=0.02)
    assert 0 < outcomes.floor("whole") < 1e-12
