"""What stands on the page: its sections, with their charts and the tables behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.page import charts, theme
from analysis.page import frames as tables
from analysis.page.theme import NONE, p_value, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import altair as alt

    from analysis.judgement.effects import Effect
    from analysis.judgement.simulation import Rate
    from analysis.judgement.verdicts import Verdict
    from analysis.load import Results
    from analysis.page.theme import Mark

MAPS_AT_ONCE = 4
"""Panels whose maps of gradient flow are all shown; of more they are shown on demand."""
MOST_FAILURES = 40
"""Ways of failing that are listed; who fails in more ways reads the rows."""
MEAN_FIELD_GROWTH = math.pi / (math.pi - 1)
"""Growth of the squared activation gradient per layer towards the input of a deep MLP with batch
norm, at initialisation and for large batches; Yang et al. 2019, arXiv:1902.08129, theorem 8."""


@dataclass(frozen=True)
class Panel:
    """One chart, and what tells it from its neighbours."""

    title: str
    chart: alt.Chart | alt.LayerChart

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The chart in Vega-Lite, its rows below `datasets`."""
        return self.chart.to_dict(validate=False)


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
    """A verdict with its small chart."""

    verdict: Verdict
    study: str
    """The data set and recipe it speaks of, where there are several."""
    answer: str
    """What the word means for the claim as stated."""
    icon: str
    panel: Panel | None
    axis: str
    """What the chart shows, and in which unit."""


