"""`--until-decided`: what is trained between looks, what is said, and how it goes on after a stop.

Training is replaced by rows of known truth; everything around it is real.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis.judgement.comparisons import Margins, compare
from analysis.judgement.outcomes import collect_outcomes
from analysis.judgement.sequence import look_at
from analysis.load import load_results
from harness import status
from harness.cluster import fanout
from harness.results.looks import read_looks
from harness.results.store import Store
from harness.results.tables import schema_of, to_table
from harness.run import DONE, INTERRUPTED, main
from harness.study.records import EpochRow, GradientRow, TrialRow
from harness.training.provenance import digest_code
from tests.analysis import conftest as rows_of

GRID = """
name: small
defaults: {dataset: digits, epochs: 2, warmup_epochs: 1, augmentation: none}
seeds: 12
margins: {accuracy_points: 1.0}
analysis: {looks: [4, 8, 12]}
grid:
  - {architecture: [plain, resnet], placement: [before, after], depth: [8, 14]}
  - {architecture: plain, placement: none, depth: [8, 14]}
  - {architecture: mlp, placement: [before, after], depth: 2}
"""
CELLS = 12
TINY = """
name: tiny
defaults: {dataset: digits, epochs: 1, warmup_epochs: 1, augmentation: none, width_factor: 0.25}
seeds: 4
analysis: {looks: [2, 4]}
grid:
  - {architecture: plain, placement: [before, after], depth: 8, pack_size: 2}
  - {architecture: mlp, placement: before, depth: 2, pack_size: 2}
