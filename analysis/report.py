"""Write the significance report of a results folder: python -m analysis.report RESULTS."""

# ruff: noqa: PLC0415  pandas, scipy and altair take seconds to import, and --help needs none

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
import textwrap
import time
import webbrowser
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.page import drawing
from harness.study.terminal import Parser, say
from harness.study.wording import explain_lost_docstrings

if TYPE_CHECKING:
    from analysis.judgement.outcomes import Outcomes
    from analysis.judgement.promises import Rate
    from analysis.page.parts import Card, Page
    from harness.study.records import AnalysisPlan

REPLICATES = 200
"""Simulated grids per scenario: a share of 5 % comes with a standard error of 1.5."""
SIMULATED_TRIALS = 1_000_000
"""Trials that all grids of a scenario hold at most: a very large design is simulated less often."""
WRITTEN, UNREADY, UNUSABLE, INTERRUPTED = 0, 2, 3, 130
FORMATS = ("html", "pdf", "md", "png", "paper")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    if lack := explain_lost_docstrings("Altair cannot be imported"):
        say(f"report: {lack}", is_error=True)
        return UNREADY
    command = shlex.join(["python", "-m", "analysis.report", *(arguments or sys.argv[1:])])
    try:
        return _write_reports(options, command)
    except KeyboardInterrupt:
        say(f"\nstopped; to write the report: {command}", is_error=True)
        return INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m analysis.report",
        description="Judge the claims from the rows of a results folder and show how sure that is.",
        epilog="Exit codes: 0 the report is written, of partial results too, 2 an option cannot be "
        "met, 3 the results folder cannot be used or the report cannot be written, 130 interrupted.",
    )
    parser.add_argument("results", help="folder or s3://bucket/prefix that harness.run wrote")
    parser.add_argument(
        "-o", "--output", type=_folder, help="folder of the report; default: RESULTS/report"
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=("html",),
        metavar=",".join(FORMATS),
        help="what to write beside the tables and the SVG of every figure: pdf needs Chromium or "
        "Chrome, png adds every figure as pixels, paper adds figures as PDF, tables as LaTeX and "
        "Markdown and a paragraph of methods",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=30.0,
        metavar="SECONDS",
        help="write the report anew while trials are missing (default every 30 seconds)",
    )
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="compare trials of different training code or precision; the report says so",
    )
    options = parser.parse_args(arguments)
    if "pdf" in options.format and drawing.find_browser() is None:
        parser.error("a PDF needs Chromium or Chrome, and neither was found; print the page")
    return options


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("no folder has an empty name")
    return Path(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 86,400")
    return seconds


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    for name in formats:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(FORMATS)}")
    return formats


def _default_output(location: str) -> Path:
    if location.startswith("s3://"):
        return Path("results", location.rstrip("/").rpartition("/")[2], "report")
    return Path(location).expanduser() / "report"


def _write_reports(options: argparse.Namespace, command: str) -> int:
    drawing.start_engine()  # awaits its first chart beside the imports
    from analysis.load import ResultsError

    folder = options.output or _default_output(options.results)
    try:
        page = _report(options, folder, command)
        if options.open:
            webbrowser.open((folder / "index.html").resolve().as_uri())
        while options.watch and not page.results.is_complete:
            time.sleep(options.watch)
            page = _report(options, folder, command)
    except ResultsError as error:
        say(f"report: {error}", is_error=True)
        return UNUSABLE
    except (OSError, BrokenExecutor) as error:
        say(f"report: {folder}: the report cannot be written there ({error})", is_error=True)
        return UNUSABLE
    return WRITTEN


