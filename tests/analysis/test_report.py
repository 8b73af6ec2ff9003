"""The report: what it says first, that it opens without a network, and that strings stay data."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import report
from analysis.page.html import name_file
from harness.results import Store
from harness.study.records import AnalysisPlan, ChoiceRow
from harness.study.trials import PROGRAMS
from tests.analysis.conftest import (
    Study,
    always,
    write_failure,
    write_plan,
    write_study,
)
from tests.builders import make_failure

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The report of a complete study of known truth."""
    folder = tmp_path_factory.mktemp("complete")
    study = Study(
        accuracy=lambda t: 2.0 * (t.architecture == "plain" and t.placement == "after"),
        gradient=lambda t: 0.3 * (t.architecture == "plain" and t.placement == "after"),
    )
    write_study(folder, study, rng=np.random.default_rng(0))
    assert report.main([str(folder)]) == 0
    return folder / "report"


def report_of(folder: Path, study: Study) -> Path:
    write_study(folder, study, rng=np.random.default_rng(0))
    assert report.main([str(folder)]) == 0
    return folder / "report" / "index.html"


def test_a_complete_study_is_not_called_incomplete(complete):
    assert "INCOMPLETE" not in (complete / "index.html").read_text(encoding="utf-8")


def test_missing_and_failed_trials_are_counted_first_and_named(tmp_path, capsys):
    study = Study(
        is_lost=lambda t: t.placement == "after" and t.depth == 14 and t.seed == 3,
        fails=lambda t: t.placement == "none" and t.depth == 8 and t.seed == 1,
    )
    page = report_of(tmp_path, study).read_text(encoding="utf-8")
    banner = page[page.index("INCOMPLETE") :][:200]
    assert "4 of 60 planned trials" in banner
    assert "2 of them failed" in banner
    assert page.index("INCOMPLETE") < page.index("C1")
    assert "CUDA out of memory" in page
    assert "INCOMPLETE: 4 of 60 planned trials" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The report of a grid with a tuning stage, judged at the common and at the tuned recipes."""
    folder = tmp_path_factory.mktemp("tuned")
    common = Study(depths=(8,))
    better = replace(common, settings={"recipe": "tuned", "lr": 0.2})
    tuning = [
        replace(common, seeds=[0], settings={"stage": "tuning", "lr": lr, "epochs": 2})
        for lr in (0.05, 0.1, 0.2)
    ]
    trials = [
        trial
        for study in (*tuning, common, better)
        for trial in write_study(folder, study, rng=np.random.default_rng(0))
    ]
    write_plan(folder, trials, AnalysisPlan(grid="tuned"))
    choices = [
        ChoiceRow(
            **asdict(replace(trial, lr=lr)),
            arm=trial.arm,
            seeds=1,
            diverged=int(lr == 0.05),
            validation_accuracy=0.8 + lr / 2,
            chosen=lr == 0.2,
            at_edge=lr != 0.1,
        )
        for trial in common.trials
        if trial.seed == 0
        for lr in (0.05, 0.1, 0.2)
    ]
    Store(folder).write_choices(choices)
    assert report.main([str(folder)]) == 0
    return folder / "report"


def test_both_recipes_stand_side_by_side_in_the_card_of_each_claim(tuned):
    page = (tuned / "index.html").read_text(encoding="utf-8")
    cards = re.findall(r'<article class="card.*?</article>', page, flags=re.DOTALL)
    said = [
        re.findall(r'<span class="claim">(C\d)|<h3 class="study">([^<]*)', card) for card in cards
    ]
    studies = [("", "Common recipe"), ("", "Tuned recipes")]
    assert said == [[(claim, ""), *studies] for claim in ("C1", "C2", "C3", "C4", "C5")]
    assert page.count('class="glance"') == 1


def test_the_choices_are_told_with_their_scores_and_the_edge_of_the_list(tuned):
    page = (tuned / "index.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="tuning"') :].partition("</section>")[0]
    assert "6 of 6 arms do best at the smallest or largest rate tried" in section
    rows = re.findall(r"<tr><th scope=.row.>(.*)", section)
    assert len(rows) == 6
    assert re.sub("<[^>]*>", "|", rows[0]) == (
        "plain-8|before|0.2|0.0005|90.00|↔ edge of the list|0.05: 82.5 (1✕); 0.1: 85.0; 0.2: 90.0"
    )


def test_trials_that_tune_are_in_no_comparison(tuned):
    page = (tuned / "index.html").read_text(encoding="utf-8")
    accuracy = page[page.index('id="figure-accuracy"') :].partition("</figure>")[0]
    assert "tuning" not in accuracy
    assert {"plain, common recipe", "plain, tuned recipes"} <= set(
        re.findall("<h4>([^<]*)</h4>", accuracy)
    )
    assert 'id="figure-integrity-tuning"' in page


def test_the_terminal_says_the_verdicts_in_words_and_where_the_page_is(tmp_path, capsys):
    page = report_of(tmp_path, Study(depths=(8,)))
    said = capsys.readouterr().out
    for claim in ("C1", "C2", "C3", "C4", "C5"):
        assert re.search(rf"{claim} (HOLDS|FAILS|OPEN|NO GAIN TO EXPLAIN), [a-z]", said)
    assert said.rstrip().endswith(str(page))


def test_verdicts_are_json_that_any_reader_takes(complete):
    text = (complete / "verdicts.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [verdict["claim"] for verdict in content["verdicts"]] == ["C1", "C2", "C3", "C4", "C5"]
    assert content["complete"] is True
    assert content["trials_planned"] == content["trials_found"] == 60


def test_tables_hold_every_effect_and_every_trial(complete):
    effects = pd.read_csv(complete / "effects.csv")
    cell = effects[
        (effects["quantity"] == "accuracy")
        & (effects["kind"] == "cell")
        & (effects["arm"] == "after")
        & (effects["baseline"] == "before")
    ].set_index(["architecture", "depth"])["estimate"]
    trials = pd.read_csv(complete / "trials.csv")
    assert len(trials) == 60
    means = trials.groupby(["architecture", "depth", "placement"])["test_accuracy"].mean()
    for (architecture, depth), estimate in cell.items():
        arm, baseline = (means[architecture, depth, name] for name in ("after", "before"))
        assert estimate == pytest.approx(100 * (arm - baseline))


def test_what_else_the_order_changes_is_on_the_page_and_in_a_table(complete):
    table = pd.read_csv(complete / "practice.csv")
    assert set(table["kind"]) == {"cell", "architecture"}
    epochs = table[(table["quantity"] == "epochs") & (table["kind"] == "cell")]
    assert len(epochs) == 4 * 3  # cells and arms
    assert epochs["mean"].between(1, 6).all()
    page = (complete / "index.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="practice">') :]
    section = section[: section.index("</section>")]
    assert "98\xa0% of the validation accuracy" in section
    assert "<td>12.00 (+12.00)" in section  # of the logits, where norm is ahead
    classes = pd.read_csv(complete / "trials.csv")["class_accuracy"].iloc[0].split()
    assert len(classes) == 10


def test_every_figure_is_also_a_file(complete):
    page = (complete / "index.html").read_text(encoding="utf-8")
    figures = set(re.findall(r'<figure id="figure-([^"]+)"', page))
    files = {path.stem for path in (complete / "figures").glob("*.svg")}
    assert figures == files
    assert len(files) > 8


def test_each_card_leads_to_a_section_that_is_there(complete):
    page = (complete / "index.html").read_text(encoding="utf-8")
    cards = re.findall(r'<article class="card.*?</article>', page, flags=re.DOTALL)
    links = [re.findall(r'href="#([^"]*)"', card) for card in cards]
    assert links == [["differences"], ["mechanism"], ["differences"], ["course"], ["depth"]]
    assert all(f'<section id="{anchor}">' in page for (anchor,) in links)


def test_the_page_asks_for_nothing_outside_itself(complete):
    page = (complete / "index.html").read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', markup)
    policy = html.unescape(re.findall(r'Security-Policy" content="([^"]*)"', markup)[0])
    assert re.sub(r"sha256-[\w+/=]+", "HASH", policy).split("; ") == [
        "default-src 'none'",
        "script-src 'HASH'",
        "style-src 'HASH'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_page_of_a_small_study_is_sent_in_a_second(complete):
    assert (complete / "index.html").stat().st_size < 1_000_000


def test_a_margin_changed_in_sight_of_results_is_said_on_the_first_screen(tmp_path, capsys):
    study = Study(architectures=("plain",), depths=(8,))
    for day, margin in enumerate((0.5, 2.0), start=1):
        write_plan(
            tmp_path,
            study.trials,
            replace(study.plan, margin_accuracy=margin),
            file=f"plans/{day:016x}.parquet",
            written=datetime(2026, 11, day, tzinfo=UTC),
            finished_before=7 * day,
        )
    page = report_of(tmp_path, study).read_text(encoding="utf-8")
    assert page.index("the margin of accuracy from 0.5 to 2.0") < page.index("C1")
    assert "beware: The analysis was planned anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--watch", "-1"], "'-1' is not a number of seconds from 1 to 86,400"),
        (["--watch", "nan"], "'nan' is not a number of seconds from 1 to 86,400"),
        (["-o", ""], "no folder has an empty name"),
        (["--format", "doc"], "'doc' is not one of html, pdf, md, png, paper"),
    ],
)
def test_an_option_out_of_range_is_refused_ahead_of_any_reading(options, message, capsys):
    with pytest.raises(SystemExit) as refused:
        report.main(["no-such-folder", *options])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_watching_ends_with_the_last_trial_and_stops_renewing_the_page(tmp_path, monkeypatch):
    study = Study(architectures=("plain",), placements=("before", "after"), depths=(8,))
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    last = tmp_path / "trials" / f"{study.trials[-1].id}.parquet"
    content = last.read_bytes()
    last.unlink()
    page = tmp_path / "report" / "index.html"
    waited = []

    def train_the_last(seconds):
        waited.append(seconds)
        assert 'http-equiv="refresh" content="7.0"' in page.read_text(encoding="utf-8")
        last.write_bytes(content)

    monkeypatch.setattr("analysis.report.time.sleep", train_the_last)
    assert report.main([str(tmp_path), "--watch", "7"]) == 0
    assert waited == [7.0]
    text = page.read_text(encoding="utf-8")
    assert "INCOMPLETE" not in text
    assert 'http-equiv="refresh"' not in text


def test_figures_are_pixels_too_where_that_is_wanted(tmp_path):
    study = Study(architectures=("plain",), placements=("before", "after"), depths=(8,))
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    assert report.main([str(tmp_path), "--format", "html,png"]) == 0
    figures = tmp_path / "report" / "figures"
    drawn = {path.stem for path in figures.glob("*.png")}
    assert drawn == {path.stem for path in figures.glob("*.svg")} != set()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.glob("*.png"))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_prints_to_pdf(tmp_path):
    study = Study(architectures=("plain",), placements=("before", "after"), depths=(8,))
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    assert report.main([str(tmp_path), "--format", "pdf"]) == 0
    content = (tmp_path / "report" / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(content) > 50_000


def test_a_pdf_without_a_browser_is_refused_ahead_of_any_reading(monkeypatch, capsys):
    monkeypatch.setattr("analysis.page.drawing._BROWSERS", ())
    with pytest.raises(SystemExit) as refused:
        report.main(["no-such-folder", "--format", "pdf"])
    assert refused.value.code == 2
    assert "a PDF needs Chromium or Chrome" in capsys.readouterr().err


def test_strings_of_the_results_do_not_become_markup(page_of):
    page = page_of("hostile names").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert HOSTILE not in page
    assert re.sub("<script.*?</script>", "", page, flags=re.DOTALL).count("<script") == 0


def test_names_are_shown_as_they_are_but_for_marks_that_turn_the_line(page_of):
    page = page_of("odd names")
    text = html.unescape(page.read_text(encoding="utf-8"))
    turned, *others = ODD
    assert all(name in text for name in others)
    assert turned not in text
    assert turned.replace("\u202e", "\N{REPLACEMENT CHARACTER}") in text
    assert "\u202e" not in text


def test_no_file_of_a_report_holds_a_character_that_is_obeyed(tmp_path, capsys):
    study = obeyed_study()
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    failed = replace(study.trials[0], seed=9)
    write_plan(tmp_path, (*study.trials, failed), replace(study.plan, grid=OBEYED))
    told = {"message": OBEYED, "traceback": OBEYED, "host": OBEYED}
    Store(tmp_path).write_failure(make_failure(failed, **told))
    assert report.main([str(tmp_path), "--format", "html,md,png"]) == 0
    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in (tmp_path / "report").rglob("*")
        if file.is_file() and file.suffix != ".png"
    }
    texts["terminal"] = capsys.readouterr().out
    obeyed = "\x1b\0\x9b\u2028\ufffe\U000e0041"
    assert not {(name, sign) for name, text in texts.items() for sign in obeyed if sign in text}
    assert json.loads(texts["verdicts.json"])["grid"] == OBEYED  # data stay as they were


def test_megabytes_of_text_are_cut_and_different_texts_stay_different(tmp_path):
    names = (HUGE + "one", HUGE + "two")
    programs = {**PROGRAMS["plain"], **dict.fromkeys(names, "conv act norm")}
    study = Study(
        architectures=("plain",),
        placements=("before", *names),
        depths=(8,),
        seeds=range(2),
        programs={"plain": programs},
        plan=AnalysisPlan(grid="", control=names[0]),
    )
    page = report_of(tmp_path, study)
    assert page.stat().st_size < 3_000_000
    arms = pd.read_csv(tmp_path / "report/trials.csv")["placement"]
    assert arms.nunique() == 3
    assert arms.str.len().max() < 600


def test_figures_of_different_names_are_different_files():
    names = ["a b", "a_b!", "a_b?", "a*b", "x" * 300, "x" * 301, "..", "/etc/passwd"]
    files = {name_file(name) for name in names}
    assert len(files) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,140}", file) for file in files)


def test_results_that_cannot_be_analysed_are_one_message_and_exit_code_3(tmp_path, capsys):
    assert report.main([str(tmp_path / "nothing")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no results there" in said.err


def test_a_report_that_cannot_be_written_is_one_message_and_exit_code_3(tmp_path, capsys):
    study = Study(architectures=("plain",), placements=("before", "after"), depths=(8,))
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    (tmp_path / "report").write_text("a file in the way", encoding="utf-8")
    assert report.main([str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "the report cannot be written there" in said.err


def test_an_interruption_is_one_line_that_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.load.load_results", interrupt)
    assert report.main(["results/full", "--watch"]) == 130
    said = capsys.readouterr().err
    assert said == (
        "\nstopped; to write the report: python -m analysis.report results/full --watch\n"
    )


def test_the_help_waits_for_no_library_that_draws_or_reckons():
    slow = ("numpy", "pandas", "scipy", "altair", "pyarrow", "jinja2")
    script = (
        "import sys\nfrom analysis import report\n"
        "try: report.main(['--help'])\n"
        f"finally: print(sorted(set({slow}) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_help_lists_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as helped:
        report.main(["--help"])
    assert helped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Exit codes: 0 .*, 2 .*, 3 the results folder .*, 130 interrupted\.", said)


def test_every_chart_stands_in_its_own_figure(tuned):
    page = (tuned / "index.html").read_text(encoding="utf-8")
    figures = dict(re.findall(r'<figure id="figure-([^"]*)"(.*?)</figure>', page, flags=re.DOTALL))
    for name, figure in figures.items():
        boxes = figure.count('<div class="chart"')
        assert figure.count('<svg class="marks"') == boxes > 0
        maps = figure.count("epochs trained</text>")
        assert maps == (boxes if "flow-map" in name else 0)
    assert sum("flow-map" in name for name in figures) == 4


def test_a_name_that_a_spreadsheet_would_run_is_text_in_the_tables(tmp_path):
    formula = "=cmd|'/C calc'!A0"
    study = Study(
        architectures=("plain",),
        placements=("before", formula),
        depths=(8,),
        programs={"plain": {**PROGRAMS["plain"], formula: "conv act norm"}},
    )
    report_of(tmp_path, study)
    trials = pd.read_csv(tmp_path / "report" / "trials.csv")
    assert set(trials["placement"]) == {"before", f"'{formula}"}
    effects = pd.read_csv(tmp_path / "report" / "effects.csv")
    assert set(effects["arm"]) == {f"'{formula}"}


def test_thousands_of_failures_and_missing_trials_keep_the_page_small(tmp_path):
    study = Study(architectures=("plain",), depths=(8,), seeds=range(300), is_lost=always)
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    for attempt in range(1, 4):
        for trial in study.trials:
            write_failure(tmp_path, trial, attempt=attempt)
    assert report.main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    section = page[page.index('<section id="integrity"') :].partition("</section>")[0]
    assert "data:image/png" in section  # a tile for each of 900 trials weighs more than its pixels
    assert len(re.sub(r'src="[^"]*"', "", section)) < 10_000
    assert '<th scope="row">2700<td>900<td>out of memory' in section
    assert "<td>0-299" in section


def test_an_unknown_format_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        report.main([str(tmp_path), "--format", "docx"])
    assert caught.value.code == 2
    assert "'docx' is not one of html, pdf, md, png, paper" in capsys.readouterr().err


def test_looks_are_counted_where_the_rows_are(tmp_path, capsys):
    study = Study(architectures=("plain",), placements=("before", "after"), depths=(8,))
    results = tmp_path / "results"
    write_study(results, study, rng=np.random.default_rng(0))
    last = results / "trials" / f"{study.trials[-1].id}.parquet"
    held_back = last.read_bytes()
    last.unlink()
    for target in ("here", "there"):  # the same rows again are the same look, wherever it is told
        assert report.main([str(results), "-o", str(tmp_path / target)]) == 0
    verdicts = json.loads((tmp_path / "there" / "verdicts.json").read_text())
    (early,) = verdicts["looks"]
    assert (early["trials"], early["fraction"], early["is_planned"]) == (9, 0.9, False)
    assert "1 look at these results was not planned" in capsys.readouterr().out
    wide = verdicts["verdicts"][0]["headline"]
    last.write_bytes(held_back)
    assert report.main([str(results), "-o", str(tmp_path / "here")]) == 0
    page = (tmp_path / "here" / "index.html").read_text(encoding="utf-8")
    assert "2 times" in page
    assert "1 look at these results was not planned" in page
    verdicts = json.loads((tmp_path / "here" / "verdicts.json").read_text())
    assert [look["fraction"] for look in verdicts["looks"]] == [0.9, 1.0]
    headline = verdicts["verdicts"][0]["headline"]
    half = stats.t.ppf(0.975, headline["df"]) * headline["se"]
    assert headline["high"] - headline["estimate"] > 1.001 * half
    assert wide["high"] - wide["estimate"] > stats.t.ppf(0.975, wide["df"]) * wide["se"]


def test_the_report_in_markdown_names_verdicts_and_existing_figures(tmp_path):
    study = Study(architectures=("plain",), depths=(8,))
    write_study(tmp_path / "results", study, rng=np.random.default_rng(0))
    target = tmp_path / "elsewhere"
    assert report.main([str(tmp_path / "results"), "-o", str(target), "--format", "md"]) == 0
    text = (target / "report.md").read_text(encoding="utf-8")
    assert all(f" {claim} " in text for claim in ("C1", "C2", "C3", "C4", "C5"))
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert figures
    assert all((target / figure).exists() for figure in figures)


def test_the_command_beside_a_claim_gives_its_number_again(complete):
    page = html.unescape((complete / "index.html").read_text(encoding="utf-8"))
    command = re.search(r"python -c '(from analysis.*?headline\))'", page)[1]
    run = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        check=True,
    )
    verdicts = json.loads((complete / "verdicts.json").read_text(encoding="utf-8"))["verdicts"]
    assert verdicts[0]["sentence"] in run.stdout
    assert f"estimate={verdicts[0]['headline']['estimate']}" in run.stdout.replace(
        "np.float64(", ""
    ).replace(")", "")


def hostile_study() -> Study:
    return Study(
        architectures=("plain",),
        placements=("before", HOSTILE),
        depths=(8,),
        programs={"plain": {**PROGRAMS["plain"], HOSTILE: "conv act norm"}},
    )


ODD = ("\u202eesrever", "{{7*7}}", "🦆" * 20, "x" * 300)
OBEYED = "a\x1b[2Jb\0c\x9b2J\ud7ff\u2028\ufffe\U000e0041"
HUGE = "xy\x01" * 1_700_000


def oddly_named_study() -> Study:
    programs = {**PROGRAMS["plain"], **dict.fromkeys(ODD, "conv act norm")}
    return Study(
        architectures=("plain",),
        placements=("before", *ODD),
        depths=(8,),
        programs={"plain": programs},
    )


def obeyed_study() -> Study:
    """Characters that no terminal should obey and no SVG can hold, wherever a text may stand."""
    programs = {**PROGRAMS["plain"], OBEYED: "conv act norm"}
    return Study(
        name=OBEYED,
        dataset=OBEYED,
        architectures=("plain",),
        placements=("before", "after", OBEYED),
        depths=(8,),
        programs={"plain": programs},
        plan=AnalysisPlan(grid="", control=OBEYED),
    )


EMPTY_STATES = {
    "one seed": Study(seeds=[0], depths=(8,)),
    "one architecture": Study(architectures=("resnet",), depths=(8,)),
    "one placement": Study(placements=("before",), depths=(8,)),
    "nothing trained yet": Study(depths=(8,), is_lost=always),
    "everything failed": Study(depths=(8,), fails=always),
    "everything diverged": Study(depths=(8,), diverges=always),
    "one arm diverged": Study(depths=(8,), diverges=lambda t: t.placement == "after"),
    "hostile names": hostile_study(),
    "odd names": oddly_named_study(),
    "names to obey": obeyed_study(),
}


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """The page of each state, written once."""
    return functools.cache(
        lambda state: report_of(tmp_path_factory.mktemp("results"), EMPTY_STATES[state])
    )


@pytest.mark.parametrize("state", EMPTY_STATES)
def test_a_report_comes_of_whatever_there_is(state, page_of):
    page = page_of(state).read_text(encoding="utf-8")
    assert not re.search(r">\s*(nan|NaN|None|inf)\s*<", page)


@pytest.fixture(scope="module")
def own_hosts(tmp_path_factory):
    """The hosts that the browser asks for when it shows nothing at all."""
    _, _, hosts = open_in_browser("about:blank", tmp_path_factory.mktemp("blank"))
    return hosts


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("state", EMPTY_STATES)
def test_every_chart_is_drawn_and_nothing_leaves_the_page(state, page_of, tmp_path, own_hosts):
    page = page_of(state)
    boxes = page.read_text(encoding="utf-8").count('<div class="chart"')
    dom, console, hosts = open_in_browser(page.as_uri(), tmp_path)
    assert console == []
    assert boxes >= 3
    assert len(re.findall(r'<svg[^>]*class="marks"', dom)) == boxes
    assert hosts <= own_hosts


def open_in_browser(address: str, folder: Path) -> tuple[str, list[str], set[str]]:
    """The page once its scripts have run, what the console says, and the hosts asked for."""
    run = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000", "--dump-dom"),
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={folder / 'requests.json'}",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    log = (folder / "requests.json").read_text(encoding="utf-8")
    return run.stdout, console, set(re.findall(r'"url":"\w+://([^/"]+)', log))
