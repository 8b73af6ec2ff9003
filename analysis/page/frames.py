"""The numbers that charts draw, tables print and files hold: one row per thing to be seen.

A *panel* is what is drawn apart: an architecture, with whatever else tells its cells from those
of other panels (variant, recipe, data set). Within a panel, cells differ by depth and arm: a
placement, or a placement that borrows another's flow.

*Flow* is log10 of the gradient-flow column that the plan names.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from analysis.judgement.effects import Effect
from analysis.judgement.outcomes import name_arm
from analysis.judgement.studies import (
    STUDY,
    count_groups,
    find_told,
    name_ingredients,
    name_settings,
)
from analysis.load import spread_times
from analysis.page import theme
from analysis.statistics.multiplicity import benjamini_hochberg
from analysis.statistics.power import detectable_difference, pairs_needed, sd_upper_bound
from harness.study.records import Settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from analysis.load import Results

_NO_VARIANT = {
    *STUDY,
    *("architecture", "placement", "program", "depth", "seed"),
    *("stage", "lr", "weight_decay", "flow", "flow_lr", "flow_weight_decay"),
}
_RATES = ["lr", "weight_decay"]
RECIPES = {"common": "common recipe", "tuned": "tuned recipes", "tuning": "tuning stage"}
"""What a recipe is called where there are several."""
FLOW_LAYERS = 32
"""Layers that are shown of one network at most, evenly spread."""


def tabulate_effects(effects: Iterable[Effect]) -> pd.DataFrame:
    """One row per effect: every number it has, but for the single differences."""
    names = [field.name for field in fields(Effect) if field.name not in {"seeds", "differences"}]
    rows = [{name: getattr(effect, name) for name in names} for effect in effects]
    return pd.DataFrame(rows, columns=pd.Index(names)).astype({"depth": "Int64"})


def tabulate_pairs(effects: Iterable[Effect]) -> pd.DataFrame:
    """One row per pair of trials: its difference, arm minus baseline, in the effect's unit."""
    names = (
        *STUDY,
        *("quantity", "label", "architecture", "variant", "depth"),
        *("arm", "baseline", "seed", "difference"),
    )
    rows = [
        {name: getattr(effect, name, None) for name in names}
        | {"seed": seed, "difference": difference}
        for effect in effects
        if effect.kind == "cell"
        for seed, difference in zip(effect.seeds, effect.differences, strict=True)
    ]
    return pd.DataFrame(rows, columns=pd.Index(names))


def name_variants(trials: pd.DataFrame, *, by_rate: bool = True) -> pd.DataFrame:
    """Add `arm`, and `variant`: the settings in which cells of one depth differ, in words.

    What all cells of an architecture and depth share is said nowhere, as in `Cell.label`. A rate
    is said where an arm was trained at several as part of the study, if `by_rate`.
    """
    names = [field.name for field in fields(Settings) if field.name not in _NO_VARIANT] + _RATES
    grouped = trials.assign(norm_groups=count_groups)
    told = find_told(grouped, names, [*STUDY, "stage", "architecture", "depth"])
    for rate in _RATES:
        told[rate] &= by_rate & _have_several_rates(trials)
    words = [
        name_settings({name: row[name] for name in names if is_told[name]})
        for row, is_told in zip(
            trials[names].to_dict("records"), told.to_dict("records"), strict=True
        )
    ]
    arms = [name_arm(*pair) for pair in zip(trials["placement"], trials["flow"], strict=True)]
    return trials.assign(
        arm=pd.Series(arms, trials.index, dtype=str),
        variant=pd.Series(words, trials.index, dtype=str),
    )


def _have_several_rates(trials: pd.DataFrame) -> pd.Series:
    """Of each trial: does its study train an arm at several rates, for comparison?

    Else rates are what an arm was given, and as little a part of the cell as its placement.
    """
    others = [field.name for field in fields(Settings) if field.name not in {"program", *_RATES}]
    study = [trials[name] for name in (*STUDY, "stage")]
    repeats = trials.duplicated(others).groupby(study).transform("any")
    return repeats & (trials["stage"] == "study")