@dataclass(frozen=True)
class Page:
    """All that the report shows of one results folder."""

    results: Results
    marks: Mapping[str, Mark]
    counts: Mapping[str, int]
    cards: tuple[Card, ...]
    sections: tuple[Section, ...] = field(default=())

    @property
    def studies(self) -> Mapping[str, tuple[Card, ...]]:
        """The cards of each study, in their order."""
        names = dict.fromkeys(card.study for card in self.cards)
        return {name: tuple(card for card in self.cards if card.study == name) for name in names}

    @property
    def claims(self) -> tuple[tuple[Card, ...], ...]:
        """The cards of each claim, one per study."""
        return tuple(zip(*self.studies.values(), strict=True))

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the page, in its order."""
        return tuple(figure for section in self.sections for figure in section.figures)


def build_page(
    results: Results,
    effects: Sequence[Effect],
    verdicts: Sequence[Verdict],
) -> Page:
    """Lay out what results, effects and verdicts say."""
    trials = tables.tabulate_trials(results)
    marks = theme.marks_of(dict.fromkeys(trials["arm"]))
    studied = trials[trials["stage"] == "study"]
    judged = [(verdict.dataset, verdict.recipe) for verdict in verdicts]
    studies = tables.name_studies(pd.DataFrame(judged, columns=pd.Index(["dataset", "recipe"])))
    sections = (
        _show_differences(effects, marks),
        _show_pairs(studied, effects, marks),
        _show_depths(effects, marks),
        _show_flow(results, studied, effects, marks),
        _show_mechanism(effects, verdicts, studies, marks),
        _show_tuning(results),
        _show_integrity(results, trials),
        _show_precision(results, effects, marks),
        _show_robustness(verdicts, studies),
    )
    return Page(
        results=results,
        marks=marks,
        counts={
            state: int((trials["state"] == state).sum())
            for state in ("done", "diverged", "failed", "missing")
        },
        cards=tuple(map(partial(_card, marks), verdicts, studies)),
        sections=tuple(section for section in sections if section.figures or section.tables),
    )


def with_calibration(page: Page, rates: Sequence[Rate]) -> Page:
    """The page, and at its end how often verdicts like these err."""
    section = _show_calibration(rates)
    return replace(page, sections=(*page.sections, section)) if section.tables else page


_ANSWERS = {True: "the claim holds here", False: "the claim fails here", None: "the claim is open"}


def _card(marks: Mapping[str, Mark], verdict: Verdict, study: str) -> Card:
    effect = verdict.headline
    panel, axis = None, ""
    if effect is not None and math.isfinite(effect.estimate):
        row = _as_printed(tables.tabulate_effects([effect]))
        _, axis = _names(effect.quantity, effect.arm, effect.baseline)
        panel = Panel("", charts.strip(row, marks, is_ratio=effect.quantity == "gradient"))
    return Card(
        verdict=verdict,
        study=study,
        answer=_ANSWERS[verdict.holds],
        icon=theme.WORDS[verdict.word][0],
        panel=panel,
        axis=axis,
    )


def _show_differences(effects: Sequence[Effect], marks: Mapping[str, Mark]) -> Section:
    figures = []
    for (quantity, arm, baseline), rows in _by_comparison(effects):
        shown = rows[rows["kind"].isin(["cell", "pooled"]) & rows["estimate"].notna()]
        if shown.empty:
            continue
        shown = _as_printed(_pools_under_cells(shown))
        is_ratio = quantity == "gradient"
        what, difference = _names(quantity, arm, baseline)
        figures.append(
            Figure(
                name=f"forest-{quantity}-{arm}-{baseline}",
                title=f"{what}: {difference}",
                description=(
                    f"{what} of '{arm}' against '{baseline}', paired by seed. Thin bar: 95 % "
                    "interval; thick bar: 90 % interval, which must lie inside the shaded margin "
                    f"({_margin_words(shown, is_ratio=is_ratio)}) for the two to be called "
                    "equivalent."
                ),
                panels=_forests(shown, marks, title=difference, is_ratio=is_ratio),
                table=_effects_table(shown, difference),
                # The first is the question itself, though no claim may rest on it here.
                is_aside=bool(figures)
                and bool(shown["family"].str.startswith("exploratory").all()),
            )
        )
    return Section(
        "differences",
        "Where does the order matter?",
        "Each line compares two placements that started from the same weights and saw the same "
        "batches, seed by seed. Bold lines pool the cells of a kind of network.",
        tuple(sorted(figures, key=lambda figure: figure.is_aside)),
    )


def _forests(
    effects: pd.DataFrame, marks: Mapping[str, Mark], *, title: str, is_ratio: bool = False
) -> tuple[Panel, ...]:
    """A forest for each study."""
    return tuple(
        Panel(
            _capitalized(str(study)),
            charts.forest(
                rows.assign(row=rows["label"]),
                marks,
                title=title,
                together=effects,
                is_ratio=is_ratio,
            ),
        )
        for study, rows in effects.groupby("study", sort=False)
    )


def _capitalized(words: str) -> str:
    return words[:1].upper() + words[1:]


def _pools_under_cells(effects: pd.DataFrame) -> pd.DataFrame:
    """The pool of an architecture follows its cells, the pools of several come last."""
    order = {name: place for place, name in enumerate(effects["architecture"].dropna().unique())}
    place = effects["architecture"].map(order).fillna(len(order))
    ordered = effects.assign(place=place, is_pool=effects["kind"] != "cell")
    return ordered.sort_values(["place", "is_pool"], kind="stable")


def _names(quantity: str, arm: str, baseline: str) -> tuple[str, str]:
    if quantity == "gradient":
        return "Gradient flow", f"{arm} / {baseline} (ratio)"
    return "Test accuracy", f"{arm} {theme.MINUS} {baseline} (points)"


def _margin_words(effects: pd.DataFrame, *, is_ratio: bool) -> str:
    margin = float(effects["margin"].max())
    return f"{1 / margin:.3g} to {margin:.3g}" if is_ratio else f"±{margin:.3g} points"


def _effects_table(rows: pd.DataFrame, difference: str) -> Table:
    return Table(
        columns=(
            *("cell", "pairs", difference, "95 % interval", "90 % interval"),
            *("p", "p (Holm)", "family", "sign-flip p", "its floor", "p (equivalence)"),
        ),
        rows=tuple(
            (
                row["row"],
                _of(row["pairs"], row["pairs_planned"]),
                row["brief"],
                row["interval"],
                row["interval90"],
                p_value(row["p"]),
                p_value(row["p_holm"]),
                row["family"],
                p_value(row["p_sign_flip"]),
                p_value(row["p_sign_flip_floor"]),
                p_value(row["p_tost"]),
            )
            for row in rows.to_dict("records")
        ),
    )


def _show_pairs(
    trials: pd.DataFrame, effects: Sequence[Effect], marks: Mapping[str, Mark]
) -> Section:
    cells = tables.tabulate_accuracies(trials)
    cells["note"] = [f"{count}✕" if count else "" for count in cells["diverged"]]
    panels = []
    for name, rows in cells.groupby("panel", sort=False):
        drawn = trials[(trials["panel"] == name) & trials["percent"].notna()]
        here = {arm: mark for arm, mark in marks.items() if arm in set(rows["arm"])}
        if not drawn.empty:
            panels.append(Panel(str(name), charts.accuracies(drawn, rows, here)))
    figures = [
        Figure(
            name="accuracy",
            title="Every trial",
            description=(
                "Test accuracy after the last epoch, every trial shown. A grey line joins the "
                "trials of one seed, a black tick is the mean of a cell, and ✕ counts trials whose "
                "loss diverged."
            ),
            panels=tuple(panels),
            table=Table(
                (
                    *("architecture", "depth", "arm", "mean (%)", "sd"),
                    *("trained", "diverged", "planned"),
                ),
                tuple(
                    (
                        row["panel"],
                        str(row["depth"]),
                        row["arm"],
                        number(row["mean"]),
                        number(row["sd"]),
                        str(row["trained"]),
                        str(row["diverged"]),
                        str(row["planned"]),
                    )
                    for row in cells.to_dict("records")
                ),
                words=3,
            ),
            columns=2,
            legend=tuple(dict.fromkeys(trials["arm"])),
        )
    ]
    for (quantity, arm, baseline), rows in list(_by_comparison(effects))[:1]:
        pairs = tables.name_panels(tables.tabulate_pairs(effects))
        pairs = pairs[
            (pairs["quantity"] == quantity)
            & (pairs["arm"] == arm)
            & (pairs["baseline"] == baseline)
        ].assign(seed=lambda frame: frame["seed"].astype(str))
        means = tables.name_panels(rows[rows["kind"] == "cell"])
        title = f"{arm} {theme.MINUS} {baseline} (points)"
        figures.append(
            Figure(
                name=f"pairs-{arm}-{baseline}",
                title=f"Every pair: {arm} {theme.MINUS} {baseline}",
                description=(
                    f"Accuracy of '{arm}' minus '{baseline}' for every seed, and beside the seeds "
                    "of a cell their mean with its 95 % interval. Shaded: differences too small "
                    "to matter."
                ),
                panels=tuple(
                    Panel(
                        str(name),
                        charts.differences(part, means[means["panel"] == name], marks, title=title),
                    )
                    for name, part in pairs.groupby("panel", sort=False)
                ),
                table=_pairs_table({title: pairs.assign(value=pairs["difference"])}),
                columns=2,
            )
        )
    return Section("pairs", "What did every seed do?", "", tuple(f for f in figures if f.panels))


def _pairs_table(pairs: Mapping[str, pd.DataFrame]) -> Table:
    """What every pair gave: a row per cell and quantity, a column per seed."""
    seeds = list(dict.fromkeys(seed for rows in pairs.values() for seed in rows["seed"]))
    lines = []
    for what, rows in pairs.items():
        cells = rows.assign(study=tables.name_studies(rows)).groupby(["label", "study"], sort=False)
        for (label, study), cell in cells:  # pyright: ignore[reportGeneralTypeIssues]
            by_seed = dict(zip(cell["seed"], cell["value"], strict=True))
            name = ", ".join(filter(None, (str(label), str(study))))
            lines.append((name, what, *(signed(by_seed.get(seed, math.nan)) for seed in seeds)))
    return Table(("cell", "difference", *(f"seed {seed}" for seed in seeds)), tuple(lines), words=2)


def _show_depths(effects: Sequence[Effect], marks: Mapping[str, Mark]) -> Section:
    figures = []
    for (quantity, arm, baseline), rows in list(_by_comparison(effects))[:1]:
        cells = tables.name_panels(rows[(rows["kind"] == "cell") & rows["estimate"].notna()])
        panels = [
            (name, part) for name, part in cells.groupby("panel", sort=False) if len(part) > 1
        ]
        reach = charts.span(cells, "estimate", "low", "high", around=cells["margin"])
        title = f"{arm} {theme.MINUS} {baseline} (points)"
        contrasts = _as_printed(rows[rows["kind"].isin(["trend", "interaction"])])
        if panels:
            figures.append(
                Figure(
                    name=f"depth-{quantity}-{arm}-{baseline}",
                    title="The difference against depth",
                    description=(
                        f"Mean accuracy of '{arm}' minus '{baseline}' at each depth (log scale), "
                        "with 95 % intervals; all panels share one scale."
                    ),
                    panels=tuple(
                        Panel(str(name), charts.trend(part, marks, title=title, reach=reach))
                        for name, part in panels
                    ),
                    table=_effects_table(_as_printed(cells), title),
                    columns=3,
                )
            )
        if not contrasts.empty:
            figures.append(
                Figure(
                    name=f"contrasts-{quantity}-{arm}-{baseline}",
                    title="Trend with depth, and the part of the skip connection",
                    description=(
                        "Change of the difference per doubling of depth, and difference between "
                        "families of networks (interaction), each with its 95 and 90 % interval."
                    ),
                    panels=_forests(contrasts, marks, title=title),
                    table=_effects_table(contrasts, title),
                )
            )
    return Section("depth", "Does it depend on depth, or on the skip?", "", tuple(figures))


def _show_flow(
    results: Results, trials: pd.DataFrame, effects: Sequence[Effect], marks: Mapping[str, Mark]
) -> Section:
    column = results.plan.gradient_column
    is_deepest = trials["depth"] == trials.groupby("panel", sort=False)["depth"].transform("max")
    deepest = trials[is_deepest]
    readings = tables.read_flow(results, deepest)
    panels = list(dict.fromkeys(deepest["panel"]))
    studies = tables.name_studies(deepest)
    of_first_study = {
        panel for panel, study in zip(deepest["panel"], studies, strict=True) if study == studies[0]
    }
    flow = tables.tabulate_flow(readings).sort_values(
        "panel", kind="stable", key=lambda names: names.map(panels.index)
    )
    arm, baseline = next(((arm, base) for (_, arm, base), _ in _by_comparison(effects)), ("", ""))
    differences = tables.tabulate_flow_differences(readings, arm=arm, baseline=baseline)
    differences["is_clear"] = differences["p_bh"] < 0.05
    figures: list[Figure] = []
    for (panel, depth), rows in flow.groupby(["panel", "depth"], sort=False):
        where = f"{panel}, depth {depth}"
        is_aside = panel not in of_first_study
        here = {arm: mark for arm, mark in marks.items() if arm in set(rows["arm"])}
        shown = _layers_shown(rows)
        title = f"log10 of {theme.axis_title(column)}"
        reach = charts.span(rows, "mean", "low", "high")
        times = _chosen_times(rows)
        figures.append(
            Figure(
                name=f"flow-{panel}-{depth}",
                title=f"{where}: gradient flow by layer",
                description=(
                    f"Mean over seeds with 95 % intervals. {theme.meaning(column)} Layer 0 is next "
                    f"to the input.{shown}"
                    + (
                        " Dashed: the growth that theory predicts at initialisation."
                        if str(panel).startswith("mlp")
                        else ""
                    )
                ),
                panels=tuple(
                    Panel(
                        words,
                        charts.flow_by_layer(
                            at,
                            here,
                            title=title,
                            reach=reach,
                            theory=_theory(str(panel), at, baseline),
                        ),
                    )
                    for words, at in times
                ),
                columns=3,
                legend=tuple(here),
                table=_flow_table(times),
                is_aside=is_aside,
            )
        )
        spread = charts.span(rows, "mean")
        maps = [
            Panel(name, charts.flow_map(rows[rows["arm"] == name], title=title, reach=spread))
            for name in here
        ]
        apart = differences[differences["panel"] == panel]
        words = f"{arm} {theme.MINUS} {baseline}"
        if not apart.empty:
            maps.append(Panel(words, charts.difference_map(apart, title="difference (dex)")))
        figures.append(
            Figure(
                name=f"flow-map-{panel}-{depth}",
                title=f"{where}: gradient flow over training",
                description=(
                    f"Layer by time, mean over seeds; all arms share one scale.{shown}"
                    if apart.empty
                    else "Layer by time, mean over seeds; all arms share one scale. The difference "
                    "is exploratory: orange where more reaches the layer with the first arm named, "
                    f"pale where that may be chance (Benjamini-Hochberg at 5 %).{shown}"
                ),
                panels=tuple(maps),
                columns=2,
                table=None if apart.empty else _map_table(apart, words),
                is_aside=is_aside or len(panels) > MAPS_AT_ONCE,
            )
        )
    return Section("flow", "What reaches the layers?", "", tuple(figures))


def _layers_shown(flow: pd.DataFrame) -> str:
    """Which layers these are, where they are not all."""
    layers = sorted(flow["layer_index"].unique())
    total = int(layers[-1]) + 1
    return (
        "" if len(layers) == total else f" Shown: {len(layers)} of {total} layers, evenly spread."
    )


def _chosen_times(flow: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Before training, after the first epoch and at the end, as far as there are readings."""
    epochs = np.sort(flow["epoch"].unique()).tolist()
    chosen = dict.fromkeys([epochs[0], *[epoch for epoch in epochs if epoch >= 1][:1], epochs[-1]])
    return [
        (
            "at initialisation" if epoch == 0 else f"after {epoch:g} epoch{'s' * (epoch != 1)}",
            flow[flow["epoch"] == epoch],
        )
        for epoch in chosen
    ]


