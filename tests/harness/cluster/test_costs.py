"""Hours and money of a study on rented machines, and how many machines are worth their start."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster.costs import (
    BOOT_TIME,
    PRICES,
    SPOT_SHARE,
    count_worthwhile_workers,
    describe_costs,
    read_machines,
)
from harness.run import main
from harness.study.errors import ClusterError
from tests.builders import make_rows, make_trial

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster.yaml"

seconds = st.floats(0, 300 * BOOT_TIME)
workers = st.integers(0, 300)


class TestWorthwhileWorkers:
    @given(seconds, workers, workers)
    def test_nobody_who_is_there_is_sent_away_and_no_more_come_than_can(self, work, present, most):
        count = count_worthwhile_workers(work, present=present, most=most)
        assert max(1, present) <= count <= max(1, present, most)

    @given(seconds, st.integers(1, 300), workers)
    def test_none_is_started_for_what_is_done_before_it_has_come(self, work, present, most):
        if work <= present * BOOT_TIME:
            assert count_worthwhile_workers(work, present=present, most=most) == present

    @given(seconds, workers, workers)
    def test_who_comes_trains_for_as_long_as_it_took_to_come(self, work, present, most):
        count = count_worthwhile_workers(work, present=present, most=most)
        if count > max(1, present):
            left = work - present * BOOT_TIME
            assert left / count >= BOOT_TIME * (1 - 1e-9)

    @given(seconds, st.integers(0, 100))
    def test_a_study_long_enough_gets_all_at_once(self, work, present):
        assert count_worthwhile_workers(200 * BOOT_TIME + work, present=present, most=100) == 100

    def test_the_first_worker_is_worth_it_however_short_the_work(self):
        assert count_worthwhile_workers(1.0, present=0, most=8) == 1


def describe(trials, *, finished=(), gpus=None, prices=None):
    return list(describe_costs(CLUSTER, trials, finished, cpus=1, gpus=gpus, prices=prices or {}))


def test_the_machines_of_the_cluster_file_have_prices():
    head, kinds = read_machines(CLUSTER, {})
    assert (head.instance, head.price) == ("m6i.large", PRICES["m6i.large"])
    price = {kind.name: kind.price for kind in kinds}
    assert price["spot"] == pytest.approx(SPOT_SHARE * price["on-demand"])
    assert {kind.name: kind.most for kind in kinds} == {"spot": 8, "on-demand": 2}


@pytest.mark.parametrize(
    ("prices", "spot", "on_demand"),
    [({"spot": 0.3}, 0.3, PRICES["g6.xlarge"]), ({"g6.xlarge": 2.0}, 2.0 * SPOT_SHARE, 2.0)],
)
def test_a_price_can_be_replaced_by_the_name_of_either(prices, spot, on_demand):
    _, kinds = read_machines(CLUSTER, prices)
    price = {kind.name: kind.price for kind in kinds}
    assert price == {"spot": spot, "on-demand": on_demand}


def test_hours_and_money_follow_from_what_has_been_trained():
    # 96 trials of 1,000 s each: 8 machines, 12 trials one after the other on each
    trials = [make_trial(seed=seed) for seed in range(96)]
    done = make_trial(seed=1_000)
    row = make_rows(done, wall_time=1_000.0, device_kind="cuda").trial
    lines = describe(trials, finished=[(done, row)], prices={"spot": 1.0, "head": 0.5})
    hours = (BOOT_TIME + 12 * 1_000) / 3600
    (spot,) = (line for line in lines if line.startswith("8 spot (g6.xlarge, 1 trial each)"))
    found = re.findall(r"([\d.]+) (h|machine-hours|USD)\b", spot)
    assert [(float(n), unit) for n, unit in found] == [
        (pytest.approx(hours, abs=0.05), "h"),
        (pytest.approx(8 * hours, abs=0.05), "machine-hours"),
        (pytest.approx(8.5 * hours, abs=0.005), "USD"),
    ]
    assert "from 1 finished trials" in lines
    assert "computed" in lines[-1]


def read_hours(line: str) -> float:
    return float(re.search(r"roughly ([\d.]+) h", line)[1])


def test_one_machine_takes_as_much_longer_as_the_fleet_has_machines():
    trials = [make_trial(seed=seed) for seed in range(96)]
    row = make_rows(make_trial(seed=1_000), wall_time=1_000.0, device_kind="cuda").trial
    lines = describe(trials, finished=[(make_trial(seed=1_000), row)])
    alone, fleet = (read_hours(line) for line in lines if " spot (" in line)
    boot = BOOT_TIME / 3600
    assert (alone - boot) / (fleet - boot) == pytest.approx(8, rel=0.05)


def test_a_shared_gpu_is_no_faster_until_trials_have_been_timed_on_it():
    trials = [make_trial(seed=seed, epochs=5_000) for seed in range(96)]
    alone, shared = describe(trials), describe(trials, gpus=0.25)
    assert [*map(read_hours, shared[:4])] == [*map(read_hours, alone[:4])]
    assert any("no gain from sharing one; no trial has been timed" in line for line in shared)
    done = make_trial(seed=1_000, epochs=5_000)
    row = make_rows(done, wall_time=10_000.0, device_kind="cuda").trial
    quarter = describe(trials, gpus=0.25, finished=[(done, row)])
    whole = describe(trials, finished=[(done, row)])
    assert read_hours(quarter[0]) < read_hours(whole[0]) / 3


def test_times_on_a_cpu_say_nothing_about_a_gpu():
    done = make_trial(seed=1_000)
    row = make_rows(done, wall_time=1_000.0, device_kind="cpu").trial
    assert describe([make_trial()], finished=[(done, row)]) == describe([make_trial()])


def test_a_machine_on_which_no_trial_fits_is_named():
    assert "on-demand (g6.xlarge): too small for a trial" in describe([make_trial()], gpus=2.0)


def test_a_price_for_nothing_in_the_file_is_an_error():
    with pytest.raises(ClusterError, match=r"--price spt: .*has no such machine; it has .*spot"):
        read_machines(CLUSTER, {"spt": 0.3})


def test_an_instance_whose_price_is_not_known_is_an_error_that_says_how_to_give_it(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER.read_text().replace("g6.xlarge", "g9.xlarge"))
    with pytest.raises(ClusterError, match=r"price of g9.xlarge is not known.*--price on-demand="):
        read_machines(file, {})
    _, kinds = read_machines(file, {"g9.xlarge": 1.5})
    assert kinds[0].price == 1.5


def test_a_file_that_is_no_cluster_file_is_an_error(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("provider: {type: local}")
    with pytest.raises(ClusterError, match="not a cluster file with node types"):
        read_machines(file, {})


def test_a_plan_names_the_price_where_there_is_a_cluster_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "seeds: 2\n"
        "defaults: {dataset: digits, epochs: 2, warmup_epochs: 1, augmentation: none}\n"
        "grid: [{architecture: mlp, placement: before, depth: 2}]\n"
    )
    assert main(["small.yaml", "--dry-run"]) == 0
    assert "USD" not in capsys.readouterr().out
    (tmp_path / "cluster.yaml").write_text(CLUSTER.read_text())
    assert main(["small.yaml", "--dry-run", "--price", "spot=0.25"]) == 0
    assert "rented     1 spot (g6.xlarge, 1 trial each)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["small.yaml", "--dry-run", "--price", "0.25"])


def test_the_readmes_hours_and_money_are_what_its_command_prints(tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(
        r"^python -m harness\.run (grids/\S+ --dry-run --seeds .*)$", readme, re.MULTILINE
    )
    told = readme.partition("It prints, for that many")[2].partition("\n\n")[0]
    rows = re.findall(r"([\d.]+) h and\s([\d.]+) USD on (\d) (on demand|spot)", told)
    assert len(rows) == 3
    monkeypatch.chdir(tmp_path)
    for name in ("grids", "cluster.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert main(shlex.split(command)) == 0
    said = capsys.readouterr().out
    assert "to train   1000" in said
    for hours, money, machines, kind in rows:
        assert re.search(
            rf"{machines} {kind.replace(' ', '-')} \(g6\.xlarge, 1 trial each\): "
            rf"roughly {hours} h, .* {money} USD with the head",
            said,
        ), said
