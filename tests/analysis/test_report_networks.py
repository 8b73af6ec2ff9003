"""Networks that no claim is about: the report gives their numbers, and no empty verdicts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis import report
from tests.analysis.conftest import Study, write_study


def report_of(folder, architectures, capsys):
    study = Study(
        architectures=architectures,
        placements=("before", "after"),
        depths=(8,),
        accuracy=lambda t: 5.0 * (t.placement == "after"),
        gradient=lambda t: 0.3 * (t.placement == "after"),
    )
    write_study(folder, study, rng=np.random.default_rng(0))
    assert report.main([str(folder)]) == 0
    told = json.loads((folder / "report/verdicts.json").read_text(encoding="utf-8"))
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    return " ".join(capsys.readouterr().out.split()), page, told["networks"]


def test_without_a_claimed_network_the_numbers_stand_in_place_of_empty_cards(tmp_path, capsys):
    said, page, (network,) = report_of(tmp_path, ["mlp"], capsys)
    assert network["name"] == "mlp"
    assert network["headline"]["estimate"] == pytest.approx(5, abs=1)
    assert network["effect"].endswith("5 pairs in 1 cell")
    assert network["sentence"].startswith("mlp: after minus before is +")
    assert "; gradient flow of after over before is 1.9" in network["sentence"]
    assert network["sentence"].endswith("; no claim of the paper is about it.")
    assert network["sentence"] in said
    absence = "this grid has none of them."
    assert absence in said
    assert "add plain or vgg" not in said
    assert page.count('class="card ') == 1  # how to read it
    assert page.index("mlp: after minus before") < page.index(absence) < page.index("<nav")


def test_beside_claims_the_other_networks_come_behind_them(tmp_path, capsys):
    said, page, networks = report_of(tmp_path, ["mlp", "plain"], capsys)
    assert [network["name"] for network in networks] == ["mlp"]
    assert said.index("C5 OPEN") < said.index("NETWORKS WITHOUT A CLAIM mlp: after minus before")
    assert page.count('class="card ') == 6
    assert page.rindex('class="card ') < page.index("mlp: after minus before") < page.index("<nav")


def test_claimed_networks_alone_leave_nothing_to_add(tmp_path, capsys):
    said, _, networks = report_of(tmp_path, ["plain", "resnet"], capsys)
    assert networks == []
    assert "NETWORKS" not in said


def test_too_few_seeds_are_said_once_ahead_of_the_cards(tmp_path, capsys):
    study = Study(placements=("before", "after"), seeds=range(2))
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    assert report.main([str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("no cell has 3 pairs") == 1
    assert said.index("no cell has 3 pairs") < said.index("C1 "), said
    assert "too few pairs" in said
    assert "To settle it" not in said, said
