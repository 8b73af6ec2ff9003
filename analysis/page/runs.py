"""The runs themselves: the recipe each arm got, what became of every trial, and what it ran on."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from analysis.judgement.studies import STUDY, name_value
from analysis.page import charts, curves, theme
from analysis.page import frames as tables
from analysis.page.parts import Figure, Panel, Section, Table
from analysis.page.theme import number
from harness.study.wording import format_count, list_words

if TYPE_CHECKING:
    from analysis.load import Results
    from analysis.page.theme import Mark

MOST_FAILURES = 40
"""Ways of failing that are listed; who fails in more ways reads the rows."""
_IDENTITIES = {
    "qa_sum": "the sum of a channel's gradient",
    "qa_dot": "a layer's weight times its gradient, summed",
}
EDGE = "↔"
"""Stands at the best rate of an arm where it is the smallest or largest tried; no arm's mark."""
_GLYPHS = {"done": "", "diverged": "✕", "failed": "!", "missing": ""}


def show_tuning(results: Results, trials: pd.DataFrame, marks: Mapping[str, Mark]) -> Section:
    choices = tables.tabulate_choices(results.choices)
    studies = tables.name_studies(choices)
    rows = tuple(
        (
            ", ".join(
                filter(None, (f"{row['architecture']}-{row['depth']}", row["variant"], study))
            ),
            row["placement"],
            f"{row['lr']:g}",
            f"{row['weight_decay']:g}",
            number(100 * row["validation_accuracy"]),
            f"{EDGE} edge of the list" if row["at_edge"] else "inside the list",
            "; ".join(
                f"{lr:g}: {number(score, 1)}" + (f" ({diverged}✕)" if diverged else "")
                for lr, _, score, diverged in row["tried"]
            ),
        )
        for row, study in zip(choices.to_dict("records"), studies, strict=True)
    )
    edges = int(choices["at_edge"].sum())
    is_common_too = bool((trials["recipe"] == "common").any())
    warning = (
        f" {edges} of {len(choices)} arms do best at the smallest or largest rate tried: a better "
        "one may lie beyond, and their comparison is fair only as far as the list reaches."
    )
    compared = _compare_rates(trials, marks)
    tuned = _draw_rates(
        trials[trials["stage"] == "tuning"],
        marks,
        name="rates",
        column="validation_accuracy",
        description="Every seed of the tuning stage, and a line through the means of each arm. "
        f"{EDGE}: the arm does best at the edge of the rates tried. Runs far below the best are left "
        "out; the table has their means.",
        edges=_find_edges(choices),
    )
    return Section(
        "tuning",
        "Which recipe did each arm get?" if rows else "Does it depend on the learning rate?",
        (
            "At one common rate the order with the larger steps may win or lose by its steps alone. So "
            f"each arm was {'also ' * is_common_too}trained at the recipe that scored best on "
            "validation images"
            + _say_length(results)
            + ", with seeds of its own that the study does not use. A run that diverged (✕) scores 0."
            + (warning if edges else "")
        )
        * bool(rows),
        figures=(*compared, *tuned),
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


def _say_length(results: Results) -> str:
    """How long the stage trains, where the study has other lengths."""
    tuning, study = (
        sorted(results.planned.loc[results.planned["stage"] == stage, "epochs"].unique().tolist())
        for stage in ("tuning", "study")
    )
    if not tuning or tuning == study:
        return ""
    return (
        f" (after {list_words(map(str, tuning))} epochs; trainings of {list_words(map(str, study))} "
        "epochs get the same one)"
    )


def _compare_rates(trials: pd.DataFrame, marks: Mapping[str, Mark]) -> tuple[Figure, ...]:
    """Test accuracy against the rate, where the study itself trains an arm at several."""
    study = tables.name_variants(trials[trials["stage"] == "study"], by_rate=False)
    cells = study.groupby(["variant", *STUDY, "architecture", "depth", "arm"], sort=False)
    return _draw_rates(
        study[cells["lr"].transform("nunique") > 1],
        marks,
        name="rates-study",
        column="test_accuracy",
        description="Every seed of the study, and a line through the means of each arm.",
    )


def _find_edges(choices: pd.DataFrame) -> set[tuple[object, ...]]:
    at_edge = choices.assign(study=tables.name_studies(choices))[choices["at_edge"].astype(bool)]
    columns = ["study", "architecture", "variant", "depth", "arm", "lr"]
    return set(at_edge[columns].itertuples(index=False, name=None))


def _draw_rates(
    trials: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    name: str,
    column: str,
    description: str,
    edges: Collection[tuple[object, ...]] = (),
) -> tuple[Figure, ...]:
    """Accuracy against the learning rate: every seed of every arm, network by network."""
    scored = trials.assign(percent=100 * trials[column])
    scored = scored[scored["percent"].notna()]
    if scored.empty or scored["lr"].nunique() < 2:
        return ()
    scored = tables.name_variants(scored, by_rate=False)
    scored = scored.assign(study=tables.name_studies(scored))
    panels = []
    for cell, rows in scored.groupby(["study", "architecture", "variant", "depth"], sort=False):
        means = rows.groupby(["arm", "lr"], sort=False, as_index=False)["percent"].mean()
        means["edge"] = [
            EDGE if (*cell, arm, lr) in edges else ""
            for arm, lr in zip(means["arm"], means["lr"], strict=True)
        ]
        study, architecture, variant, depth = cell
        here = {arm: mark for arm, mark in marks.items() if arm in set(rows["arm"])}
        chart = curves.rates(rows, means, here, title=theme.axis_title(column, unit="%"))
        words = ", ".join(filter(None, map(str, (f"{architecture}-{depth}", variant, study))))
        panels.append(Panel(words, chart))
    return (
        Figure(
            name=name,
            title="Accuracy against the learning rate",
            description=description,
            panels=tuple(panels),
            columns=3,
            legend=tuple(dict.fromkeys(scored["arm"])),
        ),
    )


def show_integrity(results: Results, trials: pd.DataFrame) -> Section:
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
                ("attempts", "trials", "kind", "message", "first trial", "last (UTC)"),
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
    spent = f"Measuring gradient flow took {100 * share:.1f} % of the training time."
    states = trials["state"].value_counts()
    intro = f"Of {format_count(len(trials), 'planned trial')} {states.get('done', 0):,} trained"
    intro += "".join(
        f", {states[state]:,} {words}"
        for state, words in (
            ("diverged", "diverged"),
            ("failed", "broke"),
            ("missing", "have no result"),
        )
        if state in states
    )
    intro += f". {spent}" if share > 0 else "."
    found = {_IDENTITIES[name]: off for name, off in checks.items() if math.isfinite(off)}
    if found:
        largest = " and ".join(f"{off:.1g} ({words})" for words, off in found.items())
        intro += (
            " The gradients can be checked: two sums are zero where batch norm follows a layer, up to "
            "rounding and batch norm's epsilon. Of the size of their terms they are at most "
            f"{largest}."
        )
    has_room = cells["cell"].str.len().max() < 20
    figures = [
        Figure(
            name=name,
            title=title,
            description=(
                "Green: trained. Orange with ✕: the loss diverged, which is an outcome. Black with "
                "!: the run broke. Grey: no result yet."
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
            (
                "integrity-tuning",
                "Every trial of the tuning stage",
                cells["stage"] == "tuning",
                True,
            ),
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


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds in ascending order as one would say them.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1][1:] = [seed]
        else:
            runs.append([seed])
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


def tabulate_arms(results: Results) -> Table:
    """What stands in a block of each arm, in the order in which the data pass."""
    planned = results.planned
    words = {"+": "the skip is added", "cat": "the input is appended"}
    for operation, column in (("norm", "norm"), ("act", "activation")):
        used = planned[column].unique()  # of several the operation is named, and not which it is
        words[operation] = name_value(column, used[0]) if len(used) == 1 else column
    found = planned.drop_duplicates(["placement", "program", "architecture"])
    rows = []
    for (placement, program), same in found.groupby(["placement", "program"], sort=False):
        steps = [words.get(step.rstrip(","), step) for step in str(program).split()]
        rows.append((placement, list_words(same["architecture"].unique()), ", ".join(steps)))
    return Table(("arm", "networks", "in each block"), tuple(rows), words=3)


def tabulate_provenance(results: Results) -> Table:
    """What trained the trials: a row per device, software and precision."""
    names = ("device", "torch", "python", "commit", "training code", "flags", "precision")
    versions = {digest: number for number, digest in enumerate(_order(results), start=1)}
    rows = results.trials.astype({"commit": str}).assign(
        **{"training code": [f"version {versions[d]}" for d in results.trials["code_digest"]]},
        flags=results.trials["deterministic"].map(_name_flags),
        commit=results.trials["commit"].str[:12],
    )
    counts = rows[list(names)].astype(str).value_counts(sort=False).reset_index()
    return Table(
        ("trials", *names),
        tuple(
            (str(row["count"]), *(row[name] for name in names)) for row in counts.to_dict("records")
        ),
        words=len(names) + 1,
    )


def _order(results: Results) -> list[str]:
    """The versions of the training code, the one of most trials first."""
    return results.trials["code_digest"].value_counts().index.tolist()


def _name_flags(flags: str) -> str:
    """Flags as readers say them.

    >>> _name_flags("cudnn.benchmark=False tf32=False")
    'cudnn.benchmark off, tf32 off'
    """
    told = (flag.replace("=True", " on").replace("=False", " off") for flag in flags.split())
    return ", ".join(told)