def _report(options: argparse.Namespace, folder: Path, command: str) -> Page:
    from altair.utils.schemapi import debug_mode

    from analysis.judgement.courses import follow_arms, follow_orders
    from analysis.judgement.effects import UNITS, find_effects
    from analysis.judgement.fates import find_fates
    from analysis.judgement.interactions import find_interactions
    from analysis.judgement.lengths import compare_lengths
    from analysis.judgement.networks import describe_networks
    from analysis.judgement.outcomes import collect_outcomes
    from analysis.judgement.practice import measure_practice
    from analysis.judgement.ranking import rank_arms
    from analysis.judgement.sequence import look_at
    from analysis.judgement.verdicts import judge_outcomes
    from analysis.load import load_results
    from analysis.page.files import write_report
    from analysis.page.pictures import Pictures
    from analysis.page.sections import build_page, with_calibration

    with (
        ThreadPoolExecutor(1) as aside,  # numpy's long loops do not keep Python waiting
        debug_mode(False),  # the tests draw every chart; checking each against the schema is slow
    ):
        results = load_results(options.results, allow_mixed=options.allow_mixed)
        sighting = look_at(results)
        results = replace(results, warnings=(*sighting.warnings, *results.warnings))
        studies = collect_outcomes(results, sighting.look)
        rates = aside.submit(_calibrate, studies, results.plan)
        effects = tuple(
            effect for quantity in UNITS for effect in find_effects(quantity, studies, results.plan)
        )
        verdicts = judge_outcomes(studies, results.plan, effects=effects)
        drawn = Pictures()
        page = build_page(
            results,
            effects,
            verdicts,
            ranks=tuple(rank_arms(studies)),
            practices=tuple(measure_practice(results, studies)),
            interactions=find_interactions(studies, results.plan),
            courses=tuple(follow_orders(results, studies)),
            points=tuple(follow_arms(results, studies)),
            lengths=tuple(compare_lengths(studies, results.plan)),
            fates=tuple(find_fates(results, studies)),
            networks=describe_networks(effects, verdicts),
            seen=sighting.seen,
            begin=drawn.begin,
        )
        drawn.begin_strips(page.cards)
        page = with_calibration(page, rates.result())
    write_report(
        page,
        drawn,
        effects,
        folder,
        command=command,
        formats=options.format,
        refresh=None if results.is_complete else options.watch,
    )
    _print_verdicts(page, folder)
    return page


def _calibrate(studies: Sequence[Outcomes], plan: AnalysisPlan) -> list[Rate]:
    """How often verdicts err in studies like each of these; the same state, the same numbers."""
    import numpy as np

    from analysis.judgement.promises import calibrate
    from analysis.judgement.simulation import find_design
    from analysis.judgement.together import calibrate_together

    def count_replicates(trials: int) -> int:
        return min(REPLICATES, max(100, SIMULATED_TRIALS // trials))

    rng = np.random.default_rng(0)
    found = [(find_design(outcomes, plan), outcomes.planned_PCS.sum()) for outcomes in studies]
    designs = [(design, int(trials)) for design, trials in found if design is not None]
    rates = []
    for design, trials in designs:
        of_design = calibrate(design, replicates=count_replicates(trials), rng=rng)
        where = f"{design.name}: " if len(designs) > 1 else ""
        rates += [replace(rate, scenario=where + rate.scenario) for rate in of_design]
    if len(designs) > 1:
        replicates = count_replicates(sum(trials for _, trials in designs))
        rates += calibrate_together(
            [design for design, _ in designs], replicates=replicates, rng=rng
        )
    return rates


def _print_verdicts(page: Page, folder: Path) -> None:
    if not page.results.is_complete:
        say(
            f"INCOMPLETE: {len(page.results.missing)} of {len(page.results.planned)} planned "
            "trials have no result"
        )
    for warning in page.results.warnings:
        say(f"beware: {warning}")
    say("")
    for sentence in page.answer:
        _say_folded(sentence, indent="")
    is_claimed = any(cards[0].is_claimed for cards in page.studies.values())
    for study, cards in page.studies.items():
        if is_claimed and not cards[0].is_claimed:
            say(f"\nTHE SAME QUESTIONS: {study}")
            for card in cards:
                effect = f": {card.effect}" if card.effect else ""
                say(f"{card.icon} {card.claim} {card.answer}, {card.meaning}{effect}")
            continue
        if study:
            say(f"\n{study.upper()}")
        for card in cards:
            _print_verdict(card)
    _print_networks(page)
    say(f"\n{folder / 'index.html'}")


def _print_networks(page: Page) -> None:
    if page.networks:
        say("\nNETWORKS WITHOUT A CLAIM" if page.studies else "")
    for study, network in page.networks:
        _say_folded(f"{study}: {network.sentence}" if study else network.sentence, indent="")
    if page.absence:
        say(f"\n{page.absence}")


def _print_verdict(card: Card) -> None:
    say(f"\n{card.icon} {card.claim} {card.answer.upper()}, {card.meaning}: {card.title}")
    for text in (card.sentence, *(f"{name}: {note}" for name, note in card.notes)):
        _say_folded(text)


def _say_folded(text: str, indent: str = "  ") -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    say(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=f"{indent}  "))


if __name__ == "__main__":
    sys.exit(main())
