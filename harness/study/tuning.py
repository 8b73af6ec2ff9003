"""Find the best recipe of each arm: the tuning stage, which runs before the study.

One learning rate for all arms is not fair: at equal rates the weights of `after` rotate faster than
those of `before`. So the grid may list rates to try. Each cell of the study is trained with each
rate, on seeds reserved for this stage (the study shares no random stream with them), and scored on
the validation part alone; then the study runs twice, at the common recipe and at each arm's best, or
where the grid says so at the second alone.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from harness.study.records import ChoiceRow, TrialRow, column, settings_of
from harness.study.trials import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The recipes to try: every learning rate with every weight decay, on separate seeds."""

    lr: tuple[float, ...] = column("1", "Peak learning rates to try.")
    seeds: int = column("1", "Trials of each recipe; their randomness is not that of the study.")
    weight_decay: tuple[float, ...] = column(
        "1", "Weight decays to try with each rate; without it, each cell keeps its own.", default=()
    )
    epochs: int | None = column(
        "1", "Epochs of each trial; without it, as many as in the study.", default=None
    )
    extensions: int = column(
        "1",
        "Rates that may be added, one by one, beyond an edge at which an arm does best.",
        default=3,
    )
    common: bool = column(
        "1",
        "Run the study at the common recipe as well as at each arm's best; false halves its cost.",
        default=True,
    )


def expand_tuning(
    study: Iterable[Trial], tuning: Tuning, rows: Iterable[TrialRow] = ()
) -> tuple[Trial, ...]:
    """Every arm of the study with every recipe; the seed is the outermost loop, as in the study.

    Arms that differ only in how long the study trains them share the trials of a stage whose length
    is given. Where the rows show that an arm does best at the edge of its learning rates, one rate beyond
    the edge is tried too, at the spacing of the last two.
    """
    found = {row.trial_id: row for row in rows}
    by_arm = [_attempts(cell, tuning, found) for cell in _cells(study)]
    trials = (
        trials[seed]
        for seed in range(tuning.seeds)
        for attempts in by_arm
        for trials in attempts.values()
    )
    return tuple(dict.fromkeys(trials))


def choose(
    study: Iterable[Trial], tuning: Tuning, rows: Iterable[TrialRow]
) -> tuple[ChoiceRow, ...]:
    """Score each recipe of each arm by its mean validation accuracy and mark the best.

    A diverged run scores 0: a recipe that sometimes diverges should not be the best. Ties go to the
    smaller learning rate, then the smaller decay. Empty while a trial of the stage has no row.
    """
    found = {row.trial_id: row for row in rows}
    choices: list[ChoiceRow] = []
    for cell in _cells(study):
        attempts = _attempts(cell, tuning, found)
        means = _score_recipes(attempts, found)
        if means is None:
            return ()
        tried = {recipe: [found[t.id] for t in trials] for recipe, trials in attempts.items()}
        best = _best_of(means)
        rates = {rate for rate, _ in attempts}
        choices += [
            ChoiceRow(
                **settings_of(replace(cell, lr=lr, weight_decay=weight_decay)),
                arm=cell.arm,
                seeds=len(rows),
                diverged=sum(row.status == "diverged" for row in rows),
                validation_accuracy=means[lr, weight_decay],
                chosen=(lr, weight_decay) == best,
                at_edge=len(rates) > 1 and lr in {min(rates), max(rates)},
            )
            for (lr, weight_decay), rows in tried.items()
        ]
    return tuple(choices)


def apply_choices(study: Iterable[Trial], choices: Iterable[ChoiceRow]) -> tuple[Trial, ...]:
    """The trials of the study again, each arm at its best recipe; empty where nothing was chosen.

    An arm that borrows step sizes uses the recipe of its placement, and its donor uses its own.
    """
    best: dict[Trial, ChoiceRow] = {}
    for choice in choices:
        if choice.chosen:
            best[without_recipe(Trial(**settings_of(choice)))] = choice
    tuned: list[Trial] = []
    for trial in study:
        chosen = best.get(without_recipe(replace(trial, flow="own")))
        donor = best.get(without_recipe(trial.donor)) if trial.flow != "own" else None
        if chosen is None or (donor is None and trial.flow != "own"):
            continue
        recipe = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
        if donor and (donor.lr, donor.weight_decay) != (chosen.lr, chosen.weight_decay):
            recipe |= {"flow_lr": donor.lr, "flow_weight_decay": donor.weight_decay}
        tuned.append(replace(trial, recipe="tuned", **recipe))
    return tuple(dict.fromkeys(tuned))


def _cells(study: Iterable[Trial]) -> Iterable[Trial]:
    """One cell for each arm to tune."""
    cells: dict[Trial, Trial] = {}
    for trial in study:
        if trial.flow == "own":
            cells.setdefault(without_recipe(trial), replace(trial, seed=0))
    return cells.values()


def without_recipe(trial: Trial) -> Trial:
    """The cell and arm of a trial, equal whether at the common recipe or at the one chosen for it."""
    rates = {"lr": 0.0, "weight_decay": 0.0, "flow_lr": 0.0, "flow_weight_decay": 0.0}
    return replace(trial, seed=0, recipe="common", **rates)


_Attempts = dict[tuple[float, float], list[Trial]]
"""(lr, weight decay) -> the trials that score it, one per tuning seed."""


def _attempts(cell: Trial, tuning: Tuning, found: Mapping[str, TrialRow]) -> _Attempts:
    """All attempts of an arm: the grid's recipes, and rates beyond an edge where it does best."""
    rates = sorted(tuning.lr)
    for _ in range(tuning.extensions):
        means = _score_recipes(_list_attempts(cell, tuning, rates), found)
        if means is None or len(rates) < 2:
            break
        best, _ = _best_of(means)
        if best == rates[-1]:
            rates.append(float(f"{rates[-1] ** 2 / rates[-2]:.6g}"))
        elif best == rates[0]:
            rates.insert(0, float(f"{rates[0] ** 2 / rates[1]:.6g}"))
        else:
            break
    return _list_attempts(cell, tuning, rates)


def _list_attempts(cell: Trial, tuning: Tuning, rates: Iterable[float]) -> _Attempts:
    epochs = tuning.epochs or cell.epochs
    attempt = replace(
        cell,
        stage="tuning",
        epochs=epochs,
        warmup_epochs=min(cell.warmup_epochs, epochs),
        pack_size=tuning.seeds if cell.pack_size > 1 else 1,
    )
    return {
        (lr, weight_decay): [
            replace(attempt, lr=lr, weight_decay=weight_decay, seed=seed)
            for seed in range(tuning.seeds)
        ]
        for lr in rates
        for weight_decay in tuning.weight_decay or (cell.weight_decay,)
    }


def _score_recipes(
    attempts: _Attempts, found: Mapping[str, TrialRow]
) -> dict[tuple[float, float], float] | None:
    """Mean score of each recipe; None while a trial of one has no row."""
    if any(trial.id not in found for trials in attempts.values() for trial in trials):
        return None
    return {
        recipe: fmean(_score(found[trial.id]) for trial in trials)
        for recipe, trials in attempts.items()
    }


def _best_of(means: Mapping[tuple[float, float], float]) -> tuple[float, float]:
    return min(means, key=lambda recipe: (-means[recipe], recipe))


def _score(row: TrialRow) -> float:
    return row.validation_accuracy if row.status == "done" else 0.0