"""
MARGINS = Margins(accuracy=1.0, flow=0.1)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


class Trainer:
    """Stands in for the fan-out: writes the rows that a truth leads to, and notes what was asked."""

    def __init__(self, gain=6.0, noise=0.1):
        self.gain, self.noise = gain, noise
        self.passes = []
        self.dies_after = None
        self.hardness_I = np.random.default_rng(5).normal(size=rows_of.TEST_IMAGES)

    def train_missing(self, missing, store, _request, **_options):
        self.passes.append([trial.id for trial in missing])
        for number, trial in enumerate(missing):
            if self.dies_after is not None and number == self.dies_after:
                raise KeyboardInterrupt
            self._write(trial, store)

    def _write(self, trial, store):
        rng = np.random.default_rng(int(trial.id, 16))
        is_free = trial.architecture == "plain"
        better = is_free and trial.placement == "after"
        points = 90 + self.gain * better - 5 * (trial.placement == "none")
        row = rows_of._trial_row(
            trial,
            0,
            points=points + rng.normal(0, self.noise),
            diverged=False,
            hardness_I=self.hardness_I,
            rng=rng,
        )
        row = replace(row, code_digest=digest_code())
        store.write_tables(
            trial.id,
            {
                "epochs": pa.table(rows_of._epochs(row), schema_of(EpochRow)),
                "gradients": pa.table(
                    rows_of._gradients(row, dex=0.3 * better, rng=rng), schema_of(GradientRow)
                ),
                "trials": to_table([row], TrialRow),
            },
        )


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(fanout, "train_missing", made.train_missing)
    monkeypatch.setattr("os.fsync", int)
    return made


def run(*options):
    return main(["small.yaml", "--until-decided", *options])


@pytest.mark.ray
def test_a_real_run_goes_from_look_to_look_in_whole_packs(tmp_path):
    """Two seeds are too few for any word, so that all that a claim is about goes on."""
    path, results = tmp_path / "tiny.yaml", tmp_path / "results"
    path.write_text(TINY, encoding="utf-8")
    assert main([str(path), "--until-decided", "--quiet", "--results", str(results)]) == DONE
    assert seeds_by_cell(str(results)) == {
        ("mlp", "before"): 2,
        ("plain", "after"): 4,
        ("plain", "before"): 4,
    }
    assert load_results(str(results)).is_complete


def seeds_by_cell(location="results/small"):
    planned = load_results(location).planned
    return planned.groupby(["architecture", "placement"])["seed"].nunique().to_dict()


def test_seeds_are_added_only_where_a_claim_is_open(grid, trainer, capsys):
    assert run() == DONE
    said = capsys.readouterr().out
    assert "look at 4 of at most 12 seeds:\n  C1: supported\n" in said
    assert "C3: open" in said
    assert "C3: equivalent" in said
    assert "ends here: no claim is open that more seeds could settle" in said
    seeds = seeds_by_cell()
    assert seeds["mlp", "before"] == 4  # no claim rests on it
    assert seeds["plain", "none"] == 4  # C1 is settled
    assert seeds["resnet", "after"] == 8
    assert len(trainer.passes[0]) == 4 * CELLS


def test_the_folder_of_a_run_that_stopped_is_complete_and_its_looks_are_planned(
    grid, trainer, capsys
):
    run("--quiet")
    assert capsys.readouterr().out == ""
    assert load_results("results/small").is_complete
    assert status.main(["results/small"]) == 0
    assert "missing" not in capsys.readouterr().out
    store = Store("results/small")
    assert [(look.fraction, look.is_planned) for look in read_looks(store)] == [
        (pytest.approx(1 / 3), True),
        (pytest.approx(2 / 3), True),
    ]
    sighting = look_at(load_results("results/small"))
    assert sighting.look.fractions == pytest.approx((1 / 3, 2 / 3))
    assert not sighting.unplanned


def test_cells_that_stopped_are_judged_at_the_look_of_their_own_seeds(grid, trainer):
    run("--quiet")
    results = load_results("results/small")
    (paper,) = collect_outcomes(results, look_at(results).look)
    free_C, residual_C = paper.members(["plain"]), paper.members(["resnet"])
    norm = compare(paper, "accuracy", "after", "none", free_C, margins=MARGINS, alpha=0.05)
    order = compare(paper, "accuracy", "after", "before", residual_C, margins=MARGINS, alpha=0.05)
    assert norm.pooled.look.fractions == pytest.approx((1 / 3,))
    assert order.pooled.look.fractions == pytest.approx((1 / 3, 2 / 3))


def test_a_decided_study_is_left_alone(grid, trainer, capsys):
    run()
    first, passes = capsys.readouterr().out, len(trainer.passes)
    assert run() == DONE
    said = capsys.readouterr().out
    assert len(trainer.passes) == passes
    assert "nothing to train" in said
    assert said.splitlines()[0] == "look at 8 of at most 12 seeds:"
    assert said.splitlines()[1:7] == first.splitlines()[8:14]


@pytest.mark.parametrize("dies_in", [0, 1])
def test_a_killed_run_goes_on_where_it_was_and_comes_to_the_same(
    grid, trainer, monkeypatch, dies_in
):
    run("--quiet", "--results", "whole")
    passes, trainer.passes = trainer.passes, []
    trainer.dies_after = 7
    if dies_in:
        whole, train = iter([True]), trainer.train_missing
        monkeypatch.setattr(
            fanout,
            "train_missing",
            lambda *a, **k: (
                setattr(trainer, "dies_after", None if next(whole, False) else 7),
                train(*a, **k),
            ),
        )
    assert run("--quiet", "--results", "parts") == INTERRUPTED
    trainer.dies_after = None
    monkeypatch.setattr(fanout, "train_missing", trainer.train_missing)
    assert run("--quiet", "--results", "parts") == DONE
    assert seeds_by_cell("parts") == seeds_by_cell("whole")
    trained = [trial for ids in trainer.passes[:dies_in] for trial in ids]
    trained += trainer.passes[dies_in][:7]
    trained += [trial for ids in trainer.passes[dies_in + 1 :] for trial in ids]
    assert sorted(trained) == sorted(trial for ids in passes for trial in ids)
    assert len(read_looks(Store("parts"))) == 2


def test_a_run_without_looks_completes_what_was_stopped(grid, trainer):
    run("--quiet")
    assert main(["small.yaml", "--quiet"]) == DONE
    assert set(seeds_by_cell().values()) == {12}
    assert load_results("results/small").is_complete


def test_a_dry_run_says_what_looking_may_save_and_touches_nothing(grid, trainer, capsys):
    assert run("--dry-run") == DONE
    said = capsys.readouterr().out
    assert "to train   48\n" in said
    assert "looks      at most 48 at 4 seeds, 96 at 8 seeds, 144 at 12 seeds\n" in said
    assert re.search(r"expected   on digits \d+ trials if .* 144 without looks", said)
    assert main(["small.yaml", "--dry-run"]) == DONE
    assert "looks      planned at 4, 8 and 12 seeds; --until-decided" in capsys.readouterr().out
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["analysis.looks=12"], "the grid plans no looks ahead of its end; say at how many seeds"),
        (["analysis.looks=12", "pack_size=4"], "such as analysis.looks=[4, 8, 12]"),
        (["analysis.looks=[4,8]"], "the last look is at 8 seeds and the grid has 12"),
        (["pack_size=3"], "a look at 4 seeds would cut a pack of 3, whose seeds train together"),
        (["--only", "depth=8"], "leave out --only and --limit"),
        (["--limit", "3"], "leave out --only and --limit"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_with_what_to_do(
    grid, trainer, capsys, options, message
):
    try:
        code = run(*options)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not trainer.passes


def test_packs_are_trained_whole(grid, trainer):
    assert run("--quiet", "pack_size=2") == DONE
    planned = load_results("results/small").tally.trials
    ids = {trial.id for trial in planned}
    assert all(replace(t, seed=seed).id in ids for t in planned for seed in t.pack)


def test_a_grid_that_grew_begins_at_its_first_look(grid, trainer):
    run("--quiet")
    grid.write_text(
        GRID.replace(
            "depth: [8, 14]}\n  - {architecture: plain",
            "depth: [8, 14, 20]}\n  - {architecture: plain",
        )
    )
    assert run("--quiet") == DONE
    results = load_results("results/small")
    assert results.is_complete
    depths = results.planned.query("architecture == 'resnet'").groupby("depth")["seed"].nunique()
    assert depths.nunique() == 1


@pytest.mark.parametrize("common", [pytest.param("true", marks=pytest.mark.slow), "false"])
def test_a_tuned_study_goes_from_look_to_look_and_goes_on_after_a_stop(grid, trainer, common):
    tuning = f"tuning: {{lr: [0.05, 0.1], seeds: 1, extensions: 0, common: {common}}}\ngrid:"
    grid.write_text(GRID.replace("grid:", tuning), encoding="utf-8")
    assert run("--quiet") == DONE
    passes, trainer.passes = trainer.passes, []
    planned = load_results("results/small").planned
    study = planned[planned["stage"] == "study"]
    assert set(study["recipe"]) == ({"common", "tuned"} if common == "true" else {"tuned"})
    assert len(passes[0]) == 2 * CELLS + (4 * CELLS if common == "true" else 0)
    assert set(study.groupby(["architecture", "placement"])["seed"].nunique()) == {4, 8}
    trainer.dies_after = 7
    for _ in range(30):
        if run("--quiet", "--results", "parts") == DONE:
            break
    assert load_results("parts").planned["trial_id"].tolist() == planned["trial_id"].tolist()
    assert sum(map(len, passes)) == len(planned)
    assert len(read_looks(Store("parts"))) == len(read_looks(Store("results/small")))


def test_the_plan_of_a_tuned_study_counts_what_comes_after_the_tuning(grid, trainer, capsys):
    tuning = "tuning: {lr: [0.05, 0.1], seeds: 1, common: false}\ngrid:"
    grid.write_text(GRID.replace("grid:", tuning), encoding="utf-8")
    assert run("--dry-run") == DONE
    said = capsys.readouterr().out
    assert "to train   24\n" in said
    assert re.search(r"then .* for 48 trials at each arm's best recipe", said)
