"""Rows that look like a trial's, without training one."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from harness.study.records import EpochRow, FailureRow, GradientRow, TrialRow, TrialRows
from harness.study.trials import TRAINING_VERSION, Trial


def make_trial(**settings: Any) -> Trial:
    """A small trial; `settings` replace what it would be otherwise."""
    small = {
        "dataset": "digits",
        "architecture": "mlp",
        "placement": "before",
        "program": "linear norm act",
        "depth": 3,
        "seed": 0,
        "epochs": 2,
    }
    return Trial(**small | settings)


def make_rows(trial: Trial, **outcome: Any) -> TrialRows:
    """What training `trial` could have left; `outcome` replaces columns of its row."""
    row = {
        "status": "done",
        "epochs_trained": trial.epochs,
        "test_accuracy": 0.8 + trial.seed / 100,
        "test_correct": b"\xf0\x0f",
        "started": datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
        "training_version": TRAINING_VERSION,
        "arm": trial.arm,
        "trial_id": trial.id,
    }
    return TrialRows(
        trial=_fill(TrialRow, **asdict(trial) | row | outcome),
        epochs=tuple(
            _fill(EpochRow, trial_id=trial.id, epoch=epoch, lr=0.1 / epoch)
            for epoch in range(1, trial.epochs + 1)
        ),
        gradients=tuple(
            _fill(
                GradientRow,
                trial_id=trial.id,
                step=step,
                epoch=step / 10,
                layer=f"blocks.{layer}.linear",
                layer_index=layer,
                actgrad_total=0.1 + trial.seed,
                update_ratio=1e-3 if step else float("nan"),
            )
            for step in (0, 1, 20)
            for layer in range(trial.depth)
        ),
    )


def make_failure(trial: Trial, **columns: Any) -> FailureRow:
    """An attempt of `trial` that broke; `columns` replace those of its row."""
    row = {
        "trial_id": trial.id,
        "trial": trial.label,
        "attempt": 1,
        "run": "20260102T030405",
        "kind": "exception",
        "message": "ValueError: bad luck",
        "traceback": 'Traceback\n  File "a.py", line 1, in f\n  File "b.py", line 7, in step\nValueError',
        "host": "",
        "code_digest": "",
    }
    return _fill(FailureRow, **row | columns)


def _fill(row_type: type[Any], **columns: Any) -> Any:
    """A row in which columns that do not matter have some value of their type."""
    some = {
        "str": "text",
        "int": 3,
        "float": 0.25,
        "bool": False,
        "bytes": b"",
        "datetime": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return row_type(**{field.name: some[field.type] for field in fields(row_type)} | columns)
