"""Write README.md beside this file: every table and column, from their declarations.

`python -m harness.results.describe` regenerates it; a test compares it with the declarations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from harness.study.records import (
    SCHEMA_VERSION,
    ChoiceRow,
    EpochRow,
    FailureRow,
    GradientRow,
    Outcome,
    PlannedTrial,
    Provenance,
    Settings,
    TrialRow,
)
from harness.study.wording import explain_lost_docstrings

README = Path(__file__).with_name("README.md")

_FILES = {
    "trials/*.parquet": TrialRow,
    "epochs/*.parquet": EpochRow,
    "gradients/*.parquet": GradientRow,
    "failures/*.parquet": FailureRow,
    "choices.parquet": ChoiceRow,
    "plan.parquet": PlannedTrial,
}

_PARTS = {Settings: "settings", Outcome: "outcome", Provenance: "provenance"}
"""Groups of columns that several tables share, or that are large; each has its own list."""

_HEAD = """\
# A results folder

Written by `python -m harness.results.describe` from the declarations in `harness/study/records.py`; do
not edit it by hand.

Every table is a folder of Parquet files, or one file. Fractions are fractions (0.97, not 97), times
are seconds, sizes are bytes, a number that does not exist is NaN, and no value is null. Unit and
meaning of each column also stand in the metadata of its Parquet field. This is schema version {version};
the number is in the metadata of each file.

A trial is finished when its row stands in `trials/`. Read `epochs/` and `gradients/` of finished
trials only: rows of other trials there are what a broken attempt left. `plan.parquet` has a row for
every trial that was planned, so that it tells what is missing.

## Read it

Names that begin with a dot are files being written; all four readers below pass them over. None of
them checks what `harness.upkeep check` checks: run that first.

pandas:

```python
import pandas as pd

trials = pd.read_parquet("results/quickstart/trials")
gradients = pd.read_parquet("results/quickstart/gradients").merge(trials[["trial_id", "arm"]])
```

polars:

```python
import polars as pl

trials = pl.read_parquet("results/quickstart/trials/*.parquet")
```

DuckDB:

```sql
SELECT dataset, architecture, depth, arm, count(*) AS seeds, avg(test_accuracy) AS accuracy
FROM 'results/quickstart/trials/*.parquet'
WHERE status = 'done'
GROUP BY ALL ORDER BY ALL;
```

R:

```r
library(arrow)
trials <- as.data.frame(open_dataset("results/quickstart/trials"))
```

## Which rows belong together

- **Group by `arm`, not by `placement`.** An arm is the placement with all that changes what is compared
  within a cell: whose flow it borrows, its recipe, its stage. `before`, `before, tuned` and
  `before with the flow of after` have the same placement and answer different questions.
- A *cell* is what replicates share: equal in every setting but `seed`.
- Rows of two arms make a *pair* where `dataset`, `architecture`, `depth`, `seed` and the rest of the
  settings agree: such trials saw equal batches and, where shapes agree, began at equal weights. Take
  differences within pairs, then average over seeds.
- Trials of the stage `tuning` only choose a recipe; leave them out of what you compare.
- A trial that diverged has no test accuracy: count it as an outcome, do not drop it.
- Trials are compared within one `code_digest`, `precision` and `device_kind`.
"""


def describe_tables() -> str:
    """The whole text of README.md."""
    return "\n".join([_HEAD.format(version=SCHEMA_VERSION), *_lines()]).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield "## Tables\n"
    for path, row_type in _FILES.items():
        yield f"### `{path}`\n"
        yield f"{(row_type.__doc__ or '').strip()}\n".replace("\n    ", "\n")
        shared = [part for part in _PARTS if issubclass(row_type, part)]
        inherited = {field.name for part in shared for field in fields(part)}
        if shared:
            yield (
                "The "
                + ", the ".join(f"[{_PARTS[part]}](#{_PARTS[part]})" for part in shared)
                + " and:\n"
            )
        yield from _tabulate([field for field in fields(row_type) if field.name not in inherited])
    for part, name in _PARTS.items():
        yield f"### {name.capitalize()}\n"
        yield f"{part.__doc__}\n"
        yield from _tabulate(fields(part))


def _tabulate(columns: Iterable[Field[Any]]) -> Iterator[str]:
    yield "| column | type | unit | meaning |"
    yield "|---|---|---|---|"
    for column in columns:
        unit, meaning = (_escape(column.metadata[key]) for key in ("unit", "meaning"))
        yield f"| `{column.name}` | {column.type} | {unit} | {meaning} |"
    yield ""


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    if lack := explain_lost_docstrings("the page would lose half of its text"):
        sys.exit(lack)
    README.write_text(describe_tables(), encoding="utf-8")