def _flow_table(times: Sequence[tuple[str, pd.DataFrame]]) -> Table:
    """A row per layer, a column per time and arm."""
    columns = {
        f"{arm} {words}": rows.set_index("layer_index")["mean"]
        for words, at in times
        for arm, rows in at.groupby("arm", sort=False)
    }
    wide = pd.DataFrame(columns).sort_index()
    return Table(
        ("layer", *columns),
        tuple(
            (str(layer), *map(signed, row))
            for layer, row in zip(wide.index, wide.to_numpy(), strict=True)
        ),
    )


def _map_table(differences: pd.DataFrame, words: str) -> Table:
    """A row per layer, a column per time; a star where the difference is clear."""
    cells = differences.assign(
        text=differences["mean"].map(signed) + differences["is_clear"].map({True: " *", False: ""})
    )
    wide = cells.pivot_table(index="layer_index", columns="epoch", values="text", aggfunc="first")
    times = [
        f"{epoch:.2g}" if epoch < 10 else f"{epoch:.0f}" for epoch in wide.columns.to_numpy(float)
    ]
    return Table(
        (f"layer; {words} in dex", *(f"epoch {time}" for time in times)),
        tuple(
            (str(layer), *row)
            for layer, row in zip(wide.index, wide.fillna(NONE).to_numpy(), strict=True)
        ),
    )


