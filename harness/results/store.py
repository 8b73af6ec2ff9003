"""Finished trials on disk: which file means what, and when a trial counts as done.

A results folder, local or `s3://bucket/prefix`::

    trials/<stem>.parquet       one row per trial; its presence is what makes a trial finished
    epochs/<stem>.parquet       written before it
    gradients/<stem>.parquet    written before it
    failures/<trial_id>-<run>-<attempt>.parquet
    choices.parquet             the recipes of the tuning stage, their scores and the best of each arm
    plan.parquet                the trials of the whole grid; its metadata: analysis_plan, grid, ...
    plans/<digest>.parquet      every plan the folder has had, the latest the same as plan.parquet
    grid.yaml                   the grid as it was written
    networks/<digest>.py        the file of a user's own network (harness.results.networks)
    looks/<digest>.json         each state of the rows that was judged (harness.results.looks)
    index/<digest>.parquet      the rows of trials/ once more, to open a bucket fast (harness.results.index)
    active/<run>.json           touched by each active run (harness.results.lease)
    partial/<pack>.pt           checkpoint of a long training, until it is finished; not a result
    damaged/<time>/...          files that a repair has set aside

A *stem* is a trial's id, or `part-<digest>` for the many trials that a merge has put into one file.
Readers follow two rules:

1. Only names that are a stem plus `.parquet` count. All others are hidden, foreign or unfinished.
2. A stem counts once its file exists in `trials/`; epochs and gradients are read from the files of
   the same stem. Without that file they are orphans of an attempt that died.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from harness.results.places import TEMPORARY, Place, complete_location, open_place
from harness.results.plans import Plan
from harness.results.tables import (
    check_identity,
    decode,
    digest_text,
    encode,
    find_differing_columns,
    to_rows,
    to_table,
)
from harness.study.errors import DamagedFileError, StoreError
from harness.study.records import (
    AnalysisPlan,
    ChoiceRow,
    EpochRow,
    FailureRow,
    GradientRow,
    PlannedTrial,
    TrialRow,
    TrialRows,
)
from harness.study.terminal import printable
from harness.study.trials import Trial

TABLES: Mapping[str, type[Any]] = {
    "epochs": EpochRow,
    "gradients": GradientRow,
    "trials": TrialRow,
}
"""Table -> its record, in commit order: the row that marks a trial as finished comes last."""

ROOT_FILES = ("plan.parquet", "choices.parquet", "grid.yaml")
"""The files at the top of a results folder."""

LARGEST_PARTIAL = 1 << 32
"""Bytes; four times the size of torchvision's largest VGG with its optimizer."""

NAMES = {
    **dict.fromkeys(TABLES, re.compile(r"(part-)?[0-9a-f]{16}\.parquet")),
    "failures": re.compile(r"[0-9a-f]{16}-.+\.parquet"),
    "plans": re.compile(r"[0-9a-f]{16}\.parquet"),
    "looks": re.compile(r"[0-9a-f]{16}\.json"),
    "index": re.compile(r"[0-9a-f]{16}\.parquet"),
    "networks": re.compile(r"[0-9a-f]{16}\.py"),
}
"""Folder -> the names that count in it."""

_OURS = {*ROOT_FILES, *NAMES, "active", "partial", "damaged", "logs", "report"} | {
    ".gitkeep",
    ".gitignore",
    ".DS_Store",
}
"""Names that are never reported in a results folder; the last three do not make it foreign."""

NAMED_STRANGERS = 3
"""Names that a message lists; the rest are counted."""

_Made = TypeVar("_Made")


def name_stem(trial_ids: Collection[str]) -> str:
    """The stem of files that hold these trials: an id, or a digest of several."""
    if len(trial_ids) == 1:
        return next(iter(trial_ids))
    return f"part-{digest_text(' '.join(sorted(trial_ids)))}"


def to_tables(rows: TrialRows) -> dict[str, pa.Table]:
    """All rows of one trial as the tables that are stored."""
    return {
        "epochs": to_table(rows.epochs, EpochRow),
        "gradients": to_table(rows.gradients, GradientRow),
        "trials": to_table([rows.trial], TrialRow),
    }


