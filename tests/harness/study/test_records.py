"""Every column says what it is."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

import pytest

from harness.results.tables import schema_of
from harness.study.records import (
    AnalysisPlan,
    EpochRow,
    FailureRow,
    GradientRow,
    Outcome,
    Provenance,
    Settings,
    TrialRow,
)
from harness.study.trials import Trial

ROWS = [TrialRow, EpochRow, GradientRow, FailureRow]
RECORDS = [*ROWS, Settings, Outcome, Provenance, AnalysisPlan]
UNITS = {"", "1", "s", "B", "nat", "percentage points"}


def names(record) -> list[str]:
    return [field.name for field in fields(record)]


@pytest.mark.parametrize("record", RECORDS)
def test_every_column_has_a_unit_and_a_meaning(record):
    for field in fields(record):
        assert field.metadata["unit"] in UNITS, field.name
        assert re.fullmatch(r"\S.*\.", field.metadata["meaning"]), field.name


@pytest.mark.parametrize("record", RECORDS)
def test_a_number_has_a_unit_and_nothing_else_has(record):
    for field in fields(record):
        assert (field.metadata["unit"] != "") == (
            field.type in {"int", "float", "tuple[int, ...]"}
        ), field.name


@pytest.mark.parametrize("record", RECORDS)
def test_names_are_lower_case_words(record):
    for name in names(record):
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)


def test_a_trials_row_is_its_settings_its_outcome_and_its_provenance_without_overlap():
    parts = [*names(Settings), *names(Outcome), *names(Provenance), "arm", "trial_id"]
    assert len(parts) == len(set(parts))
    assert sorted(parts) == sorted(names(TrialRow))


def test_a_trial_is_exactly_its_settings():
    assert names(Trial) == names(Settings)


@pytest.mark.parametrize("record", ROWS)
def test_rows_join_by_trial(record):
    assert "trial_id" in names(record)


@pytest.mark.parametrize("record", ROWS)
def test_every_column_has_an_arrow_type(record):
    assert schema_of(record).names == names(record)


def test_what_makes_a_trial_has_to_be_said():
    """A forgotten placement or seed must be an error, not a default."""
    required = {field.name for field in fields(Settings) if field.default is MISSING}
    assert {"architecture", "placement", "program", "depth", "seed"} <= required


def test_an_outcome_is_measured_and_never_assumed():
    assert not [field.name for field in fields(Outcome) if field.default is not MISSING]