def _theory(panel: str, flow: pd.DataFrame, anchor: str) -> pd.DataFrame | None:
    """Mean-field theory for an MLP at initialisation, through the last hidden layer of `anchor`."""
    hidden = flow[flow["arm"] == anchor].sort_values("layer_index")[:-1]
    if not panel.startswith("mlp") or flow["epoch"].iloc[0] != 0 or hidden.empty:
        return None
    towards_input = hidden["layer_index"].max() - hidden["layer_index"]
    growth = math.log10(MEAN_FIELD_GROWTH) / 2
    return hidden[["layer_index"]].assign(mean=hidden["mean"].iloc[-1] + growth * towards_input)


def _show_mechanism(
    effects: Sequence[Effect],
    verdicts: Sequence[Verdict],
    studies: Sequence[str],
    marks: Mapping[str, Mark],
) -> Section:
    if not {effect.quantity for effect in effects} >= {"accuracy", "gradient"}:
        return Section("mechanism", "")
    keys = [
        "dataset",
        "recipe",
        "architecture",
        "variant",
        "depth",
        "arm",
        "baseline",
        "seed",
        "label",
    ]
    pairs = tables.name_panels(tables.tabulate_pairs(effects))
    both = pairs.pivot_table(index=[*keys, "panel"], columns="quantity", values="difference")
    figures = []
    if {"accuracy", "gradient"} <= set(both.columns):
        both = both.dropna().reset_index().rename(columns={"gradient": "flow"})
        first = next(((arm, base) for (_, arm, base), _ in _by_comparison(effects)), ("", ""))
        both = both[(both["arm"] == first[0]) & (both["baseline"] == first[1])]
        figures = [
            Figure(
                name="mechanism",
                title="Accuracy gained against gradient flow gained",
                description=(
                    f"One point per pair of trials: '{first[0]}' minus '{first[1]}'. A cloud that "
                    "rises to the right is what a cause would look like, and a common cause too."
                ),
                panels=tuple(
                    Panel(
                        str(name),
                        charts.mechanism(
                            rows, marks, x_title="gradient flow (dex)", y_title="accuracy (points)"
                        ),
                    )
                    for name, rows in both.groupby("panel", sort=False)
                ),
                columns=3,
                table=_pairs_table(
                    {
                        "gradient flow (dex)": both.assign(value=both["flow"]),
                        "accuracy (points)": both.assign(value=both["accuracy"]),
                    }
                ),
            )
        ]
    intro = " ".join(
        (f"With {study}: " if study else "")
        + f"{verdict.sentence} Judged {verdict.word}: {verdict.reason}."
        for verdict, study in zip(verdicts, studies, strict=True)
        if verdict.claim == "C2" and verdict.reason
    )
    return Section(
        "mechanism",
        "Is the accuracy carried by gradient flow?",
        intro,
        tuple(figure for figure in figures if figure.panels),
    )


