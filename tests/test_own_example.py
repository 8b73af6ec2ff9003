"""The example of an own network and own data in grids/README.md is run as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.results import Store, take_snapshot
from harness.results.networks import path_of
from harness.study.own import digest_source

ROOT = Path(__file__).parent.parent
SECTION = (ROOT / "grids/README.md").read_text("utf-8").partition("## Your own network")[2]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the files of the example, and what starts a command there."""
    folder = tmp_path_factory.mktemp("example")
    network, data = blocks("python")
    (folder / "nets").mkdir()
    (folder / "nets/mine.py").write_text(network, encoding="utf-8")
    (folder / "mine.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    subprocess.run([sys.executable, "-c", data], cwd=folder, check=True)

    def call(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "BN_ORDER_DATA": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    return folder, call


@pytest.mark.ray
def test_the_example_trains_its_grid_and_is_reported_and_trained_again(example):
    folder, call = example
    commands = [shlex.split(line)[1:] for line in blocks("bash")[0].splitlines()]
    prepared, shown, trained = done = [call(*command) for command in commands]
    assert [run.returncode for run in done] == [0, 0, 0], [run.stderr for run in done]
    name = re.search("arrays:pens@[0-9a-f]{16}", blocks("yaml")[0])
    assert name
    assert prepared.stdout.startswith(f"{name[0]}: ")
    assert "conv act norm conv act norm +" in shown.stdout
    assert "4 trials = 4 done" in trained.stdout

    store = Store(folder / "results/mine")
    digest = digest_source(blocks("python")[0])
    rows = take_snapshot(store).rows
    assert store.place.has(path_of(digest))
    assert {row.architecture_digest for row in rows.values()} == {digest}
    assert not store.list_strangers()

    (folder / "nets/mine.py").rename(folder / "nets/gone.py")
    again = call("-m", "harness.replay", "results/mine", next(iter(rows)))
    assert again.returncode == 0, again.stdout + again.stderr
    report = call("-m", "analysis.report", "results/mine")
    assert report.returncode == 0, report.stderr
    page = (folder / "results/mine/report/index.html").read_text("utf-8")
    assert "nets/mine.py:build" in page
    (folder / "nets/gone.py").rename(folder / "nets/mine.py")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("def build(", "def build(extra, "), "TypeError: build() missing 1 required positional"),
        (("return self.relu(", "if x.sum() > 0: return x\n        return self.relu("), "nets/mine.py:LINE: `if x.sum() > 0: return x`: what is computed depends on the images"),
        (("nn.Linear(8, classes)", "nn.Linear(8, 3)"), "gives 3 logits, and the data set has 10 classes"),
        (("stem = [", "print('hello'); raise SystemExit; stem = ["), "`print('hello'); raise SystemExit; stem = "),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_ends_the_run_ahead_of_its_first_trial(example, change, told):
    folder, call = example
    source = blocks("python")[0]
    assert change[0] in source
    (folder / "nets/wrong.py").write_text(source.replace(*change), encoding="utf-8")
    grid = blocks("yaml")[0].replace("mine.py", "wrong.py")
    (folder / "wrong.yaml").write_text(grid, encoding="utf-8")
    run = call("-m", "harness.run", "wrong.yaml")
    assert run.returncode == 2
    line = str(source[: source.index(change[0])].count("\n") + 1)
    assert told.replace("mine.py", "wrong.py").replace("LINE", line) in run.stderr
    assert run.stderr.startswith("nets/wrong.py")
    assert len(run.stderr.splitlines()) == 1
    assert not (folder / "results/wrong").exists()
