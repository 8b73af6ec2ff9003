"""The differences between placements: forests, single pairs, depth, and how small one could be found."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from analysis.judgement.effects import BESIDE, GRAFTS, GROUPS
from analysis.judgement.outcomes import WINDOWS
from analysis.page import charts, theme
from analysis.page import frames as tables
from analysis.page.encodings import span
from analysis.page.fates import count_trained
from analysis.page.parts import Figure, Panel, Section, Table
from analysis.page.theme import NONE, capitalized, interval, number, p_value, signed

if TYPE_CHECKING:
    from analysis.judgement.effects import Effect
    from analysis.judgement.fates import Fate
    from analysis.page.theme import Mark


_GRAFT = (
    "With the steps of the other order each layer keeps the direction of its own step and takes its "
    "relative size from the other: what is left is no matter of how large the gradients are. "
)


@dataclass(frozen=True)
class Comparison:
    """The effects of one quantity between one arm and one baseline."""

    quantity: str
    window: str
    """When flow was measured; empty of accuracy."""
    arm: str
    baseline: str
    effects: tuple[Effect, ...]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The effects as a frame."""
        return tables.tabulate_effects(self.effects)

    @property
    def is_graft(self) -> bool:
        """Does one of the two take step sizes that are not its own?"""
        return (self.arm, self.baseline) in GRAFTS

    @property
    def is_ratio(self) -> bool:
        """Is the arm divided by the baseline, rather than compared by a difference?"""
        return self.quantity == "gradient"

    @property
    def quantity_name(self) -> str:
        """The quantity as titles have it."""
        return f"Gradient flow {WINDOWS[self.window]}" if self.is_ratio else "Test accuracy"

    @property
    def axis(self) -> str:
        """What is compared, with its unit."""
        if all(effect.kind == "interaction" for effect in self.effects):
            apart = f"{self.arm} {theme.MINUS} {self.baseline}"
            return f"({apart}) without skips {theme.MINUS} with skips (points)"
        if self.is_ratio:
            return f"{self.arm} / {self.baseline} (ratio)"
        return f"{self.arm} {theme.MINUS} {self.baseline} (points)"


def compare(effects: Sequence[Effect]) -> list[Comparison]:
    """The comparisons among the effects, in the order in which they come."""
    members: dict[tuple[str, str, str, str], list[Effect]] = {}
    for effect in effects:
        key = (effect.quantity, effect.window, effect.arm, effect.baseline)
        members.setdefault(key, []).append(effect)
    return [Comparison(*key, tuple(chosen)) for key, chosen in members.items()]


def show_differences(
    comparisons: Sequence[Comparison], marks: Mapping[str, Mark], fates: Sequence[Fate] = ()
) -> Section:
    figures: list[Figure] = []
    for compared in sorted(comparisons, key=lambda one: one.is_graft):
        rows = compared.rows
        rows = rows.assign(counts=count_trained(rows, fates))
        is_told = rows["estimate"].notna() | (rows["counts"] != "")
        says_more = (rows["kind"] == "cell") | (rows["kind"] == "pooled") & (rows["cells"] != 1)
        shown = rows[says_more & is_told]  # the pool of one network is that network
        is_beside = shown["family"].isin(BESIDE)
        for beside, lines in (("", shown[~is_beside]), (", beside the claims", shown[is_beside])):
            if lines.empty:
                continue
            # The first is the question itself, though no claim may rest on it here.
            is_exploratory = bool(lines["family"].str.startswith("exploratory").all())
            is_aside = bool(beside) or (is_exploratory and bool(figures))
            figures.append(_draw_forest(compared, lines, marks, beside=beside, is_aside=is_aside))
    return Section(
        "differences",
        "Where does the order matter?",
        "Each line compares two placements that started from the same weights and saw the same "
        "batches, seed by seed. Bold lines pool the networks below them.",
        tuple(sorted(figures, key=lambda figure: figure.is_aside)),
    )


def _draw_forest(
    compared: Comparison,
    rows: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    beside: str,
    is_aside: bool,
) -> Figure:
    shown = as_printed(_group_by_architecture(rows))
    is_ratio, what = compared.is_ratio, compared.quantity_name
    name = (
        f"forest-{compared.quantity}",
        compared.window,
        f"{compared.arm}-{compared.baseline}",
        "beside" * bool(beside),
    )
    return Figure(
        name="-".join(filter(None, name)),
        title=f"{what}: {compared.axis}{beside}",
        description=(
            f"{what} of '{compared.arm}' against '{compared.baseline}', paired by seed. "
            + _GRAFT * compared.is_graft
            + "Other lengths of training, or one more norm ahead of the head. " * bool(beside)
            + "Thin bar: 95 % interval; thick bar: 90 % interval, which must lie inside the shaded margin "
            f"({_margin_words(shown, is_ratio=is_ratio)}) for the two to be called equivalent."
            + (
                f" Where not every run trained, no mean is drawn: of '{compared.arm}' and of "
                f"'{compared.baseline}' it says how many did."
                if (shown["counts"] != "").any()
                else ""
            )
        ),
        panels=_forests(shown, marks, title=compared.axis, is_ratio=is_ratio),
        table=_effects_table(shown, compared.axis),
        is_aside=is_aside,
    )