def _show_tuning(results: Results) -> Section:
    choices = tables.tabulate_choices(results.choices)
    rows = tuple(
        (
            f"{row['architecture']}-{row['depth']} {row['variant']}".rstrip(),
            row["placement"],
            f"{row['lr']:g}",
            f"{row['weight_decay']:g}",
            number(100 * row["validation_accuracy"]),
            "▲ edge of the list" if row["at_edge"] else "inside the list",
            "; ".join(
                f"{lr:g}: {number(score, 1)}" + (f" ({diverged}✕)" if diverged else "")
                for lr, _, score, diverged in row["tried"]
            ),
        )
        for row in choices.to_dict("records")
    )
    edges = int(choices["at_edge"].sum())
    warning = (
        f" {edges} of {len(choices)} arms do best at the smallest or largest rate tried: a better "
        "one may lie beyond, and their comparison is fair only as far as the list reaches."
    )
    return Section(
        "tuning",
        "Which recipe did each arm get?",
        "At one common rate the order with the larger steps may win or lose by its steps alone. So "
        "each arm was also trained at the recipe that scored best on validation images, with seeds "
        "of its own that the study does not use. A run that diverged (✕) scores 0."
        + (warning if edges else ""),
        tables=(
            (
                "The best recipe of each arm",
                Table(
                    (
                        *("cell", "arm", "learning rate", "weight decay", "validation (%)"),
                        *("where in the list", "every rate tried: validation (%)"),
                    ),
                    rows,
                    words=7,
                ),
            ),
        )
        if rows
        else (),
    )