class Store:
    """The rows of one grid. Any number of processes may write at once; each trial is kept once.

    Raises:
        StoreError: the location cannot be used, or holds something that is not ours. Its text
            names the file and says what to do.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = complete_location(os.fspath(location))
        self.place: Place = open_place(self.location)
        self._ids: dict[str, list[str]] = {}  # never stale: a part is named by its content
        self._plans: dict[bytes, Plan] = {}  # the same: by the content of their files

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.location,)

    def refuse_emptiness(self) -> None:
        """Stop if there are no results: usually the folder's name is mistyped.

        Raises:
            StoreError: there are no results.
        """
        if not (self.place.has("plan.parquet") or self.place.list_files("trials")):
            raise StoreError(f"{self.location}: no results there: neither plan.parquet nor trials/")

    def list_strangers(self) -> list[str]:
        """The files beside the tables that are not ours; they are left as they are."""
        names = {entry.name for entry in self.place.list_entries("")} - _OURS
        return sorted(name for name in names if not TEMPORARY.fullmatch(name))

    def refuse_foreign_folder(self) -> None:
        """Stop if the folder has no rows yet and holds someone else's files.

        Raises:
            StoreError: what the folder holds.
        """
        if self.place.has("plan.parquet") or any(map(self.list_paths, ("plans", "trials"))):
            return
        strangers = self.list_strangers() + ["grid.yaml"] * self.place.has("grid.yaml")
        if not strangers:
            return
        raise StoreError(
            f"{self.location} is no results folder: it holds "
            f"{name_some(strangers)}; nothing was changed. Name a folder that is "
            "new or empty, such as results/NAME"
        )

    # Trials

    def finished_ids(self) -> frozenset[str]:
        """The trials that need no more training."""
        return frozenset(self.locate_trials())

    def find_finished(self, trial_ids: Collection[str]) -> frozenset[str]:
        """Those of the trials that have a file of their own; does not look inside parts.

        Checks each file, or lists them all where that needs fewer requests.
        """
        if len(trial_ids) <= self.place.asked_singly:
            return frozenset(i for i in trial_ids if self.place.has(f"trials/{i}.parquet"))
        return frozenset(map(stem_of, self.list_paths("trials"))).intersection(trial_ids)

    def locate_trials(self) -> dict[str, str]:
        """Finished trial -> the stem of its file."""
        stems = map(stem_of, self.list_paths("trials"))
        return {trial_id: stem for stem in stems for trial_id in self.ids_of(stem)}

    def ids_of(self, stem: str) -> list[str]:
        """The finished trials in the files of a stem. Opens only parts, and each only once."""
        if not stem.startswith("part-"):
            return [stem]
        if stem not in self._ids:
            table = self.read_table(TrialRow, f"trials/{stem}.parquet")
            self._ids[stem] = table["trial_id"].to_pylist()
        return self._ids[stem]

    def write_trial(self, rows: TrialRows) -> None:
        """Commit one trial; does nothing if it is finished already."""
        trial_id = rows.trial.trial_id
        tables = to_tables(rows)
        for table in tables.values():
            _check_trial_ids(table, {trial_id})
        list(check_identity(tables["trials"]))
        self.write_tables(trial_id, tables)

    def write_tables(self, stem: str, tables: Mapping[str, pa.Table]) -> None:
        """Commit all tables of a stem; the last one written marks its trials as finished."""
        content = {name: encode(tables[name]) for name in TABLES}
        if self.place.has(f"trials/{stem}.parquet"):
            return
        for name in ("epochs", "gradients"):
            self._create_or_mend(name, stem, content[name])
        self.place.create(f"trials/{stem}.parquet", content["trials"], looked=True)

    def read_trial_rows(self) -> list[TrialRow]:
        """The rows of all finished trials, by id."""
        found = self.map(partial(self.read_rows, TrialRow), self.list_paths("trials"))
        return sorted((row for rows in found for row in rows), key=lambda row: row.trial_id)

    def read_tables(self, stem: str) -> dict[str, pa.Table]:
        """All tables of one stem, checked against each other."""
        trials = self.read_table(TrialRow, f"trials/{stem}.parquet")
        ids = trials["trial_id"].to_pylist()
        return {
            name: trials if name == "trials" else self.read_companion(name, stem, ids)
            for name in TABLES
        }

    def read_companion(self, table: str, stem: str, ids: Collection[str]) -> pa.Table:
        """The epochs or gradients of a stem whose trials are `ids`."""
        path = f"{table}/{stem}.parquet"
        found = self.read_table(TABLES[table], path)
        with self._naming(path):
            _check_trial_ids(found, ids)
        return found

    def sift(
        self,
        table: str,
        ids: Mapping[str, Collection[str]],
        make: Callable[[pa.Table], _Made],
    ) -> Iterator[_Made]:
        """Apply `make` to each file of epochs or gradients after checking it; yields the results.

        `ids` gives the stems wanted and the trials in each. Only a few files are in memory at a
        time.
        """
        yield from self.map(lambda stem: make(self.read_companion(table, stem, ids[stem])), ids)

    # Failures

    def write_failure(self, row: FailureRow) -> None:
        """Record one failed attempt, with its text as a terminal may show it."""
        row = replace(row, message=printable(row.message), traceback=printable(row.traceback))
        self.place.create(path_of(row), encode(to_table([row], FailureRow)))

    def read_failures(
        self, run: str = "", trial_ids: Collection[str] | None = None
    ) -> list[FailureRow]:
        """Every failed attempt, the earliest first; only of one run or of some trials, if named."""
        paths = [
            path
            for path in self.list_paths("failures")
            if f"-{run}" in path and (trial_ids is None or stem_of(path)[:16] in trial_ids)
        ]
        found = self.map(partial(self.read_rows, FailureRow), paths)
        rows = [row for rows in found for row in rows if run in {"", row.run}]
        return sorted(rows, key=lambda row: row.failed_at)

    # What was planned and chosen

    def write_plan(self, analysis: AnalysisPlan, trials: Sequence[Trial], source: str) -> None:
        """Make this the folder's plan; writes nothing if it already is.

        Rows of other plans stay, and so do the plans themselves, below `plans/`, one file for each
        time the plan changed: readers of the results can see when a margin was changed, or changed
        back, and how many trials were finished by then.
        """
        plans = self.read_plans()
        self._refuse_foreign_grid({*(plan.source for plan in plans), source})
        plan = plans[-1] if plans else None
        if plan is None or not plan.says(analysis, trials, source):
            now = datetime.now(UTC)
            written = max(now, plan.written + timedelta.resolution) if plan else now
            plan = Plan(analysis, tuple(trials), source, written, len(self.finished_ids()))
            self.place.create(f"plans/{plan.name}.parquet", plan.encode())
        self._renew(PlannedTrial, "plan.parquet", plan.encode())
        if source.encode() != self.place.read("grid.yaml"):
            self.place.replace("grid.yaml", source.encode())

    def read_plan(self) -> Plan | None:
        """The plan the folder was last used for; None before the first."""
        is_there = self.place.has("plan.parquet")
        return self.read_plan_at("plan.parquet") if is_there else None

    def read_plans(self) -> list[Plan]:
        """Every plan the folder has had, the earliest first."""
        plans = map(self.read_plan_at, self.list_paths("plans"))
        return sorted(plans, key=lambda plan: plan.rank)

    def read_plan_at(self, path: str) -> Plan:
        """The plan in one file."""
        with self._naming(path):
            content = self._read(path)
            if content not in self._plans:  # the latest is there twice
                self._plans[content] = Plan.of(decode(content, PlannedTrial))
            return self._plans[content]

    def write_choices(self, choices: Sequence[ChoiceRow]) -> None:
        """Write the choices of the tuning stage and their scores; does nothing without choices."""
        if choices:
            self._renew(ChoiceRow, "choices.parquet", encode(to_table(choices, ChoiceRow)))

    def read_choices(self) -> list[ChoiceRow]:
        """The choices of the tuning stage; empty if there is no stage or it has not chosen yet."""
        if not self.place.has("choices.parquet"):
            return []
        return self.read_rows(ChoiceRow, "choices.parquet")

    # Checkpoints of interrupted trainings

    def write_partial(self, name: str, content: bytes | memoryview) -> None:
        """Write the checkpoint of a pack, in place of the previous one."""
        self.place.replace(f"partial/{name}.pt", content)

    def list_partials(self) -> frozenset[str]:
        """The names of the packs that have a checkpoint."""
        return frozenset(file.name.removesuffix(".pt") for file in self.place.list_files("partial"))

    def read_partial(self, name: str) -> bytes | None:
        """The checkpoint of a pack; None if there is none.

        Raises:
            ValueError: it is larger than any network's checkpoint.
        """
        return self.place.read(f"partial/{name}.pt", largest=LARGEST_PARTIAL)

    def drop_partial(self, name: str) -> None:
        """Remove the checkpoint of a pack."""
        self.place.remove(f"partial/{name}.pt")

    # Files

    def list_paths(self, folder: str) -> list[str]:
        """The files of `folder` that count: not hidden, foreign or unfinished."""
        names = [file.name for file in self.place.list_files(folder)]
        return [f"{folder}/{name}" for name in names if NAMES[folder].fullmatch(name)]

    def read_table(self, row_type: type[Any], path: str) -> pa.Table:
        """Read and check one file of rows; its trials must be those that its name promises.

        Raises:
            DamagedFileError: it is missing, or its content does not match its name.
        """
        with self._naming(path):
            table = decode(self._read(path), row_type)
            if row_type is TrialRow:
                if name_stem(table["trial_id"].to_pylist()) != stem_of(path):
                    raise ValueError("holds rows of another trial than its name promises")
                list(check_identity(table))
            return table

    def read_rows(self, row_type: type[_Made], path: str) -> list[_Made]:
        """The same, as rows."""
        return to_rows(self.read_table(row_type, path), row_type)

    def _read(self, path: str) -> bytes:
        content = self.place.read(path)
        if content is None:
            raise ValueError("is missing")
        return content

    def map(self, read: Callable[[str], _Made], names: Iterable[str]) -> Iterator[_Made]:
        """Apply `read` to each name, several at once; yields the results in order."""
        with ThreadPoolExecutor(self.place.readers) as pool:
            yield from pool.map(read, names)

    def _renew(self, row_type: type[Any], path: str, content: bytes) -> None:
        """Replace a table, unless its content is already the same.

        Raises:
            DamagedFileError: the existing file is not ours to replace.
        """
        with self._naming(path):
            found = self.place.read(path)
            if content != found:
                if found is not None:
                    decode(found, row_type)
                self.place.replace(path, content)

    def _refuse_foreign_grid(self, sources: Collection[str]) -> None:
        """Stop if `grid.yaml` is none of `sources`: it is foreign or has been edited.

        Raises:
            StoreError: it is foreign or has been edited.
        """
        with self._naming("grid.yaml"):
            found = self.place.read("grid.yaml")
        if found is not None and found not in {source.encode() for source in sources}:
            raise StoreError(
                f"{self.location}/grid.yaml: not as a run has written it, so that it is not replaced; "
                "move it away, or name another folder"
            )

    def _create_or_mend(self, table: str, stem: str, content: bytes) -> None:
        """Write epochs or gradients of a trial that is not finished.

        An existing file is an orphan, or was written by a second driver on the same trial. It may
        be about to become part of a finished trial, so it is kept if it is equal.
        """
        path = f"{table}/{stem}.parquet"
        created = self.place.create(path, content, looked=True)
        if not created and not self._holds(path, content, TABLES[table]):
            self.place.replace(path, content)

    def _holds(self, path: str, content: bytes, row_type: type[Any]) -> bool:
        try:
            found = decode(self.place.read(path) or b"", row_type)
        except ValueError:
            return False
        return not find_differing_columns(found, decode(content, row_type))

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Say which file a ValueError is about."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise DamagedFileError(self.location, path, str(error)) from error


def name_some(names: Sequence[str]) -> str:
    """'a, b, c and 4 more'."""
    more = len(names) - NAMED_STRANGERS
    return ", ".join(names[:NAMED_STRANGERS]) + (f" and {more} more" if more > 0 else "")


def stem_of(path: str) -> str:
    """The stem in the name of a file."""
    return path.rpartition("/")[2].removesuffix(".parquet")


def path_of(failure: FailureRow) -> str:
    """The file of a failed attempt."""
    return f"failures/{failure.trial_id}-{failure.run}-{failure.attempt}.parquet"


def _check_trial_ids(table: pa.Table, ids: Collection[str]) -> None:
    strangers = sorted(set(table["trial_id"].unique().to_pylist()) - set(ids))
    if strangers:
        raise ValueError(f"holds rows of another trial: {strangers[0]}")
