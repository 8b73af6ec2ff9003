"""What a reader meets first, and that no word of the code is among it."""

from __future__ import annotations

import html
import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from analysis import report
from analysis.judgement.effects import AFTER_AS_BEFORE
from harness.study.records import AnalysisPlan, EpochRow, GradientRow, TrialRow
from tests.analysis.conftest import Study, write_plan, write_study

COLUMNS = {
    field.name for row in (TrialRow, EpochRow, GradientRow, AnalysisPlan) for field in fields(row)
}
CODE = re.compile(
    r"\bdex\b|\blog10\b|\b(?=[a-f]*\d)[0-9a-f]{13,}\b|exploratory: \w+ -|with the flow of"
)


def write_lengths(folder):
    """Lengths, widths, borrowed steps, runs that collapse, and a plan that was changed."""
    base = Study(
        architectures=("plain", "resnet"),
        dataset="fashion-mnist",
        depths=(8,),
        epochs=2,
        accuracy=lambda t: (
            1.0 * (t.placement == "after")
            - 70.0 * (t.placement == "none" and t.seed == 0)
            - 2.0 * (t.placement == "none")
        ),
    )
    long = replace(base, epochs=6, settings={"warmup_epochs": 1.0})
    wide = replace(base, settings={"width_factor": 2.0})
    grafts = [
        replace(base, architectures=("plain",), placements=(arm,), settings={"flow": donor})
        for arm, donor in (("after", "before"), ("before", "after"))
    ]
    trials = [
        trial
        for study in (base, long, wide, *grafts)
        for trial in write_study(folder, study, rng=np.random.default_rng(0))
    ]
    write_plan(folder, trials, AnalysisPlan(grid="lengths", control="none"))


def write_norms(folder):
    trials = [
        trial
        for settings in ({}, {"norm": "layer"}, {"norm": "group", "norm_groups": 4})
        for trial in write_study(
            folder, Study(depths=(8,), settings=settings, epochs=2), rng=np.random.default_rng(0)
        )
    ]
    write_plan(folder, trials, AnalysisPlan(grid="norms"))


def write_part(folder):
    """Rates that are compared, and half of the trials missing."""
    trials = [
        trial
        for lr in (0.05, 0.4)
        for trial in write_study(
            folder,
            Study(depths=(8,), settings={"lr": lr}, epochs=2, is_lost=lambda t: t.seed > 2),
            rng=np.random.default_rng(0),
        )
    ]
    write_plan(folder, trials, AnalysisPlan(grid="part"))


FOLDERS = {"lengths": write_lengths, "norms": write_norms, "part": write_part}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    results = tmp_path_factory.mktemp(request.param) / "results"
    FOLDERS[request.param](results)
    assert report.main([str(results)]) == 0
    return results


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def text_of(markup):
    shown = re.sub(r"<(script|style|code).*?</\1>", " ", markup, flags=re.DOTALL)
    return html.unescape(re.sub("<[^>]*>", "\n", shown))


def test_no_column_and_no_word_of_the_code_is_on_the_page(page):
    written = text_of(page[: page.index("How to print the deciding number")])
    words = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", written))
    assert not words & COLUMNS
    assert not re.findall(r"\b[a-z_]+=[\w.]+", written)
    assert not CODE.findall(written)


def test_the_answer_and_the_data_stand_ahead_of_every_verdict(page, folder):
    head = text_of(page[: page.index('<section class="cards"')])
    content = json.loads((folder / "report" / "verdicts.json").read_text(encoding="utf-8"))
    sentence = content["answer"][0]
    assert sentence.replace("-", "\N{MINUS SIGN}") in head.replace("-", "\N{MINUS SIGN}")
    for name in ("data", "networks", "seeds", "training", "hardware"):
        assert f"\n{name}\n" in head
    if "part" in str(folder):
        assert sentence.startswith("So far, ")


def test_borrowed_steps_are_explained_where_an_arm_borrows_some(page, folder):
    assert ("Arms with the steps of another" in page) == ("lengths" in str(folder))


def test_a_card_has_its_answer_first_in_its_colour_and_leads_to_its_section(page, folder):
    content = json.loads((folder / "report" / "verdicts.json").read_text(encoding="utf-8"))
    cards = re.findall(r'<article class="card.*?</article>', page, flags=re.DOTALL)
    told = [
        (claim, answer, colour)
        for card in cards
        for claim in re.findall(r'<span class="claim">(C\d)', card)
        for colour, answer in re.findall(
            r'<p class="word (\w+)">.*?</span> <span>([a-z ]+) <span class="grade">', card
        )
    ]
    wanted = [
        (verdict["claim"], verdict["answer"], verdict["answer"].split()[0])
        for claim in ("C1", "C2", "C3", "C4", "C5")
        for verdict in content["verdicts"]
        if verdict["claim"] == claim
    ]
    assert told == wanted
    assert all(re.search(r'class="more"><a href="#\w+"', card) for card in cards)


def test_what_people_look_for_comes_first(page):
    found = re.findall(r'<section id="(\w+)"', page)
    wanted = ["training", "lengths", "tuning", "course", "fates", "differences", "pairs"]
    assert [name for name in wanted if name in found] == found[: found.index("pairs") + 1]


def test_borrowed_steps_are_named_as_such():
    assert AFTER_AS_BEFORE == "after (steps of before)"
