"""`tests/gpu_day.sh` from end to end on a CPU, in small; what needs a GPU its own tests say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.results import Store, merge, take_snapshot
from harness.training.images import load_images
from tests.benchmarks import bits
from tests.test_architecture import import_without

SCRIPT = Path(__file__).with_name("gpu_day.sh")


@pytest.mark.slow
def test_a_day_in_small_leaves_few_files_that_can_be_merged(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        [SCRIPT, "--tiny"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert json.loads((folder / "logs/speed.json").read_text("utf-8"))["rows"]
    log = (folder / "logs/gpu-day.txt").read_text("utf-8")
    assert log.count("\nok: (") == 6
    assert "FAILED" not in log
    store, joined = Store(folder), Store(tmp_path / "joined")
    snapshot = take_snapshot(store, whole_up_to=100)
    assert snapshot.damage == ()
    assert snapshot.plan
    assert len(snapshot.rows) == len(snapshot.plan.trials) == 12
    assert merge([store], joined).trials == 12


def test_what_is_not_meant_to_be_said_ends_it(tmp_path):
    done = subprocess.run(
        [SCRIPT, "--large"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr == "gpu_day.sh: --large: --prepare, --tiny or nothing\n"


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_the_comparison_of_bits_finds_what_differs(trial_of, digits):
    from harness.training.train import train_pack

    cpu = bits.torch.device("cpu")
    trial = trial_of("mlp", epochs=1)
    one, same = (train_pack([trial], digits, device=cpu)[0] for _ in range(2))
    (other,) = train_pack([trial_of("mlp", epochs=1, lr=0.2)], digits, device=cpu)
    rows = [
        bits._make_row(what, trial, one, rows, must_equal=must)
        for what, rows, must in (
            ("same", same, True),
            ("other", other, True),
            ("free", other, False),
        )
    ]
    assert [row["equal"] for row in rows] == [True, False, False]
    assert rows[1]["relative"] > 0
    assert [row["what"] for row in bits.find_broken(rows)] == ["other"]


def test_it_needs_nothing_that_a_bare_gpu_machine_lacks():
    absent = {"ray", "pydantic", "altair", "rich"}
    modules = ["tests.benchmarks.bits", "tests.harness.training.test_gpu", "harness.status"]
    broken, _ = import_without(absent, [*modules, "harness.upkeep", "harness.work"])
    assert broken == {}
    assert import_without({*absent, "hypothesis"}, ["tests.conftest"])[0] == {}
