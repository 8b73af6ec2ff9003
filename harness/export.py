"""python -m harness.export RESULTS --to KIND -o OUTPUT: copy finished trials to where people look.

::

    --to tensorboard -o FOLDER    a folder of event files per trial, its settings as hyperparameters
    --to mlflow -o FILE.db        a run per trial; instead of an SQLite file the address of a server

A trial that is there already is left as it is, so that the command may be killed and given again.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.study.errors import HarnessError, last_line
from harness.study.records import EpochRow, GradientRow, TrialRow, settings_of
from harness.study.terminal import Parser, say
from harness.study.trials import Trial
from harness.study.wording import format_count

if TYPE_CHECKING:
    from harness.results import Snapshot, Store

_PER_EPOCH = ("lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_AT_THE_END = ("test_loss", "test_accuracy", "calibration_error", "wall_time")
_FLOW = ("actgrad_rel", "actgrad_total")
"""Columns of which the mean over layers is exported at each reading."""


@dataclass(frozen=True, slots=True)
class Curves:
    """One finished trial: its row, and named values at steps of its training."""

    row: TrialRow
    label: str
    points: Sequence[tuple[str, int, float]]

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.row)


class TensorBoard:
    """Event files below a folder, in a folder for each trial, which gets its name when it is whole."""

    def __init__(self, output: str) -> None:
        from tensorboardX import SummaryWriter, summary  # noqa: PLC0415  only this target needs it

        self._folder = Path(output).expanduser()
        self._open, self._hparams = SummaryWriter, summary.hparams

    def list_held(self) -> frozenset[str]:
        """The trials that are there, whole."""
        names = (path.name for path in self._folder.glob("*") if path.is_dir())
        return frozenset(name.rpartition(" ")[2] for name in names if not name.startswith("."))

    def add(self, curves: Curves) -> None:
        """Add a trial, whole or not at all."""
        name = f"{curves.label} {curves.row.trial_id}".replace("/", ":")
        half = self._folder / f".{name}.harness"
        shutil.rmtree(half, ignore_errors=True)  # of an export that was killed
        begun = curves.row.started.timestamp()
        with self._open(logdir=str(half), write_to_disk=True) as writer:
            finals = {name: getattr(curves.row, name) for name in _AT_THE_END}
            events: Any = writer.file_writer
            for part in self._hparams(curves.settings, finals):
                events.add_summary(part, walltime=begun)
            for tag, step, value in curves.points:
                writer.add_scalar(tag, value, step, walltime=begun)
        half.rename(self._folder / name)


class MLflow:
    """Runs of one experiment; a trial is known by a tag, and is there once its run is finished."""

    def __init__(self, output: str, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is told to strangers
        from mlflow import MlflowClient  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        uri = output if "://" in output else f"sqlite:///{Path(output).expanduser().absolute()}"
        self._client: Any = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = (
            found.experiment_id if found else self._client.create_experiment(experiment)
        )

    def list_held(self) -> frozenset[str]:
        held: set[str] = set()
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1_000, page_token=token)
            for run in page:
                if not (trial_id := run.data.tags.get("trial_id")):
                    continue
                if run.info.status == "FINISHED":
                    held.add(trial_id)
                else:  # of an export that was killed
                    self._client.delete_run(run.info.run_id)
            if not (token := page.token):
                return frozenset(held)

    def add(self, curves: Curves) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        row, at = curves.row, round(1e3 * curves.row.started.timestamp())
        run = self._client.create_run(
            self._experiment,
            start_time=at,
            run_name=curves.label,
            tags={"trial_id": row.trial_id, "arm": row.arm, "status": row.status, "run": row.run},
        )
        metrics = [Metric(tag, value, at, step) for tag, step, value in curves.points]
        params = [Param(name, str(value)) for name, value in curves.settings.items()]
        self._client.log_batch(run.info.run_id, params=params)
        for first in range(0, len(metrics), 1_000):  # the most that a request may carry
            self._client.log_batch(run.info.run_id, metrics[first : first + 1_000])
        ended = round(1e3 * row.finished.timestamp())
        self._client.set_terminated(run.info.run_id, end_time=ended)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(
        prog="python -m harness.export",
        description="Copy the finished trials of a results folder to TensorBoard or MLflow.",
        allow_abbrev=False,
        epilog="Trials that are there already are left as they are. Exit codes: 0 done, 2 bad input, "
        "or the output cannot be written, 3 the results folder cannot be used.",
    )
    parser.add_argument("results", metavar="RESULTS", help="folder, or s3://bucket/prefix")
    parser.add_argument("--to", required=True, choices=["tensorboard", "mlflow"])
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUTPUT",
        help="folder; of MLflow the SQLite file or the address of the server",
    )
    options = parser.parse_args(arguments)
    try:
        say(_export(options.results, options.to, options.output))
    except HarnessError as error:
        say(f"harness.export: {error}", is_error=True)
        return error.exit_code
    return 0


def _export(results: str, kind: str, output: str) -> str:
    from harness.results import Store, explain, take_snapshot  # noqa: PLC0415  pyarrow: not for --help

    store = Store(results)
    store.refuse_emptiness()
    snapshot = take_snapshot(store)
    snapshot.refuse_damage()
    try:
        name = snapshot.plan.analysis.grid if snapshot.plan else "bn-order"
        target = TensorBoard(output) if kind == "tensorboard" else MLflow(output, name)
        held = target.list_held()
        added = 0
        for curves in _list_curves(store, snapshot, held):
            target.add(curves)
            added += 1
        return f"{output}: {format_count(added, 'trial')} added, {len(held)} there before"
    except ImportError as error:
        what = f"{kind} needs a package that is not installed ({error.name})"
        raise HarnessError(f"{what}: pip install -c constraints.txt -e '.[export]'") from error
    except OSError as error:
        raise HarnessError(f"{output}: {explain(error)}") from error
    except HarnessError:
        raise
    except Exception as error:  # the border with their libraries
        raise HarnessError(f"{output}: {kind} refuses: {last_line(error)}") from error


def _list_curves(store: Store, snapshot: Snapshot, held: frozenset[str]) -> Iterator[Curves]:
    from harness.results import to_rows  # noqa: PLC0415  pyarrow: not for --help

    for stem, ids in snapshot.ids.items():
        if held.issuperset(ids):
            continue
        epochs: list[EpochRow] = to_rows(store.read_companion("epochs", stem, ids), EpochRow)
        gradients: list[GradientRow] = to_rows(
            store.read_companion("gradients", stem, ids), GradientRow
        )
        points: dict[str, list[tuple[str, int, float]]] = defaultdict(list)
        for epoch in epochs:
            points[epoch.trial_id] += ((n, epoch.step, getattr(epoch, n)) for n in _PER_EPOCH)
        readings: dict[tuple[str, int], list[GradientRow]] = defaultdict(list)
        for row in gradients:
            readings[row.trial_id, row.step].append(row)
        for (trial_id, step), of_layers in readings.items():
            for name in _FLOW:
                mean = math.fsum(getattr(row, name) for row in of_layers) / len(of_layers)
                points[trial_id].append((f"{name}_mean_of_layers", step, mean))
        for trial_id in ids:
            if trial_id not in held:
                row = snapshot.rows[trial_id]
                points[trial_id] += ((n, row.steps, getattr(row, n)) for n in _AT_THE_END)
                known = [point for point in points[trial_id] if math.isfinite(point[2])]
                yield Curves(row, Trial(**settings_of(row)).label, known)


if __name__ == "__main__":
    sys.exit(main())