_GLYPHS = {"done": "", "diverged": "✕", "failed": "!", "missing": ""}


def _show_integrity(results: Results, trials: pd.DataFrame) -> Section:
    is_tuning = trials["stage"] == "tuning"
    rates = (
        " at " + trials["lr"].map("{:g}".format) + ", " + trials["weight_decay"].map("{:g}".format)
    )
    cells = trials.assign(
        cell=trials["depth"].astype(str) + " " + trials["arm"] + rates.where(is_tuning, ""),
        glyph=trials["state"].map(_GLYPHS),
        order=trials["arm"].map({name: i for i, name in enumerate(trials["arm"].unique())}),
        place=trials["panel"].map({name: i for i, name in enumerate(trials["panel"].unique())}),
    ).sort_values(["place", "depth", "order", "cell", "seed"], kind="stable")
    failures = tables.tabulate_failures(results.failures)
    unlisted = len(failures) - MOST_FAILURES
    parts = [
        (
            f"Failures, the {MOST_FAILURES} most frequent kinds of {len(failures)}"
            if unlisted > 0
            else "Failures",
            Table(
                ("attempts", "trials", "kind", "what was said", "the first of them", "last (UTC)"),
                tuple(
                    (
                        str(row["attempts"]),
                        str(row["trials"]),
                        row["kind"],
                        row["message"],
                        row["trial"],
                        f"{row['last']:%d %B, %H:%M}",
                    )
                    for row in failures[:MOST_FAILURES].to_dict("records")
                ),
                words=6,
            ),
        ),
        ("Missing trials", _missing_table(cells)),
        ("Time and measurement", _time_table(trials)),
    ]
    checks = results.identities
    share = (
        trials["probe_time"].sum() / trials["wall_time"].sum() if trials["wall_time"].sum() else 0
    )
    intro = (
        ""
        if not math.isfinite(checks["qa_sum"])
        else (
            f"Measuring gradient flow took {100 * share:.1f} % of the training time. Two identities "
            "hold exactly where batch norm follows a layer; in the readings they are off by at most "
            f"{checks['qa_sum']:.1g} (sum of the gradient) and {checks['qa_dot']:.1g} (weight times "
            "its gradient), relative."
        )
    )
    has_room = cells["cell"].str.len().max() < 20
    figures = [
        Figure(
            name=name,
            title=title,
            description=(
                "Green: trained. Orange with ✕: the loss diverged, which is an outcome. Black with "
                "!: it broke. Grey: no row yet."
            ),
            panels=tuple(
                Panel(str(panel), charts.tiles(rows))
                for panel, rows in cells[chosen].groupby("panel", sort=False)
            ),
            table=_states_table(cells[chosen]),
            columns=3 if has_room else 2,
            is_aside=is_aside,
        )
        for name, title, chosen, is_aside in (
            ("integrity", "Every planned trial", cells["stage"] == "study", False),
            ("integrity-tuning", "Every trial that tuned", cells["stage"] == "tuning", True),
        )
    ]
    return Section(
        "integrity",
        "Did the runs go as planned?",
        intro,
        tuple(figure for figure in figures if figure.panels),
        tuple((title, table) for title, table in parts if table.rows),
    )


