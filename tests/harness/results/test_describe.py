"""The page about a results folder says what is in one."""

from __future__ import annotations

import re

import pandas as pd

from harness.results import TABLES, Store
from harness.results.describe import README, describe_tables
from harness.study.records import AnalysisPlan
from tests.builders import make_failure, make_rows, make_trial


def test_the_page_is_that_of_the_declarations():
    is_current = README.read_text(encoding="utf-8") == describe_tables()
    assert is_current, (
        "a column has changed; write the page anew: python -m harness.results.describe"
    )


def test_every_column_of_a_folder_stands_on_the_page(tmp_path):
    store, trial = Store(tmp_path), make_trial()
    store.write_trial(make_rows(trial))
    store.write_failure(make_failure(trial))
    store.write_plan(AnalysisPlan(grid="g"), [trial], "")
    page = describe_tables()
    for folder in (*TABLES, "failures"):
        assert f"`{folder}/*.parquet`" in page
        for column in pd.read_parquet(tmp_path / folder):
            assert f"| `{column}` |" in page


def test_what_the_page_says_to_type_in_pandas_works(tmp_path, monkeypatch):
    store = Store(tmp_path / "results/quickstart")
    for placement in ("before", "after"):
        store.write_trial(make_rows(make_trial(placement=placement)))
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"pandas as pd\n.*?(?=```)", describe_tables(), flags=re.DOTALL)
    names = {}
    exec(f"import {code}", names)
    assert set(names["trials"]["arm"]) == {"before", "after"}
    assert names["gradients"].groupby("arm").size().to_dict() == {"before": 9, "after": 9}
