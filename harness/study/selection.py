"""Select trials by their settings, as `--only` does."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields

from harness.study.errors import GridError
from harness.study.records import Settings
from harness.study.trials import Trial
from harness.study.wording import clip, did_you_mean, show

NAMED_VALUES = 20
"""Values of a setting that the message about a wrong condition lists."""


def select(trials: Sequence[Trial], conditions: Sequence[str]) -> list[Trial]:
    """The trials that meet the conditions `key=value,value`: any of the values given for each key.

    Raises:
        GridError: a condition that is not of this form, or that no trial meets.
    """
    names = [field.name for field in fields(Settings)]
    values: dict[str, list[str]] = defaultdict(list)
    mistakes: list[str] = []
    for condition in conditions:
        key, equals, alternatives = condition.partition("=")
        shown = clip(condition)
        if not equals:
            mistakes.append(f"--only {shown}: write key=value, as in placement=before")
            continue
        if key not in names:
            hint = did_you_mean(key, names)
            mistakes.append(f"--only {shown}: {show(key)} is not a setting{hint}")
            continue
        found = dict.fromkeys(getattr(trial, key) for trial in trials)
        for value in alternatives.split(","):  # no value of a setting has a comma
            if any(_equals(known, value.strip()) for known in found):
                values[key].append(value.strip())
            else:
                there = ", ".join(map(str, itertools.islice(found, NAMED_VALUES)))
                more = ", ..." if len(found) > NAMED_VALUES else ""
                mistakes.append(
                    f"--only {shown}: no trial has {show(value.strip())}; {key} is {there}{more}"
                )
    if mistakes:
        raise GridError(mistakes)
    selected = [
        trial
        for trial in trials
        if all(
            any(_equals(getattr(trial, key), text) for text in wanted)
            for key, wanted in values.items()
        )
    ]
    if not selected:
        raise GridError(
            [f"--only {clip(' --only '.join(conditions))}: no trial has all of this at once"]
        )
    return selected


def _equals(value: object, text: str) -> bool:
    """Does `text`, from the command line, mean this value? 0.10 is 0.1, and true is True."""
    if str(value).lower() == text.lower():
        return True
    try:
        return not isinstance(value, str | bool) and value == float(text)
    except ValueError:
        return False
