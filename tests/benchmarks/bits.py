"""python -m tests.benchmarks.bits [--device cuda]

Are the rows of a trial the same, bit for bit, however it is trained on this machine? Trained twice;
its steps captured as a graph or not; resumed from a checkpoint. And how far is a seed in a pack from
the same seed alone, whose sums are others? Exits with 1 where rows that must be equal are not.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from harness.results import find_differing_columns, to_tables
from harness.study.records import TrialRows
from harness.study.trials import PROGRAMS, Trial
from harness.training.checkpoints import Checkpoint
from harness.training.images import Images
from harness.training.train import prepare_worker, train_pack
from tests.benchmarks.gpu import ON_CPU, ON_GPU, Scale, make_images

SUBJECTS = (("resnet", "after"), ("plain", "before"), ("vgg", "after"), ("mlp", "after"))
PRECISIONS = ("float32", "bfloat16")
PACK = 2
EPOCHS = 2


def compare(device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each comparison: what, of which network, and what differs."""
    scale = ON_GPU if device.type == "cuda" else ON_CPU
    images = make_images(replace(scale, train_images=10 * scale.batch_size))
    for precision in PRECISIONS:
        for architecture, placement in SUBJECTS:
            trial = make_trial(scale, architecture, placement, precision)
            once = _train(trial, images, device)
            sides = {
                "trained again": _train(trial, images, device),
                "without a graph": _train(trial, images, device, captured=False),
                "resumed": _resume(trial, images, device),
            }
            for what, rows in sides.items():
                yield _make_row(what, trial, once, rows, must_equal=True)
            packed = _train(replace(trial, pack_size=PACK), images, device)
            yield _make_row(f"in a pack of {PACK}", trial, once, packed, must_equal=False)


def make_trial(scale: Scale, architecture: str, placement: str, precision: str) -> Trial:
    return Trial(
        architecture=architecture,
        placement=placement,
        program=PROGRAMS[architecture][placement],
        depth=next(depth for name, depth in scale.subjects if name == architecture),
        seed=0,
        width_factor=scale.width,
        batch_size=scale.batch_size,
        epochs=EPOCHS,
        warmup_epochs=1,
        lr=0.01,
        precision=precision,
        probe_size=scale.batch_size,
    )


def _train(
    trial: Trial, images: Images, device: torch.device, *, captured: bool = True
) -> TrialRows:
    (rows,) = train_pack([trial], images, device=device, captured=captured)
    return rows


def _resume(trial: Trial, images: Images, device: torch.device) -> TrialRows:
    """The rows of a training that goes on, in new objects, from what its first epoch has left."""
    kept: list[bytes] = []

    def train(content: bytes | None) -> TrialRows:
        checkpoint = Checkpoint(trial, lambda: content, kept.append, device=device, every=0)
        (rows,) = train_pack([trial], images, device=device, checkpoint=checkpoint)
        return rows

    train(None)
    first = kept[0]
    kept.clear()
    rows = train(first)
    assert len(kept) == EPOCHS - 1, "it began anew"
    return rows


def _make_row(
    what: str, trial: Trial, one: TrialRows, other: TrialRows, *, must_equal: bool
) -> dict[str, Any]:
    tables, others = to_tables(one), to_tables(other)
    if not must_equal:  # another trial, by its name
        others = {name: _rename(table, tables[name]) for name, table in others.items()}
    differing = {
        f"{name}.{column}": _measure(tables[name][column], others[name][column])
        for name in tables
        for column in find_differing_columns(tables[name], others[name])
    }
    largest = max(differing, key=lambda column: differing[column], default="")
    at_start = max(
        (abs(a - b) / a for a, b in zip(*map(_read_flow_at_start, (one, other)), strict=True)),
        default=math.nan,
    )
    return {
        "what": what,
        "network": f"{trial.architecture}-{trial.depth} {trial.placement}",
        "precision": trial.precision,
        "equal": not differing,
        "must be": must_equal,
        "columns": len(differing),
        "largest": largest,
        "relative": differing.get(largest, 0.0),
        "flow at step 0": at_start,
    }


def _rename(table: pa.Table, like: pa.Table) -> pa.Table:
    for name in ("trial_id", "pack_size"):
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), like.field(name), like[name])
    return table


def _measure(one: pa.ChunkedArray, other: pa.ChunkedArray) -> float:
    """The largest difference, over the largest number; 0 of what is no number."""
    pairs = [
        (a, b)
        for a, b in zip(one.to_pylist(), other.to_pylist(), strict=False)
        if isinstance(a, float) and isinstance(b, float) and math.isfinite(a + b)
    ]
    largest = max((abs(a) for a, _ in pairs), default=0.0)
    return max((abs(a - b) for a, b in pairs), default=0.0) / (largest or 1.0)


def _read_flow_at_start(rows: TrialRows) -> list[float]:
    return [row.actgrad_rel for row in rows.gradients if row.step == 0]


def find_broken(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that must be equal and are not."""
    return [row for row in rows if row["must be"] and not row["equal"]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bits")
    parser.add_argument("--device", type=torch.device)
    options = parser.parse_args()
    device = options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_worker(threads=1)
    print(f"rows of a trial on {device}, against those of its first training")
    rows = []
    for row in compare(device):  # told at once: the time may end before the last
        rows.append(row)
        print("  ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
    return 1 if find_broken(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
