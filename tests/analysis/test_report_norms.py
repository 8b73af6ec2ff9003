"""The report of a grid with several norms: what is said of each, and of what depends on them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from dataclasses import replace

import pandas as pd
import pytest

from analysis import report
from analysis.load import load_results
from analysis.page import frames
from analysis.page.runs import show_integrity
from tests.analysis.judgement.test_studies import write

LAYER = {"norm": "layer"}


@pytest.fixture(scope="module")
def norms(tmp_path_factory):
    """Batch norm, where the order matters without skips, and layer norm, where it does not."""
    folder = tmp_path_factory.mktemp("norms")
    write(
        folder,
        {},
        LAYER,
        architectures=("mlp", "plain", "resnet"),
        accuracy=lambda t: (
            4.0 * ((t.architecture, t.placement, t.norm) == ("plain", "after", "batch"))
        ),
    )
    return folder


@pytest.fixture(scope="module")
def said(norms):
    """What the terminal said."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert report.main([str(norms)]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def page(norms, said):
    return (norms / "report" / "index.html").read_text(encoding="utf-8")


def text_of(markup):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", markup)).replace("\xa0", " ").strip()


def test_norms_stand_side_by_side_with_word_effect_interval_and_pairs(page):
    table = re.findall(r'<table class="glance">.*?</table>', page, flags=re.DOTALL)[0]
    heads = re.findall(r'<th scope="col">([^<]*)', table)
    assert heads == ["claim", "batch norm", "layer norm"]
    rows = re.findall(r'<th scope="row">(C\d).*?</th>(.*?)</tr>', table, flags=re.DOTALL)
    assert [claim for claim, _ in rows] == ["C1", "C2", "C3", "C4", "C5"]
    batch, layer = (text_of(cell) for cell in re.findall("<td.*?</td>", rows[0][1]))
    pattern = r". (holds|open) [a-z ]+ .\d\.\d\d points \[.\d\.\d\d, .\d\.\d\d\], 5 pairs in 1 cell"
    assert re.fullmatch(pattern, batch).group(1) == "holds"
    assert re.fullmatch(pattern, layer).group(1) == "open"


def test_the_page_asks_of_the_norm_and_says_whose_claim_it_is(page):
    assert "<h1>Does the norm belong before or after ReLU?</h1>" in page
    assert "The paper claims this of batch norm and ReLU alone" in page
    first = re.findall(r'<article class="card.*?</article>', page, flags=re.DOTALL)[0]
    assert text_of(first).count("ReLU before batch norm is best") == 1
    same = re.findall(r"<strong>The same question:</strong> ([^<]*)", first)
    assert same == ["In CNNs without skip connections, ReLU before layer norm is best"]


def test_theory_of_batch_norm_is_not_drawn_over_another_norm(page):
    about = dict(re.findall(r'<span id="about-(flow-mlp[^"]*)">([^<]*)', page))
    drawn = {name: "theory predicts" in words for name, words in about.items()}
    assert sorted(drawn.values()) == [False, True]
    assert not next(is_drawn for name, is_drawn in drawn.items() if "layer" in name)


def test_the_terminal_tells_the_claims_in_full_and_other_norms_in_a_line_each(said):
    full, short = said.split("THE SAME QUESTIONS: layer norm\n")
    assert full.count("ReLU before batch norm is best") == 1
    lines = short.split("\n\n")[0].splitlines()
    assert [line.split()[1] for line in lines] == ["C1", "C2", "C3", "C4", "C5"]
    assert all(re.search(r"(points|ratio).*, \d+ pairs in 1 (cell|twin)$", line) for line in lines)


def test_json_names_norm_activation_and_optimizer_of_every_verdict(norms, said):
    content = json.loads((norms / "report" / "verdicts.json").read_text(encoding="utf-8"))
    found = [
        (v["claim"], v["norm"], v["activation"], v["optimizer"], v["is_claimed"])
        for v in content["verdicts"]
    ]
    claims = ("C1", "C2", "C3", "C4", "C5")
    assert found == [
        (claim, norm, "relu", "sgd", norm == "batch")
        for norm in ("batch", "layer")
        for claim in claims
    ]
    assert len({tuple(verdict) for verdict in content["verdicts"]}) == 1


def test_interactions_are_a_section_and_a_file_and_exploratory(norms, page):
    section = page[page.index('<section id="interactions"') :].partition("</section>")[0]
    assert "Exploratory: no claim rests on it" in text_of(section)
    assert "Theory expects" not in section  # one size of the probe
    changes = pd.read_csv(norms / "report" / "interactions.csv")
    assert set(changes["pool"]) == {"skip-free CNNs", "residual networks", "mlp"}
    (free,) = changes[
        (changes["pool"] == "skip-free CNNs") & (changes["quantity"] == "accuracy")
    ].to_dict("records")
    assert free["p_holm"] < 0.05
    assert free["estimate"] == pytest.approx(free["at_value"] - free["at_reference"])
    assert len(re.findall(r"<tr><th scope=.row.>Norm", section)) == len(changes)


def test_studies_read_together_are_simulated_together(page):
    assert "no effect in any of 2 studies" in page
    assert "digits common, layer norm: no effect anywhere" in page


def test_a_grid_of_layer_norm_alone_is_said_to_be_one(tmp_path, capsys):
    write(tmp_path, LAYER, architectures=("plain",))
    assert report.main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h1>Does layer norm belong before or after ReLU?</h1>" in page
    assert not (tmp_path / "report" / "interactions.csv").exists()
    out = capsys.readouterr().out
    assert "LAYER NORM\n" in out
    assert "ReLU before layer norm is best" in out


@pytest.mark.parametrize(
    ("identities", "told", "untold"),
    [
        (
            {"qa_sum": 1e-7, "qa_dot": 2e-4},
            ["at most 1e-07 (the sum of", "and 0.0002 (a layer's weight"],
            [],
        ),
        ({"qa_sum": 1e-7, "qa_dot": math.nan}, ["at most 1e-07"], ["nan", "weight times"]),
        ({"qa_sum": math.nan, "qa_dot": math.nan}, ["of the training time."], ["zero", "nan"]),
    ],
)
def test_identities_are_told_where_there_are_any(norms, identities, told, untold):
    results = replace(load_results(str(norms)), identities=identities)
    intro = show_integrity(results, frames.tabulate_trials(results)).intro
    assert all(words in intro for words in told)
    assert not any(words in intro for words in untold)
