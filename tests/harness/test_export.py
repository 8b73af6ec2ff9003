"""Exported trials, read by the tools that they are for."""

from __future__ import annotations

import sys

import pytest

from harness.export import main
from harness.results import Store, merge
from harness.study.records import AnalysisPlan
from tests.builders import make_rows, make_trial

TRIALS = [make_trial(seed=seed) for seed in range(3)]


@pytest.fixture
def results(tmp_path) -> str:
    """Two finished trials of three."""
    store = Store(tmp_path / "rows")
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "name: small")
    for trial in TRIALS[:2]:
        store.write_trial(make_rows(trial, test_accuracy=0.75 + trial.seed / 8))
    return store.location


def export(kind, results, output) -> int:
    return main([results, "--to", kind, "-o", str(output)])


def test_tensorboard_shows_every_trial_once(results, tmp_path, capsys):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "events"
    (output / f".{TRIALS[0].label} {TRIALS[0].id}.harness").mkdir(
        parents=True
    )  # of a killed export
    assert export("tensorboard", results, output) == 0
    assert capsys.readouterr().out == f"{output}: 2 trials added, 0 there before\n"
    Store(results).write_trial(make_rows(TRIALS[2]))
    assert export("tensorboard", results, output) == 0
    assert capsys.readouterr().out == f"{output}: 1 trial added, 2 there before\n"
    folders = sorted(output.iterdir())
    assert [path.name for path in folders] == [f"{trial.label} {trial.id}" for trial in TRIALS]
    events = reading.EventAccumulator(str(folders[1])).Reload()
    assert [event.value for event in events.Scalars("test_accuracy")] == [0.875]
    assert len(events.Scalars("validation_accuracy")) == TRIALS[1].epochs
    assert [event.step for event in events.Scalars("actgrad_total_mean_of_layers")] == [0, 1, 20]
    settings = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"placement" in settings


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of SQLAlchemy
def test_mlflow_shows_every_trial_once(results, tmp_path, capsys):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    output = tmp_path / "mlflow.db"
    assert export("mlflow", results, output) == 0
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{output}")
    experiment = client.get_experiment_by_name("small").experiment_id
    killed = client.create_run(experiment, tags={"trial_id": TRIALS[2].id}).info.run_id
    Store(results).write_trial(make_rows(TRIALS[2]))
    capsys.readouterr()
    assert export("mlflow", results, output) == 0
    assert capsys.readouterr().out == f"{output}: 1 trial added, 2 there before\n"
    runs = {run.data.tags["trial_id"]: run for run in client.search_runs([experiment])}
    assert set(runs) == {trial.id for trial in TRIALS}
    assert killed not in {run.info.run_id for run in runs.values()}
    run = runs[TRIALS[1].id]
    assert run.data.metrics["test_accuracy"] == 0.875
    assert run.data.params["placement"] == "before"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "actgrad_total_mean_of_layers")
    assert sorted(metric.step for metric in history) == [0, 1, 20]


def test_merged_trials_are_exported_as_single_ones(results, tmp_path):
    merged = Store(tmp_path / "merged")
    merge([Store(results)], merged)
    assert export("tensorboard", results, tmp_path / "one") == 0
    assert export("tensorboard", merged.location, tmp_path / "other") == 0
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "other")]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow")]
)
def test_without_its_package_it_says_what_to_install(
    results, tmp_path, capsys, monkeypatch, kind, package
):
    monkeypatch.setitem(sys.modules, package, None)
    assert export(kind, results, tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        f"harness.export: {kind} needs a package that is not installed ({package}): "
        "pip install -c constraints.txt -e '.[export]'\n"
    )


def test_without_results_or_where_nothing_can_be_written_it_says_so(results, tmp_path, capsys):
    assert export("tensorboard", str(tmp_path / "none"), tmp_path / "out") == 3
    assert "no results there" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert export("tensorboard", results, tmp_path / "file" / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"harness.export: {tmp_path}/file/out: ")
