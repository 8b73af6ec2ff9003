"""What the README says was found follows from the rows that lie beside it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness import replay
from harness.results import Store, find_damage, to_rows, to_tables
from harness.results.looks import read_looks
from harness.study.facts import explain_lack_of_data
from harness.study.records import TrialRow
from tests.test_readme import command_under

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "grids" / "fashion"
"""The rows as `harness.upkeep merge` joined them, and beside them what was read off them."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A copy of the rows alone, in a checkout of nothing but grids."""
    grids = tmp_path_factory.mktemp("checkout") / "grids"
    kept = shutil.ignore_patterns("report", "verdicts.json", "effects.csv", "*.svg")
    return shutil.copytree(ROOT / "grids", grids, ignore=kept) / "fashion"


@pytest.fixture(scope="module")
def commands():
    """The README's, to report the study and to train it."""
    return command_under("What was found on Fashion-MNIST").splitlines()


@pytest.fixture(scope="module")
def judged(rows, commands):
    """The report of the rows, as the README writes it."""
    run_in(rows.parent.parent, commands[0])
    return rows / "report"


def run_in(checkout, command):
    """What a README's command prints there, with this checkout's code."""
    paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": ROOT}
    environment = {
        name: f"{path}{os.pathsep}{os.environ.get(name, '')}" for name, path in paths.items()
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rounded(value):
    """Numbers to nine digits: the last ones are those of a machine's own library."""
    if isinstance(value, dict):
        return {key: rounded(held) for key, held in value.items() if key != "written"}
    if isinstance(value, list):
        return [rounded(held) for held in value]
    return float(f"{value:.9g}") if isinstance(value, float) and math.isfinite(value) else value


def words_of(picture):
    """All text of an SVG: the names and the numbers that are drawn."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", picture.read_text(encoding="utf-8"))


def verdicts_in(folder):
    return json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))


def test_the_verdicts_follow_from_the_rows(judged):
    assert rounded(verdicts_in(judged)) == rounded(verdicts_in(STUDY))


def test_the_effects_and_the_picture_follow_from_the_rows(judged):
    told, found = (pd.read_csv(folder / "effects.csv") for folder in (STUDY, judged))
    pd.testing.assert_frame_equal(found, told, rtol=1e-9)
    drawn = judged / "figures" / "forest-accuracy-after-before.svg"
    assert words_of(drawn) == words_of(STUDY / "accuracy.svg")


def test_no_chart_of_the_page_is_stretched_by_a_mark_outside_of_it(judged):
    page = (judged / "index.html").read_text(encoding="utf-8")
    sizes = re.findall(r'<svg class="marks" viewBox="0 0 (\d+) (\d+)"', page)
    assert len(sizes) > 100
    assert all(int(height) < 3 * int(width) for width, height in sizes)


def test_the_rows_are_whole_and_are_those_that_the_grid_asks_for(rows):
    store = Store(rows)
    assert find_damage(store) == []
    plan = store.read_plan()
    assert plan is not None
    assert plan.source == (ROOT / "grids" / "fashion.yaml").read_text(encoding="utf-8")
    assert set(store.finished_ids()) == {trial.id for trial in plan.trials}
    assert all(look.is_planned for look in read_looks(store))


def test_the_study_trained_again_over_its_rows_trains_nothing_and_decides_the_same(rows, commands):
    looks = read_looks(Store(rows))
    training, comment = commands[1].split("#")
    said = run_in(rows.parent.parent, f"{training} --results {rows}")
    assert "hours on two cores" in comment
    assert "nothing to train" in said
    assert "C1: supported" in said
    assert read_looks(Store(rows)) == looks


def test_the_readme_and_the_log_say_what_was_found():
    said = {
        name: " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "grids/LOG.md")
    }
    found = verdicts_in(STUDY)
    for sentence in found["answer"]:
        assert sentence in said["README.md"]
    for verdict in found["verdicts"]:
        assert f"{verdict['claim']} {verdict['answer']}" in said["grids/LOG.md"]


@pytest.mark.slow
@pytest.mark.skipif(
    bool(explain_lack_of_data("fashion-mnist")), reason="needs Debian's dataset-fashion-mnist"
)
def test_a_trial_trained_again_gives_what_is_published(rows):
    store = Store(rows)
    plan = store.read_plan()
    assert plan is not None
    short = next(trial for trial in plan.trials if (trial.epochs, trial.depth) == (2, 8))
    stored = replay.find_stored(store, short.id)
    [row] = to_rows(stored["trials"], TrialRow)
    again = replay.train_again(short, torch.device("cpu"))
    # Another processor rounds otherwise, which training magnifies: bits are for `harness.replay`.
    assert again.trial.test_accuracy == pytest.approx(row.test_accuracy, abs=0.1)
    first = stored["gradients"].to_pandas().query("step == 0").sort_values("layer_index")
    found = to_tables(again)["gradients"].to_pandas().query("step == 0").sort_values("layer_index")
    np.testing.assert_allclose(found["actgrad_rel"], first["actgrad_rel"], rtol=1e-3)
