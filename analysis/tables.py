"""The numbers that charts draw, tables print and files hold: one row per thing to be seen.

A *panel* is what is drawn apart: an architecture, with whatever else tells its cells from those
of other panels (variant, recipe, data set). Within a panel, cells differ by depth and placement.

*Flow* is log10 of the gradient-flow column that the plan names, in dex.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from analysis.effects import Effect
from analysis.multiplicity import benjamini_hochberg
from analysis.power import detectable_difference, pairs_needed, sd_upper_bound
from harness.records import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from analysis.load import Results

_NO_VARIANT = {
    *("dataset", "architecture", "placement", "program", "depth", "seed"),
    *("stage", "recipe", "lr", "weight_decay"),
}
FLOW_TIMES = 12
"""Readings that a map of gradient flow shows at most, evenly spread over log time."""


def tabulate_effects(effects: Iterable[Effect]) -> pd.DataFrame:
    """One row per effect: every number it has, but for the single differences."""
    names = [field.name for field in fields(Effect) if field.name not in {"seeds", "differences"}]
    rows = [{name: getattr(effect, name) for name in names} for effect in effects]
    return pd.DataFrame(rows, columns=pd.Index(names)).astype({"depth": "Int64"})


def tabulate_pairs(effects: Iterable[Effect]) -> pd.DataFrame:
    """One row per pair of trials: its difference, arm minus baseline, in the effect's unit."""
    names = (
        *("quantity", "label", "dataset", "recipe", "architecture", "variant", "depth"),
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


def name_variants(trials: pd.DataFrame) -> pd.DataFrame:
    """Add `variant`: the settings beyond architecture and depth in which cells differ, in words."""
    names = [field.name for field in fields(Settings) if field.name not in _NO_VARIANT]
    several = [name for name in names if len(trials[name].unique()) > 1]
    words = [
        " ".join(f"{name}={value}" for name, value in row.items())
        for row in trials[several].to_dict("records")
    ]
    return trials.assign(variant=pd.Series(words, trials.index, dtype=str))


def name_panels(rows: pd.DataFrame) -> pd.DataFrame:
    """Add `panel`: the words that tell one panel from the others."""
    several = [name for name in ("dataset", "recipe") if len(rows[name].unique()) > 1]
    words = [
        " ".join(str(word) for word in row.values() if word)
        for row in rows[["architecture", "variant", *several]].to_dict("records")
    ]
    return rows.assign(panel=pd.Series(words, rows.index, dtype=str))


def tabulate_trials(results: Results) -> pd.DataFrame:
    """One row per planned trial: its state, and its test accuracy in percent where it has one.

    `state` is 'done', 'diverged', 'failed' (it broke, and no attempt finished) or 'missing'.
    """
    outcomes = results.trials[["trial_id", "status", "test_accuracy", "wall_time", "probe_time"]]
    trials = results.planned.merge(outcomes, on="trial_id", how="left")
    absent = np.where(trials["trial_id"].isin(results.failed["trial_id"]), "failed", "missing")
    trials["state"] = trials["status"].where(trials["status"].notna(), absent)
    trials["percent"] = 100 * trials["test_accuracy"]
    return name_panels(name_variants(trials))


def tabulate_accuracies(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: mean, standard deviation and number of the trials that trained.

    Units:
        mean and sd in percent.
    """
    keys = ["panel", "depth", "placement"]
    cells = trials.groupby(keys, sort=False).agg(
        planned=("trial_id", "size"),
        trained=("percent", "count"),
        diverged=("state", lambda states: int((states == "diverged").sum())),
        mean=("percent", "mean"),
        sd=("percent", "std"),
    )
    return cells.reset_index()


def read_flow(results: Results, depths: pd.DataFrame) -> pd.DataFrame:
    """One row per trial, layer and time: the flow of some cells at the times that are shown.

    `depths` says which cells: one row per `panel` and `depth`. Readings that are not positive
    and finite have no logarithm and are left out.
    """
    column = results.plan.gradient_column
    trials = name_panels(name_variants(results.trials)).merge(depths, on=["panel", "depth"])
    trials = trials[["trial_id", "panel", "depth", "placement", "seed"]]
    readings = results.gradients[["trial_id", "step", "epoch", "layer_index", column]]
    parts = []
    for _, members in trials.groupby("panel", sort=False):
        part = readings[readings["trial_id"].isin(members["trial_id"])]
        part = part[part["step"].isin(_spread(sorted(part["step"].unique())))]
        parts.append(part.merge(members, on="trial_id"))
    joined = pd.concat(parts) if parts else readings[:0].merge(trials, on="trial_id")
    values = joined[column].to_numpy(dtype=float)
    is_positive = np.isfinite(values) & (values > 0)
    return joined[is_positive].assign(flow=np.log10(values[is_positive]))


def tabulate_flow(readings: pd.DataFrame) -> pd.DataFrame:
    """Flow per layer and time: mean over the trials of a cell, with its 95 % interval."""
    keys = ["panel", "depth", "placement", "step", "epoch", "layer_index"]
    return _summarize(readings.groupby(keys, sort=True)["flow"])


def tabulate_flow_differences(readings: pd.DataFrame, *, arm: str, baseline: str) -> pd.DataFrame:
    """Flow of `arm` minus flow of `baseline` per layer and time, paired by seed.

    `p_bh` is the t test's p after Benjamini and Hochberg over all layers and times of a panel:
    a map to explore, in which about one find in twenty may be false.
    """
    keys = ["panel", "depth", "step", "epoch", "layer_index"]
    by_reading = readings.set_index([*keys, "seed"])
    of_arm = by_reading.loc[by_reading["placement"] == arm, "flow"]
    of_baseline = by_reading.loc[by_reading["placement"] == baseline, "flow"]
    table = _summarize((of_arm - of_baseline).dropna().groupby(keys))
    table["p"] = 2 * special.stdtr(table["trials"] - 1, -(table["mean"] / table["se"]).abs())
    by_panel = table.groupby(["panel", "depth"], sort=False)["p"]
    return table.assign(p_bh=by_panel.transform(benjamini_hochberg))


def _spread(steps: Sequence[int]) -> set[int]:
    """At most FLOW_TIMES of the steps, the first and the last among them, even over log time."""
    if len(steps) <= FLOW_TIMES:
        return set(steps)
    place = np.log1p(np.asarray(steps, dtype=float))
    wanted = np.linspace(place[0], place[-1], FLOW_TIMES)
    return {steps[int(np.abs(place - target).argmin())] for target in wanted}


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