def show_pairs(
    trials: pd.DataFrame, comparisons: Sequence[Comparison], marks: Mapping[str, Mark]
) -> Section:
    cells = tables.tabulate_accuracies(trials)
    lost = cells["ran"] - cells["trained"]
    cells["note"] = [f"{count}✕" if count else "" for count in lost]
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
                "trials of one seed, a black tick is the mean of those that trained, and ✕ counts those "
                "that diverged, learned nothing or collapsed."
            ),
            panels=tuple(panels),
            table=Table(
                (
                    *("architecture", "depth", "arm", "mean (%)", "sd"),
                    *("trained", "ran", "planned"),
                ),
                tuple(
                    (
                        row["panel"],
                        str(row["depth"]),
                        row["arm"],
                        number(row["mean"]),
                        number(row["sd"]),
                        str(row["trained"]),
                        str(row["ran"]),
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
    for asked in comparisons[:1]:
        arm, baseline, title = asked.arm, asked.baseline, asked.axis
        pairs = tables.name_panels(tables.tabulate_pairs(asked.effects))
        pairs = pairs.assign(seed=pairs["seed"].astype(str))
        means = tables.name_panels(asked.rows[asked.rows["kind"] == "cell"])
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
                table=pairs_table({title: pairs.assign(value=pairs["difference"])}),
                columns=2,
            )
        )
    return Section("pairs", "What did every seed do?", "", tuple(f for f in figures if f.panels))


def show_depths(comparisons: Sequence[Comparison], marks: Mapping[str, Mark]) -> Section:
    figures = []
    for asked in comparisons[:1]:
        arm, baseline, title, rows = asked.arm, asked.baseline, asked.axis, asked.rows
        cells = tables.name_panels(rows[(rows["kind"] == "cell") & rows["estimate"].notna()])
        panels = [
            (name, part) for name, part in cells.groupby("panel", sort=False) if len(part) > 1
        ]
        reach = span(cells, "estimate", "low", "high", around=cells["margin"])
        if panels:
            figures.append(
                Figure(
                    name=f"depth-{asked.quantity}-{arm}-{baseline}",
                    title="The difference against depth",
                    description=(
                        f"Mean accuracy of '{arm}' minus '{baseline}' at each depth (log scale), "
                        "with 95 % intervals; all panels share one scale."
                    ),
                    panels=tuple(
                        Panel(str(name), charts.trend(part, marks, title=title, reach=reach))
                        for name, part in panels
                    ),
                    table=_effects_table(as_printed(cells), title),
                    columns=3,
                )
            )
        for kind, heading, description, axis in (
            (
                "trend",
                "The trend with depth",
                "Change of the difference per doubling of depth, in each family of networks.",
                title.replace("(points", "(points per doubling"),
            ),
            (
                "interaction",
                "The effect of the skip connection",
                "Difference between families of networks (interaction).",
                title,
            ),
        ):
            contrasts = as_printed(rows[rows["kind"] == kind])
            if kind == "trend":  # the axis says the rest of the label
                contrasts = contrasts.assign(label=contrasts["architecture"])
            if not contrasts.empty:
                figures.append(
                    Figure(
                        name=f"{kind}-{asked.quantity}-{arm}-{baseline}",
                        title=heading,
                        description=description,
                        panels=_forests(contrasts, marks, title=axis),
                        table=_effects_table(contrasts, axis),
                    )
                )
    return Section("depth", "Does it depend on depth, or on the skip?", "", tuple(figures))


def show_precision(
    comparisons: Sequence[Comparison], marks: Mapping[str, Mark], *, alpha: float
) -> Section:
    figures = []
    for asked in comparisons[:1]:
        arm, baseline = asked.arm, asked.baseline
        cells = tables.tabulate_precision(asked.effects, alpha=alpha)
        if cells.empty:
            continue
        cells = as_printed(cells)
        figures.append(
            Figure(
                name="precision",
                title=f"Smallest difference found with 80 % power: {arm} {theme.MINUS} {baseline}",
                description=(
                    "For each cell alone, with the pairs it has; the black tick is the margin. "
                    "Planned on the upper 80 % bound of the standard deviation."
                ),
                panels=tuple(
                    Panel(
                        capitalized(str(study)),
                        charts.precision(
                            part.assign(row=part["label"]),
                            marks,
                            title="difference (points)",
                            reach=span(cells, "detectable", around=cells["margin"])[1],
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


def _forests(
    effects: pd.DataFrame, marks: Mapping[str, Mark], *, title: str, is_ratio: bool = False
) -> tuple[Panel, ...]:
    """A forest for each study."""
    return tuple(
        Panel(
            capitalized(str(study)),
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


def _group_by_architecture(effects: pd.DataFrame) -> pd.DataFrame:
    """Each architecture's pool ahead of its cells, the pools of several ahead of all."""
    names = list(effects["architecture"].dropna().unique())
    order = {name: place for place, name in enumerate(names)}
    # A pool of which only one architecture is here is that one's.
    order |= {
        pool: order[members[0]]
        for pool, every in GROUPS.items()
        if len(members := [name for name in every if name in order]) == 1
    }
    group = effects["architecture"].fillna(effects["label"]).map(order).fillna(-1)
    ordered = effects.assign(group=group, is_cell=effects["kind"] == "cell")
    return ordered.sort_values(["group", "is_cell"], kind="stable")


def _margin_words(effects: pd.DataFrame, *, is_ratio: bool) -> str:
    margin = float(effects["margin"].max())
    return f"{1 / margin:.3g} to {margin:.3g}" if is_ratio else f"±{margin:.3g} points"


def _effects_table(rows: pd.DataFrame, difference: str) -> Table:
    return Table(
        columns=(
            *("cell", "pairs", difference, "95 % interval", "90 % interval"),
            *("p", "p (beyond the margin, one-sided)", "p (Holm)", "claim"),
            *("sign-flip p", "its floor", "p (equivalence)"),
        ),
        rows=tuple(
            (
                row["row"],
                _of(row["pairs"], row["pairs_planned"]),
                row["brief"],
                row["interval"],
                row["interval90"],
                p_value(row["p"]),
                p_value(row["p_minimal"]),
                p_value(row["p_holm"]),
                NONE if row["family"].startswith("exploratory") else row["family"],
                p_value(row["p_sign_flip"]),
                p_value(row["p_sign_flip_floor"]),
                p_value(row["p_tost"]),
            )
            for row in rows.to_dict("records")
        ),
    )


def pairs_table(pairs: Mapping[str, pd.DataFrame], *, ratios: Collection[str] = ()) -> Table:
    """What every pair gave: a row per cell and quantity, a column per seed.

    `ratios` names the quantities that are one.
    """
    seeds = list(dict.fromkeys(seed for rows in pairs.values() for seed in rows["seed"]))
    lines = []
    for what, rows in pairs.items():
        write = theme.ratio if what in ratios else signed
        cells = rows.assign(study=tables.name_studies(rows)).groupby(["label", "study"], sort=False)
        for (label, study), cell in cells:  # pyright: ignore[reportGeneralTypeIssues]
            by_seed = dict(zip(cell["seed"], cell["value"], strict=True))
            name = ", ".join(filter(None, (str(label), str(study))))
            lines.append((name, what, *(write(by_seed.get(seed, math.nan)) for seed in seeds)))
    return Table(("cell", "difference", *(f"seed {seed}" for seed in seeds)), tuple(lines), words=2)


def as_printed(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects as the reader sees them: gradient flow as a ratio, and the words of each line.

    Adds `study`; `row`, a name that no other line has; `brief` and `numbers`, the text beside it, and
    `interval` and `interval90`.
    """
    studies = tables.name_studies(effects)
    is_ratio = bool((effects["quantity"] == "gradient").all())
    if is_ratio:
        logs = ["estimate", "low", "high", "low90", "high90", "margin"]
        effects = effects.assign(**{name: 10.0 ** effects[name] for name in logs})
    counts = effects["counts"] if "counts" in effects else pd.Series("", effects.index)
    told = ["estimate", "low", "high", "low90", "high90"]
    effects = effects.assign(**{name: effects[name].where(counts == "") for name in told})
    write = theme.ratio if is_ratio else signed
    lines = [
        {
            "row": ", ".join(filter(None, (line["label"], study))),
            "brief": write(line["estimate"]),
            "interval": interval(line["low"], line["high"], write),
            "interval90": interval(line["low90"], line["high90"], write),
        }
        for line, study in zip(effects[["label", *told]].to_dict("records"), studies, strict=True)
    ]
    words = pd.DataFrame(lines, effects.index, ["row", "brief", "interval", "interval90"])
    numbers = (words["brief"] + " " + words["interval"]).where(counts == "", counts)
    words["interval"] = words["interval"].where(counts == "", counts)
    return effects.join(words).assign(numbers=numbers, study=studies)


def _of(part: int, whole: int) -> str:
    return str(part) if part == whole else f"{part} of {whole}"
