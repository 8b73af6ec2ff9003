"""Give each arm the recipe it does best with: the stage ahead of a study.

One learning rate for all arms is not fair: at equal rate the weights of `after` turn faster than
those of `before`. So the grid may name rates to try. Each cell of the study is trained with every
one of them, on seeds of a stage of its own (no stream of the study comes from them), and scored on
the validation part alone; then the study runs twice, at the common recipe and at each arm's best.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean

from harness.study.records import ChoiceRow, Settings, TrialRow
from harness.study.trials import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The recipes to try: every rate with every decay, on so many seeds of their own."""

    lr: tuple[float, ...]
    seeds: int
    weight_decay: tuple[float, ...] = ()
    """Empty keeps each cell's own."""
    epochs: int | None = None
    """None trains as long as the study does."""


def expand_tuning(study: Iterable[Trial], tuning: Tuning) -> tuple[Trial, ...]:
    """Every arm of the study with every recipe, seed outermost as in the study itself."""
    by_arm = [_attempts(cell, tuning) for cell in _cells(study)]
    return tuple(
        trials[seed]
        for seed in range(tuning.seeds)
        for attempts in by_arm
        for trials in attempts.values()
    )


def choose(
    study: Iterable[Trial], tuning: Tuning, rows: Iterable[TrialRow]
) -> tuple[ChoiceRow, ...]:
    """Score each recipe of each arm by its mean validation accuracy and mark the best.

    A run that diverged scores 0: a recipe that sometimes breaks is no best one. Equal scores go to
    the smaller rate, then the smaller decay. Empty while a trial of the stage has no row.
    """
    found = {row.trial_id: row for row in rows}
    choices: list[ChoiceRow] = []
    for cell in _cells(study):
        attempts = _attempts(cell, tuning)
        if any(trial.id not in found for trials in attempts.values() for trial in trials):
            return ()
        tried = {recipe: [found[t.id] for t in trials] for recipe, trials in attempts.items()}
        means = {recipe: fmean(map(_score, rows)) for recipe, rows in tried.items()}
        best = min(means, key=lambda recipe: (-means[recipe], recipe))
        choices += [
            ChoiceRow(
                **asdict(replace(cell, lr=lr, weight_decay=weight_decay)),
                seeds=len(rows),
                diverged=sum(row.status == "diverged" for row in rows),
                validation_accuracy=means[lr, weight_decay],
                chosen=(lr, weight_decay) == best,
                at_edge=len(tuning.lr) > 1 and lr in {min(tuning.lr), max(tuning.lr)},
            )
            for (lr, weight_decay), rows in tried.items()
        ]
    return tuple(choices)


def apply_choices(study: Iterable[Trial], choices: Iterable[ChoiceRow]) -> tuple[Trial, ...]:
    """The study once more, each arm at its own best recipe; nothing where nothing was chosen.

    An arm that borrows another's flow takes the recipe of its placement.
    """
    names = [field.name for field in fields(Settings)]
    best: dict[Trial, ChoiceRow] = {}
    for choice in choices:
        if choice.chosen:
            best[_arm(Trial(**{name: getattr(choice, name) for name in names}))] = choice
    tuned = (
        replace(trial, recipe="tuned", lr=chosen.lr, weight_decay=chosen.weight_decay)
        for trial in study
        if (chosen := best.get(_arm(replace(trial, flow="own"))))
    )
    return tuple(dict.fromkeys(tuned))


def _cells(study: Iterable[Trial]) -> Iterable[Trial]:
    """One cell per arm that is tuned."""
    cells: dict[Trial, Trial] = {}
    for trial in study:
        if trial.flow == "own":
            cells.setdefault(_arm(trial), replace(trial, seed=0))
    return cells.values()


def _arm(trial: Trial) -> Trial:
    """What stays of a cell when its recipe is left open."""
    return replace(trial, seed=0, lr=0.0, weight_decay=0.0)


def _attempts(cell: Trial, tuning: Tuning) -> dict[tuple[float, float], list[Trial]]:
    """(lr, weight decay) -> the trials that score it, one per tuning seed."""
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
        for lr in tuning.lr
        for weight_decay in tuning.weight_decay or (cell.weight_decay,)
    }


def _score(row: TrialRow) -> float:
    return row.validation_accuracy if row.status == "done" else 0.0
