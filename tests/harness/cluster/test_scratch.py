"""What a run leaves on the machine: nothing, or what the next run removes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.cluster.scratch import _is_in_use, make_scratch, note_session, sweep_scratch
from harness.results.store import Store

OWNER = (
    "import sys, time; from harness.cluster.scratch import make_scratch, note_session\n"
    "with make_scratch('code') as folder:\n"
    "    note_session(folder, sys.argv[1])\n"
    "    print(folder, flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def tmpdir_of_its_own(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def session(tmp_path) -> Path:
    session = tmp_path / "ray/session_2026-11-27_09-18-29_879881_29656"
    (session / "logs").mkdir(parents=True)
    return session


def fail_in_scratch(session: Path) -> Path:
    """A run that fails; the folder it leaves."""
    with suppress(RuntimeError), make_scratch("code") as folder:
        (folder / "harness").mkdir()
        note_session(folder, str(session))
        raise RuntimeError
    return folder


def test_a_folder_goes_with_its_block_and_takes_its_session_along(tmp_path, session):
    with make_scratch("code") as folder:
        (folder / "harness").mkdir()
        note_session(folder, str(session))
    assert [path.name for path in tmp_path.iterdir()] == ["ray"]
    assert not session.exists()


def test_a_session_whose_run_failed_is_kept_until_the_next_run(tmp_path, session):
    folder = fail_in_scratch(session)
    assert session.exists()
    assert not (folder / "harness").exists()
    assert sweep_scratch() == [str(folder)]
    assert not session.exists()
    with pytest.raises(RuntimeError), make_scratch("tune"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["ray"]


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_has_is_not(session):
    with subprocess.Popen([sys.executable, "-c", OWNER, session], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        folder = owner.stdout.readline().decode().strip()
        assert sweep_scratch() == []
        owner.kill()
    assert Path(folder).exists()
    assert sweep_scratch() == [folder]
    assert not Path(folder).exists()
    assert not session.exists()


def test_a_session_in_which_a_process_still_writes_waits_for_a_later_run(session):
    folder = fail_in_scratch(session)
    with (
        (session / "logs/worker.out").open("wb") as log,
        subprocess.Popen(["sleep", "60"], stdout=log) as worker,
    ):
        assert sweep_scratch() == []
        worker.kill()
    assert sweep_scratch() == [str(folder)]


def test_folders_that_are_not_ours_are_left_alone(tmp_path, session):
    """Neither a like name nor a note in it is enough."""
    for name in ("harness-mine", "harness-code-abcdefgh", "tune-abcdefgh", "harness-00jn55dw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".session").write_text(str(session))
    (tmp_path / "harness-mine/.owner").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/.owner").touch()
    (tmp_path / "harness-code-aaaaaaaa").symlink_to("elsewhere")
    before = sorted(tmp_path.rglob("*"))
    assert sweep_scratch() == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("named", ["/", "", "ray", "../..", "mine/session_1"])
def test_a_note_leads_to_sessions_of_this_user_alone(tmp_path, named, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("ray", "mine/real_1"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "mine/session_1").symlink_to("real_1")
    with make_scratch("code") as folder:
        note_session(folder, named)
    assert (tmp_path / "ray").exists()
    assert (tmp_path / "mine/real_1").exists()


GRID = """
name: small
defaults: {dataset: digits, epochs: 40, augmentation: none}
seeds: 8
grid:
  - {architecture: mlp, placement: [before, after], depth: 2, width_factor: 0.1}
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
def test_after_a_kill_the_next_run_leaves_nothing(tmp_path, short_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parents[3]
    home = short_folder
    environment = {**os.environ, "TMPDIR": str(home), "PYTHONPATH": str(root)}
    Path("small.yaml").write_text(GRID, encoding="utf-8")
    command = [sys.executable, "-m", "harness.run", "small.yaml", "-q"]

    def left() -> list[str]:
        return sorted(
            path.name
            for path in [*home.iterdir(), *home.glob("ray/session_2*")]
            if path.name.startswith(("harness-", "tune-", "session_"))
        )

    with subprocess.Popen(command, env=environment) as run:
        store = Store("results/small")
        while not store.finished_ids():
            assert run.poll() is None
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGKILL)
    *folders, session = left()
    assert {name.rpartition("-")[0] for name in folders} == {"harness-code", "harness-tune"}
    deadline = time.monotonic() + 60
    while _is_in_use(home / "ray" / session) and time.monotonic() < deadline:
        time.sleep(0.5)  # workers outlive their driver for some seconds
    subprocess.run(command, env=environment, check=True)
    assert left() == []