def name_panels(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Add `panel`: the words of these columns, by default the network's, and those of the study."""
    told = [rows[name] for name in columns or ("architecture", "variant")]
    words = [
        ", ".join(filter(None, names)) for names in zip(*told, name_studies(rows), strict=True)
    ]
    return rows.assign(panel=pd.Series(words, rows.index, dtype=str))


def name_studies(rows: pd.DataFrame) -> list[str]:
    """Of each row the words that tell its study from the others, and from one on batch norm.

    Data set and recipe are said as far as there are several of them; norm, activation and optimizer
    where one of them is another than the paper's.
    """
    datasets, recipes = (
        rows[name] if len(rows[name].unique()) > 1 else pd.Series("", rows.index)
        for name in ("dataset", "recipe")
    )
    if len(set(recipes) - {"tuning"}) < 2:  # the study has one recipe, whatever came ahead of it
        recipes = recipes.where(recipes == "tuning", "")
    return [
        ", ".join(filter(None, (f"{dataset} {RECIPES.get(recipe, recipe)}".strip(), ingredients)))
        for dataset, recipe, ingredients in zip(
            datasets, recipes, name_ingredients(rows), strict=True
        )
    ]


def tabulate_trials(results: Results, lost: Collection[str] = ()) -> pd.DataFrame:
    """One row per planned trial: its arm, its state, and in percent its accuracy if it has one.

    `state` is 'done', 'diverged', 'failed' (it broke, and no attempt finished) or 'missing'. `lost`
    are the trials that ran and did not train, whatever their state: `is_lost`.
    """
    outcomes = results.trials[
        [
            *("trial_id", "status", "test_accuracy", "validation_accuracy"),
            *("wall_time", "probe_time"),
        ]
    ]
    trials = results.planned.merge(outcomes, on="trial_id", how="left")
    absent = np.where(trials["trial_id"].isin(results.failed["trial_id"]), "failed", "missing")
    trials["state"] = trials["status"].where(trials["status"].notna(), absent)
    trials["percent"] = 100 * trials["test_accuracy"]
    trials["is_lost"] = trials["trial_id"].isin(lost) | (trials["state"] == "diverged")
    trials["recipe"] = trials["recipe"].where(trials["stage"] == "study", "tuning")
    return name_panels(name_variants(trials))


def tabulate_accuracies(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: mean, standard deviation and number of the trials that trained.

    Trials that did not, `is_lost`, are in no mean: of two humps it would be in neither.

    Units:
        mean and sd in percent.
    """
    keys = ["panel", "depth", "arm"]
    cells = trials.assign(kept=trials["percent"].where(~trials["is_lost"])).groupby(
        keys, sort=False
    )
    return cells.agg(
        planned=("trial_id", "size"),
        ran=("state", lambda states: int(states.isin(["done", "diverged"]).sum())),
        trained=("kept", "count"),
        mean=("kept", "mean"),
        sd=("kept", "std"),
    ).reset_index()


def read_flow(results: Results, trials: pd.DataFrame) -> pd.DataFrame:
    """One row per trial, layer and time: the flow of some trials at the places that are shown.

    Readings that are not positive and finite have no logarithm and are left out.
    """
    column = results.plan.gradient_column
    trials = trials[["trial_id", "panel", "depth", "arm", "seed"]]
    readings = results.gradients[["trial_id", "step", "epoch", "layer_index", column]]
    parts = []
    for _, members in trials.groupby("panel", sort=False):
        part = readings[readings["trial_id"].isin(members["trial_id"])]
        part = part[part["step"].isin(spread_times(sorted(part["step"].unique())))]
        part = part[part["layer_index"].isin(_spread_layers(sorted(part["layer_index"].unique())))]
        parts.append(part.merge(members, on="trial_id"))
    joined = pd.concat(parts) if parts else readings[:0].merge(trials, on="trial_id")
    values = joined[column].to_numpy(dtype=float)
    is_positive = np.isfinite(values) & (values > 0)
    return joined[is_positive].assign(flow=np.log10(values[is_positive]))


def tabulate_flow(readings: pd.DataFrame) -> pd.DataFrame:
    """Flow per layer and time: mean over the trials of a cell, with its 95 % interval."""
    keys = ["panel", "depth", "arm", "step", "epoch", "layer_index"]
    return _summarize(readings.groupby(keys, sort=True)["flow"])


def tabulate_flow_differences(readings: pd.DataFrame, *, arm: str, baseline: str) -> pd.DataFrame:
    """Flow of `arm` minus flow of `baseline` per layer and time, paired by seed.

    `p_bh` is the t test's p after Benjamini and Hochberg over all layers and times of a panel:
    a map to explore, in which about one find in twenty may be false.
    """
    keys = ["panel", "depth", "step", "epoch", "layer_index"]
    by_reading = readings.set_index([*keys, "seed"])
    of_arm = by_reading.loc[by_reading["arm"] == arm, "flow"]
    of_baseline = by_reading.loc[by_reading["arm"] == baseline, "flow"]
    table = _summarize((of_arm - of_baseline).dropna().groupby(keys))
    table["p"] = 2 * special.stdtr(table["trials"] - 1, -(table["mean"] / table["se"]).abs())
    by_panel = table.groupby(["panel", "depth"], sort=False)["p"]
    return table.assign(p_bh=by_panel.transform(benjamini_hochberg))


def tabulate_failures(failures: pd.DataFrame) -> pd.DataFrame:
    """One row per way in which attempts broke, the most frequent first.

    `trial` names the first trial of each, `attempts` and `trials` count.
    """
    ways = failures.sort_values("failed_at").groupby(["kind", "message"], sort=False)
    counted = ways.agg(
        attempts=("trial_id", "size"),
        trials=("trial_id", "nunique"),
        trial=("trial", "first"),
        last=("failed_at", "last"),
    )
    return counted.reset_index().sort_values("attempts", ascending=False, kind="stable")


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame for a spreadsheet: a text that would run as a formula there gets a quote ahead, and
    no character moves a terminal that lists the file.

    Source:
        OWASP, "CSV Injection".
    """
    texts = frame.select_dtypes(include=["object", "string"]).columns
    formula = r"^(?=[=+\-@\t\r])"
    return frame.assign(
        **{
            name: frame[name]
            .str.replace(formula, "'", regex=True)
            .str.replace(theme.INVISIBLE, "\N{REPLACEMENT CHARACTER}", regex=True)
            for name in texts
        }
    )


def tabulate_choices(choices: pd.DataFrame) -> pd.DataFrame:
    """One row per arm that was tuned: the recipe it got, and how well every recipe did.

    Adds `tried`, (rate, decay, score in percent, how many diverged) from the lowest rate up, and
    keeps of each arm the row of the chosen recipe.
    """
    named = name_variants(choices, by_rate=False)
    keys = [*STUDY, "architecture", "variant", "depth", "placement"]
    rows = []
    for _, recipes in named.groupby(keys, sort=False):
        ordered = recipes.sort_values(["lr", "weight_decay"])
        tried = [
            (row["lr"], row["weight_decay"], 100 * row["validation_accuracy"], row["diverged"])
            for row in ordered.to_dict("records")
        ]
        rows += [{**row, "tried": tried} for row in recipes[recipes["chosen"]].to_dict("records")]
    return pd.DataFrame(rows, columns=pd.Index([*named.columns, "tried"]))


def _spread_layers(layers: Sequence[int]) -> set[int]:
    """At most FLOW_LAYERS of the layers, the first and the last among them, evenly spread."""
    places = np.linspace(0, len(layers) - 1, min(len(layers), FLOW_LAYERS))
    return {layers[int(place)] for place in places.round()}


def _summarize(groups: pd.api.typing.SeriesGroupBy) -> pd.DataFrame:
    """Mean and 95 % interval over trials; no interval where there is one."""
    table = groups.agg(["mean", "std", "count"]).reset_index()
    table = table.rename(columns={"count": "trials"})
    table["se"] = table["std"] / np.sqrt(table["trials"])
    half = special.stdtrit((table["trials"] - 1).clip(lower=1), 0.975) * table["se"]
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def tabulate_precision(effects: Iterable[Effect], *, alpha: float) -> pd.DataFrame:
    """What the cells at hand can show, and what it would take to see a difference that matters.

    `detectable` is found with 80 % power by as many pairs as there are; `needed` pairs find the
    margin. Both are planned on the upper 80 % bound of the standard deviation, `sd_upper`.
    """
    rows = []
    for cell in effects:
        if cell.kind != "cell" or cell.pairs < 2 or not cell.sd > 0:
            continue
        bound = sd_upper_bound(cell.sd, cell.pairs - 1)
        rows.append(
            {
                "sd_upper": bound,
                "detectable": detectable_difference(bound, cell.pairs, alpha=alpha),
                "needed": pairs_needed(cell.margin, bound, alpha=alpha),
                **tabulate_effects([cell]).iloc[0].to_dict(),
            }
        )
    return pd.DataFrame(rows)
