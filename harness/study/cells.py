"""How cells are told apart in words: by what every trial's label says, and by what varies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from harness.study.records import Settings
from harness.study.trials import Trial

_NAMED_BY_LABEL = {"dataset", "architecture", "depth", "placement", "program", "seed"}


def find_varying(trials: Collection[Trial]) -> list[str]:
    """The settings, beside those of a label, in which some of these trials differ."""
    # Two arms may share architecture and placement, so name every setting that varies.
    return [
        field.name
        for field in fields(Settings)
        if field.name not in _NAMED_BY_LABEL
        and len({getattr(trial, field.name) for trial in trials}) > 1
    ]


def name_settings(trial: Trial, names: Collection[str]) -> str:
    """These settings of a trial, to stand behind its name; empty without any.

    The recipe of an arm whose steps are borrowed is told where steps are borrowed.
    """
    is_own = trial.flow == "own"
    told = (name for name in names if not (is_own and name.startswith("flow")))
    return "".join(f" {name}={getattr(trial, name)}" for name in told)
