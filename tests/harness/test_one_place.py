"""What is new is written in one place: the rest of the house reads it there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from unittest import mock

import pytest

from harness.results.tables import schema_of
from harness.study.records import GradientRow, column
from harness.training import gradients
from harness.training.gradients import QUANTITIES, Probe
from tests.harness.training.test_gradients import probe_of

NEW_ARCHITECTURE = """
import sys
from pathlib import Path

# What its author writes: the declaration, and how blocks make the network.
from harness.study.architectures import ARCHITECTURES, SKIP_FREE, Architecture

ARCHITECTURES["funnel"] = Architecture(
    programs={"before": "conv norm act", "after": "conv act norm", "none": "conv act"},
    depths=range(3, 100, 2),
    depth_counts="weighted layers",
    shown_depth=5,
    kind=SKIP_FREE,
)
from harness.training.blocks import Layer
from harness.training.networks import BUILDERS

def build_funnel(trial, builder, shape):
    builder.width = shape[0]
    for layer in range(trial.depth):
        yield builder.block(trial.program, Layer(builder.scaled(32 // (layer + 1))))

BUILDERS["funnel"] = build_funnel

# What everyone else makes of it.
import torch
from analysis.judgement.effects import SKIP_FREE as OF_THE_CLAIM
from harness.cluster.forecast import guess_seconds
from harness.placements import main
from harness.study.errors import GridError
from harness.study.grid import load_grid
from harness.training.images import load_images
from harness.training.train import train_pack

grid = Path(sys.argv[1])
grid.write_text('''
seeds: 1
defaults: {dataset: digits, epochs: 1, warmup_epochs: 0, probe_size: 16}
programs: {funnel: {twice: conv norm act norm}}
grid: [{architecture: funnel, placement: [before, twice], depth: 3}]
''')
trials = load_grid(grid).trials
for trial in trials:
    (rows,) = train_pack([trial], load_images("digits"), device=torch.device("cpu"))
    assert rows.trial.status == "done" and guess_seconds(trial) > 0
assert "funnel" in OF_THE_CLAIM
assert main(["funnel", "after"]) == 0
grid.write_text(grid.read_text().replace("depth: 3", "depth: 4"))
try:
    load_grid(grid)
except GridError as error:
    print(error)
"""


def test_an_architecture_is_a_declaration_and_a_builder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NEW_ARCHITECTURE, str(tmp_path / "new.yaml")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "conv act norm" in done.stdout
    assert "4 is not a depth of funnel, which has 2n+1: 3 or 5" in done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderRow(GradientRow):
    act_largest: float = column("1", "The largest value of z.")


measure = Probe._measure_layer


def measure_more(self, tap, *others):
    return measure(self, tap, *others) | {"act_largest": tap.z_ND.max()[None]}


def test_a_gradient_column_is_a_declaration_and_a_measurement(trial_of, digits):
    with (
        mock.patch.object(gradients, "GradientRow", WiderRow),
        mock.patch.object(gradients, "QUANTITIES", (*QUANTITIES, "act_largest")),
        mock.patch.object(Probe, "_measure_layer", measure_more),
    ):
        probe = probe_of([trial_of("mlp")], digits)
        probe.read(0)
        rows = probe.rows(0, "id")
    assert all(row.act_largest > row.act_mean for row in rows)
    assert set(asdict(rows[0])) == set(schema_of(WiderRow).names)


def test_a_column_that_is_measured_and_not_declared_is_told_by_its_name(trial_of, digits):
    with (
        mock.patch.object(Probe, "_measure_layer", measure_more),
        pytest.raises(AssertionError, match="act_largest"),
    ):
        probe_of([trial_of("mlp")], digits).read(0)
