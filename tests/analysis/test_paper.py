"""What a paper takes from a report: figures, tables, methods and a citation, all of this study."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis import report
from analysis.page.methods import cite
from analysis.page.paper import as_latex, tabulate_latex, tabulate_markdown
from analysis.page.parts import Table
from harness.study.records import AnalysisPlan
from harness.study.trials import PROGRAMS
from tests.analysis.conftest import Study, write_study

OWN = "50% _of_ {mine} & \\input{x}"
HOSTILE = Table(("a_b", "c|d"), (("[1mm]", "\\write18{x}"), ("<b>", "~^$5")), words=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    study = Study(
        architectures=("plain",),
        placements=("before", "after", OWN),
        seeds=range(4),
        programs={"plain": {**PROGRAMS["plain"], OWN: "conv act norm"}},
        plan=AnalysisPlan(grid="simulated", margin_accuracy=0.75, control=OWN, epochs=6),
        settings={"lr": 0.05, "batch_size": 32},
    )
    study = replace(study, diverges=lambda t: t.seed == 1 and t.placement == OWN and t.depth == 8)
    write_study(folder, study, rng=np.random.default_rng(0))
    assert report.main([str(folder), "--format", "html,paper"]) == 0
    return folder / "report"


def test_every_figure_is_a_pdf_as_wide_as_a_column_or_a_page(written):
    figures = {path.stem: path.read_bytes() for path in (written / "paper/figures").iterdir()}
    assert figures.keys() == {path.stem for path in (written / "figures").glob("*.svg")} != set()
    widths = set()
    for content in figures.values():
        assert content.startswith(b"%PDF")
        widths.add(round(float(re.search(rb"/MediaBox *\[0 0 ([\d.]+)", content)[1]) / 72 * 25.4))
    assert widths == {85, 175}


def test_every_table_of_the_page_is_there_for_latex_and_for_markdown(written):
    page = (written / "index.html").read_text(encoding="utf-8")
    tables = written / "paper" / "tables"
    latex = {path.stem: path.read_text(encoding="utf-8") for path in tables.glob("*.tex")}
    assert latex.keys() == {path.stem for path in tables.glob("*.md")}
    shown = re.findall(r'<figure id="figure-([^"]*)".*?</figure>', page, flags=re.DOTALL)
    assert latex.keys() >= {"claims", "accuracy"}
    assert len(latex) > len(shown) / 2
    for text in latex.values():
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}


def test_the_methods_say_what_this_study_did(written):
    said = (written / "paper" / "methods.md").read_text(encoding="utf-8")
    for words in (
        "scikit-learn's digits (10 classes, images of 1x8x8; 1,077 to train",
        "in plain of depth 8 and 14.",
        "Each arm of each network, 6 together, was planned with 4 seeds, 24 trainings in all",
        "(23 done, 1 diverged",
        "The claims are judged after 6 epochs of training, as fixed beforehand",
        "for 6 epochs by SGD with Nesterov momentum 0.9 in batches of 32",
        "peak learning rate of 0.05,",
        "±0.75 percentage points of accuracy, a ratio of 0.80 to 1.25",
        "The data were looked at once.",
    ):
        assert words in said
    page = (written / "index.html").read_text(encoding="utf-8")
    assert "±0.75 percentage points of accuracy" in page


def test_names_of_results_are_text_to_latex(written):
    for file in (written / "paper").rglob("*.tex"):
        text = file.read_text(encoding="utf-8")
        assert "\\input" not in text.replace(as_latex("\\input"), "")
        assert not re.search(r"(?<!\\)[%&#_](?=of|mine|\binput)", text)
    assert as_latex(OWN) in (written / "paper/tables/accuracy.tex").read_text(encoding="utf-8")


def test_a_cell_that_latex_or_markdown_would_run_is_printed():
    latex = tabulate_latex(HOSTILE).splitlines()
    assert latex[2] == r"a\_b & c|d \\"
    assert latex[4] == r"{[}1mm] & \textbackslash{}write18\{x\} \\"
    assert latex[5] == r"$<$b$>$ & \textasciitilde{}\textasciicircum{}\$5 \\"
    assert tabulate_markdown(HOSTILE).splitlines()[0] == r"| a\_b | c\|d |"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_sets_every_table(written, tmp_path):
    tables = sorted((written / "paper" / "tables").glob("*.tex"))
    body = "\n\n".join(rf"\input{{{path}}}" for path in [*tables, written / "paper/methods.tex"])
    source = (
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    (tmp_path / "paper.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]


def test_the_citation_is_that_of_the_repository(written):
    root = Path(__file__).parents[2]
    filed = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{filed["version"]}"' in project
    said = (written / "paper" / "citation.bib").read_text(encoding="utf-8")
    assert said == cite()
    (paper,) = filed["references"]
    for fact in (filed["title"], paper["doi"], paper["title"], filed["license"]):
        assert " ".join(str(fact).split()) in " ".join(said.split())
