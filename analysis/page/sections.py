"""Lay out the page: its cards, and its sections in the order in which they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.judgement.answers import answer_question
from analysis.judgement.sentences import TOO_FEW
from analysis.judgement.studies import frame_studies
from analysis.page import charts, theme
from analysis.page import frames as tables
from analysis.page.checks import show_calibration, show_ranks, show_robustness
from analysis.page.differences import (
    as_printed,
    compare,
    show_depths,
    show_differences,
    show_pairs,
    show_precision,
)
from analysis.page.facts import describe_facts
from analysis.page.fates import show_fates
from analysis.page.flow import show_flow, show_mechanism
from analysis.page.interactions import show_interactions
from analysis.page.parts import Card, Page, Panel, Section
from analysis.page.practice import show_practice
from analysis.page.runs import show_integrity, show_tuning
from analysis.page.training import show_course, show_lengths, show_training
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.judgement.courses import CourseEffect, CurvePoint
    from analysis.judgement.effects import Effect
    from analysis.judgement.fates import Fate
    from analysis.judgement.interactions import Interaction
    from analysis.judgement.lengths import LengthEffect
    from analysis.judgement.networks import Network
    from analysis.judgement.practice import Practice
    from analysis.judgement.promises import Rate
    from analysis.judgement.ranking import Rank
    from analysis.judgement.verdicts import Verdict
    from analysis.load import Results
    from analysis.page.theme import Mark
    from harness.results.looks import SeenLook

_ANCHORS = {"C2": "mechanism", "C4": "course", "C5": "depth"}
"""Claim -> the section that shows what decides it, where that is not the one of all differences."""


def build_page(
    results: Results,
    effects: Sequence[Effect],
    verdicts: Sequence[Verdict],
    *,
    ranks: Sequence[Rank] = (),
    practices: Sequence[Practice] = (),
    interactions: Sequence[Interaction] = (),
    networks: Sequence[Network] = (),
    courses: Sequence[CourseEffect] = (),
    points: Sequence[CurvePoint] = (),
    lengths: Sequence[LengthEffect] = (),
    fates: Sequence[Fate] = (),
    seen: Sequence[SeenLook] = (),
    begin: Callable[[Section], Section] = lambda section: section,
) -> Page:
    """Lay out what results, effects and verdicts say, and how often they were looked at.

    `begin` is called with each section as soon as it is there.
    """
    lost = {trial for fate in fates for trial in fate.lost_trials}
    trials = tables.tabulate_trials(results, lost)
    marks = theme.marks_of(dict.fromkeys(trials["arm"]))
    studied = trials[trials["stage"] == "study"]
    studies = tables.name_studies(frame_studies(verdicts))
    names = {v.identity_key: name for v, name in zip(verdicts, studies, strict=True)}
    cards = tuple(_card(*pair, marks) for pair in zip(verdicts, studies, strict=True))
    cells = [effect for effect in effects if effect.kind == "cell"]
    if cells and all(effect.pairs_planned < FEWEST_PAIRS for effect in cells):
        few = f"{TOO_FEW}: at least {FEWEST_PAIRS} seeds in every cell would"
        results = replace(results, warnings=(few, *results.warnings))
        cards = tuple(map(_shorten, cards))
    comparisons = compare(effects)
    plan, planned_lengths = results.plan, studied["epochs"].nunique()
    sections = (
        begin(
            show_training(points, courses, marks, margin=plan.margin_accuracy, deciding=plan.epochs)
        ),
        begin(show_lengths(lengths, marks)),
        begin(show_tuning(results, trials, marks)),
        begin(show_course(courses, marks, margin=plan.margin_gradient)),
        begin(show_fates(fates)),
        begin(show_differences(comparisons, marks, fates)),
        begin(show_pairs(studied, comparisons, marks)),
        begin(show_depths(comparisons, marks)),
        begin(show_ranks(ranks)),
        begin(show_interactions(interactions)),
        begin(show_flow(results, studied, comparisons, marks)),
        begin(show_mechanism(comparisons, cards, marks)),
        begin(show_practice(practices)),
        begin(show_integrity(results, trials)),
        begin(show_precision(comparisons, marks, alpha=plan.alpha)),
        begin(show_robustness(verdicts, studies)),
    )
    return Page(
        results=results,
        verdicts=tuple(verdicts),
        practices=tuple(practices),
        interactions=tuple(interactions),
        networks=tuple((names[network.identity_key], network) for network in networks),
        seen=tuple(seen),
        answer=answer_question(
            verdicts,
            networks,
            lengths,
            is_complete=results.is_complete,
            deciding=plan.epochs if planned_lengths > 1 else 0,
        ),
        facts=describe_facts(results),
        cards=cards,
        marks=marks,
        counts={
            state: int((trials["state"] == state).sum())
            for state in ("done", "diverged", "failed", "missing")
        },
        sections=tuple(section for section in sections if section.figures or section.tables),
    )


def with_calibration(page: Page, rates: Sequence[Rate]) -> Page:
    """The page, and at its end how often verdicts like these err."""
    section = show_calibration(rates)
    return replace(page, sections=(*page.sections, section)) if section.tables else page


def _shorten(card: Card) -> Card:
    """The card without what is said once, ahead of all cards."""
    if TOO_FEW not in card.sentence:
        return card
    return replace(
        card, sentence=card.sentence.replace(TOO_FEW, "too few pairs"), reason="", notes=()
    )


def _card(verdict: Verdict, study: str, marks: Mapping[str, Mark]) -> Card:
    """The only place where a verdict becomes words of the page."""
    panel, axis = None, ""
    if verdict.headline is not None and math.isfinite(verdict.headline.estimate):
        (compared,) = compare([verdict.headline])
        axis = compared.axis
        if verdict.claim == "C2":  # its chart is that of C1
            axis = f"the gain to explain: {axis}"
        row = as_printed(compared.rows)
        panel = Panel("", charts.strip(row, marks, is_ratio=compared.is_ratio))
    notes = (("Fragile", verdict.fragile), ("To settle it", verdict.settle))
    return Card(
        claim=verdict.claim,
        title=verdict.title,
        study=study,
        is_claimed=verdict.is_claimed,
        has_trials=verdict.has_trials,
        word=verdict.word,
        icon=theme.ANSWERS[verdict.answer],
        answer=verdict.answer,
        meaning=verdict.grade,
        sentence=verdict.sentence,
        effect=verdict.effect,
        reason=verdict.reason,
        notes=tuple((name, text) for name, text in notes if text),
        anchor=_ANCHORS.get(verdict.claim, "differences"),
        panel=panel,
        axis=axis,
    )