def _missing_table(cells: pd.DataFrame) -> Table:
    """A row per cell and state: which seeds have no result."""
    missing = cells[cells["state"].isin(["missing", "failed"])]
    groups = missing.groupby(["panel", "cell", "state"], sort=False)["seed"]
    return Table(
        ("architecture", "depth and arm", "state", "trials", "seeds"),
        tuple(
            (*map(str, key), str(len(seeds)), _ranges(sorted(seeds)))
            for key, seeds in groups  # pyright: ignore[reportGeneralTypeIssues]
        ),
        words=5,
    )


def _states_table(cells: pd.DataFrame) -> Table:
    """How many trials are in which state: a row per cell where not all are done, one for the rest."""
    states = tuple(_GLYPHS)
    counts = pd.crosstab([cells["panel"], cells["cell"]], cells["state"])
    counts = counts.reindex(columns=states, fill_value=0)
    is_done = counts["done"] == counts.sum(axis=1)
    rest = (f"{is_done.sum()} cells without a gap", "", *counts[is_done].sum())
    order = [*dict.fromkeys(zip(cells["panel"], cells["cell"], strict=True))]
    others = [(*key, *counts.loc[key]) for key in order if not is_done[key]]
    return Table(
        ("architecture", "depth and arm", *states),
        tuple(tuple(map(str, row)) for row in ([rest] if is_done.any() else []) + others),
        words=2,
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in ascending order as one would say them.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _time_table(trials: pd.DataFrame) -> Table:
    done = trials[trials["wall_time"].notna()]
    groups = done.groupby(["panel", "depth", "arm"], sort=False)
    return Table(
        ("architecture", "depth", "arm", "trials", "time per trial (s)", "probe share (%)"),
        tuple(
            (
                *map(str, key),
                str(len(rows)),
                number(rows["wall_time"].mean(), 1),
                number(100 * rows["probe_time"].sum() / rows["wall_time"].sum(), 1),
            )
            for key, rows in groups
        ),
        words=3,
    )


def _show_precision(
    results: Results, effects: Sequence[Effect], marks: Mapping[str, Mark]
) -> Section:
    figures = []
    for (quantity, arm, baseline), _ in list(_by_comparison(effects))[:1]:
        chosen = [
            effect
            for effect in effects
            if (effect.quantity, effect.arm, effect.baseline) == (quantity, arm, baseline)
        ]
        cells = tables.tabulate_precision(chosen, alpha=results.plan.alpha)
        if cells.empty:
            continue
        cells = _as_printed(cells)
        figures.append(
            Figure(
                name="precision",
                title=f"Smallest difference found with 80 % power: {arm} {theme.MINUS} {baseline}",
                description=(
                    "By as many pairs as there are, one cell alone; the black tick is the margin. "
                    "Planned on the upper 80 % bound of the standard deviation."
                ),
                panels=tuple(
                    Panel(
                        _capitalized(str(study)),
                        charts.precision(
                            part.assign(row=part["label"]),
                            marks,
                            title="difference (points)",
                            reach=charts.span(cells, "detectable", around=cells["margin"])[1],
                        ),
                    )
                    for study, part in cells.groupby("study", sort=False)
                ),
                table=Table(
                    (
                        *("cell", "pairs", "sd of differences", "its upper 80 % bound"),
                        *("found with 80 % power", "pairs that find the margin"),
                        *("se from the finite test set", "correlation within pairs"),
                    ),
                    tuple(
                        (
                            row["row"],
                            str(row["pairs"]),
                            number(row["sd"]),
                            number(row["sd_upper"]),
                            number(row["detectable"]),
                            NONE if row["needed"] is None else f"{row['needed']:.0f}",
                            number(row["test_se"]),
                            number(row["correlation"]),
                        )
                        for row in cells.to_dict("records")
                    ),
                ),
            )
        )
    return Section(
        "precision", "How small a difference could these seeds show?", "", tuple(figures)
    )


def _show_robustness(verdicts: Sequence[Verdict], studies: Sequence[str]) -> Section:
    rows = tuple(
        (
            ", ".join(filter(None, (verdict.claim, study))),
            verdict.word,
            p_value(verdict.p),
            p_value(verdict.p_holm),
            p_value(panel.p_sign_flip),
            p_value(panel.p_signed_rank),
            signed(panel.hodges_lehmann),
            number(panel.rope_probability),
            number(panel.superiority),
            signed(panel.estimate_at_chance),
            verdict.fragile or "agrees",
        )
        for verdict, study in zip(verdicts, studies, strict=True)
        if (panel := verdict.robustness) is not None
    )
    table = Table(
        (
            *("claim", "verdict", "p", "p (Holm)", "sign-flip p", "signed-rank p"),
            *("Hodges-Lehmann", "P(|effect| < margin)", "P(arm > baseline)"),
            *("diverged at chance", "against the verdict"),
        ),
        rows,
        words=2,
    )
    return Section(
        "robustness",
        "Would other methods say the same?",
        "Printed beside the verdicts, never deciding them.",
        tables=tuple(
            (title, table)
            for title, table in (
                ("Other methods", table),
                ("Gradient flow, had the plan read it elsewhere", _other_flows(verdicts, studies)),
            )
            if table.rows
        ),
    )


def _other_flows(verdicts: Sequence[Verdict], studies: Sequence[str]) -> Table:
    """The ratio of flows that decided, beside what it is at other layers and times."""
    return Table(
        ("claim", "gradient flow", "ratio", "95 % interval", "p", "p (beyond the margin)"),
        tuple(
            (
                ", ".join(filter(None, (verdict.claim, study))),
                other.name,
                theme.ratio(10**other.estimate),
                interval(10**other.low, 10**other.high, theme.ratio),
                p_value(other.p),
                p_value(other.p_minimal),
            )
            for verdict, study in zip(verdicts, studies, strict=True)
            if verdict.robustness is not None
            for other in verdict.robustness.other_flows
        ),
        words=2,
    )


def _show_calibration(rates: Sequence[Rate]) -> Section:
    rows = tuple(
        (
            rate.scenario,
            rate.measure,
            rate.promise or NONE,
            "" if not rate.promise else "✓ kept" if rate.is_kept else "✕ broken",
            f"{number(100 * rate.share, 1)} ± {number(100 * rate.error, 1)}",
        )
        for rate in rates
        if math.isfinite(rate.share)
    )
    promised = [rate for rate in rates if rate.promise and math.isfinite(rate.share)]
    kept = sum(rate.is_kept for rate in promised)
    return Section(
        "calibration",
        "How often would such verdicts err?",
        (
            f"Grids of this very design were simulated, with the spreads seen here and a truth that "
            f"is known, and judged by the same code: {kept} of {len(promised)} promises were kept. "
            "Shares come with their Monte-Carlo standard error."
        ),
        tables=(
            (
                "What was simulated and counted",
                Table(
                    ("what is true", "what was counted", "promised", "", "share (%)"), rows, words=4
                ),
            ),
        )
        if rows
        else (),
    )


def _by_comparison(
    effects: Iterable[Effect],
) -> Iterable[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The effects of each quantity, arm and baseline, in the order in which they come."""
    table = tables.tabulate_effects(effects)
    for (quantity, arm, baseline), rows in table.groupby(
        ["quantity", "arm", "baseline"], sort=False
    ):
        yield (str(quantity), str(arm), str(baseline)), rows


def _as_printed(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects as the reader sees them: gradient flow as a ratio, and the words of each line.

    Adds `study`; `row`, a name that no other line has; `brief` and `numbers`, the text beside it, and
    `interval` and `interval90`.
    """
    studies = tables.name_studies(effects)
    is_ratio = bool((effects["quantity"] == "gradient").all())
    if is_ratio:
        logs = ["estimate", "low", "high", "low90", "high90", "margin"]
        effects = effects.assign(**{name: 10.0 ** effects[name] for name in logs})
    write = theme.ratio if is_ratio else signed
    lines = [
        {
            "row": ", ".join(filter(None, (line["label"], study))),
            "brief": write(line["estimate"]),
            "interval": interval(line["low"], line["high"], write),
            "interval90": interval(line["low90"], line["high90"], write),
        }
        for line, study in zip(effects.to_dict("records"), studies, strict=True)
    ]
    words = pd.DataFrame(lines, effects.index, ["row", "brief", "interval", "interval90"])
    numbers = words["brief"] + " " + words["interval"]
    return effects.join(words).assign(numbers=numbers, study=studies)


def interval(low: float, high: float, write: Callable[[float], str] = signed) -> str:
    """An interval as it is printed."""
    return f"[{write(low)}, {write(high)}]" if math.isfinite(low) else "[no interval]"


def number(value: float, digits: int = 2) -> str:
    """A number as it is printed."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


def _of(part: int, whole: int) -> str:
    return str(part) if part == whole else f"{part} of {whole}"
