import numpy as np
import pytest

from analysis.calibrate import main
from analysis.judgement.promises import Rate
from tests.analysis.conftest import Study, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, Study(seeds=range(6), trial_sd=0.5), rng=np.random.default_rng(0))
    return folder


def test_a_study_without_a_spread_cannot_be_simulated(tmp_path, capsys):
    write_study(tmp_path, Study(seeds=[0]), rng=np.random.default_rng(0))
    assert main([str(tmp_path)]) == 2
    assert "no cell has two pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--replicates", "0"], "'0' is not a count from 1 up"),
        (["--seeds", "-1"], "'-1' is not a count from 1 up"),
        (["--sd", "0"], "'0' is not a number of points between 0 and 100"),
        (["--sd", "nan"], "'nan' is not a number"),
        (["somewhere", "--sd", "1"], "RESULTS have spreads of their own"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_words(arguments, told, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_the_seeds_of_a_real_study_can_be_changed_in_thought(folder, capsys):
    assert main([str(folder), "--replicates", "50", "--seeds", "1"]) == 0
    assert "digits common: 4 cells, 1 seed, 50 grids per scenario" in capsys.readouterr().out


def test_the_command_prints_every_rate_and_answers_with_its_exit_code(folder, capsys, monkeypatch):
    assert main([str(folder), "--replicates", "300"]) == 0
    printed = capsys.readouterr().out
    assert "digits common: 4 cells, 6 seeds, 300 grids per scenario" in printed
    assert "95 % interval of C3 holds the truth" in printed
    assert "NOT KEPT" not in printed
    monkeypatch.setattr(Rate, "is_kept", False)
    assert main([str(folder), "--replicates", "20"]) == 1
    assert "NOT KEPT" in capsys.readouterr().out


def test_a_folder_without_results_is_said_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 3
    assert "no results there" in capsys.readouterr().err
