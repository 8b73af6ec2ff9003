"""What a page is made of. The template of `html` draws these, and `files` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from analysis.judgement.networks import CLAIMED
from analysis.page import theme

if TYPE_CHECKING:
    import altair as alt

    from analysis.judgement.interactions import Interaction
    from analysis.judgement.networks import Network
    from analysis.judgement.practice import Practice
    from analysis.judgement.verdicts import Verdict
    from analysis.load import Results
    from analysis.page.encodings import Layered
    from analysis.page.theme import Mark
    from harness.results.looks import SeenLook


@dataclass(frozen=True)
class Panel:
    """One chart, and what tells it from its neighbours."""

    title: str
    chart: alt.Chart | Layered

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The chart in Vega-Lite, its rows below `datasets`."""
        spec = self.chart.to_dict(validate=False)
        rows = spec.pop("datasets")  # `theme.inline` has looked at each value already
        return {**theme.visible_in(spec), "datasets": rows}


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; the first `words` columns are words, the others numbers.

    The page's style knows up to three; a table of nothing but words may claim more.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, what they show in a sentence, and the numbers they show."""

    name: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    table: Table | None = None
    columns: int = 1
    """Panels side by side where there is room."""
    legend: tuple[str, ...] = ()
    """Placements to be explained above the panels."""
    is_aside: bool = False
    """Shown on demand: no claim rests on it."""


@dataclass(frozen=True)
class Section:
    """A question, and the figures that answer it."""

    anchor: str
    title: str
    intro: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()


@dataclass(frozen=True)
class Card:
    """A verdict in the words of the page, with its small chart."""

    claim: str
    title: str
    study: str
    """The data set and recipe it speaks of, where there are several, and what is new in it."""
    is_claimed: bool
    """Does the paper claim it, or is it the same question of another norm or activation?"""
    has_trials: bool
    """Does the grid have trials that could show it?"""
    word: str
    icon: str
    answer: str
    """Of the claim as stated: holds, fails, open, no gain to explain."""
    meaning: str
    """The word with what belongs to it in one breath."""
    sentence: str
    effect: str
    """The pooled effect that decides, its interval and its pairs; empty where there is none."""
    reason: str
    notes: tuple[tuple[str, str], ...]
    """What to know beside the sentence: what it is called, and what it says."""
    anchor: str
    """The section that shows what the verdict rests on, if the page has it."""
    panel: Panel | None
    axis: str
    """What the chart shows, and in which unit."""


@dataclass(frozen=True)
class Page:
    """All that the report shows of one results folder."""

    results: Results
    verdicts: tuple[Verdict, ...]
    cards: tuple[Card, ...]
    """One for each verdict."""
    marks: Mapping[str, Mark]
    counts: Mapping[str, int]
    sections: tuple[Section, ...] = field(default=())
    practices: tuple[Practice, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    """Exploratory: what the effect of the order depends on."""
    networks: tuple[tuple[str, Network], ...] = ()
    """The networks that no verdict speaks of, each behind its study in words."""
    seen: tuple[SeenLook, ...] = ()
    """The looks at these results so far, this one among them."""
    answer: tuple[str, ...] = ()
    """What was found, in one sentence; behind it what belongs beside it."""
    facts: tuple[tuple[str, str], ...] = ()
    """Name and value of what a reader asks first: data, networks, seeds, hardware."""

    @property
    def studies(self) -> Mapping[str, tuple[Card, ...]]:
        """The cards of each study, in their order; a study that no claim is about has none."""
        judged = {card.study for card in self.cards if card.has_trials}
        told = {study for study, _ in self.networks}
        names = dict.fromkeys(
            c.study for c in self.cards if c.study in judged or c.study not in told
        )
        return {name: tuple(card for card in self.cards if card.study == name) for name in names}

    @property
    def absence(self) -> str:
        """What stands in place of the cards, where the grid has no trials for any claim."""
        if self.studies or not self.networks:
            return ""
        lack = "has none of them"
        if set(CLAIMED) & set(self.results.planned["architecture"]):
            lack = "has none of them in placements after and before"
        names = ", ".join(name for name in CLAIMED if "/" not in name)
        return f"The paper's claims are about {names} and such of torchvision: this grid {lack}."

    @property
    def asks_of_others(self) -> bool:
        """Is there a study of another norm or activation than the paper's?"""
        return not all(card.is_claimed for card in self.cards)

    @property
    def subject(self) -> str:
        """What may stand before or after what, in words that are true of every study."""
        norms = {verdict.norm_name for verdict in self.verdicts} or {"batch norm"}
        activations = {verdict.activation_name for verdict in self.verdicts} or {"ReLU"}
        norm = norms.pop() if len(norms) == 1 else "the norm"
        activation = activations.pop() if len(activations) == 1 else "the activation"
        return f"{norm}{{}} before or after {activation}"

    @property
    def title(self) -> str:
        """The subject, to stand beside a name."""
        return self.subject.format("")

    @property
    def question(self) -> str:
        """The same as a question."""
        return f"Does {self.subject.format(' belong')}?"

    @property
    def claims(self) -> tuple[tuple[Card, ...], ...]:
        """The cards of each claim, one per study."""
        return tuple(zip(*self.studies.values(), strict=True))

    @property
    def titles(self) -> Mapping[str, str]:
        """Anchor -> title of each section."""
        return {section.anchor: section.title for section in self.sections}

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the page, in its order."""
        return tuple(figure for section in self.sections for figure in section.figures)
