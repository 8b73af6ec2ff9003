"""Finished trials on disk: which file means what, and when a trial counts as done.

A results folder, local or `s3://bucket/prefix`::

    trials/<stem>.parquet       one row per trial; its presence is what makes a trial finished
    epochs/<stem>.parquet       written before it
    gradients/<stem>.parquet    written before it
    failures/<trial_id>-<run>-<attempt>.parquet
    choices.parquet             the recipes of the tuning stage, their scores and the best of each arm
    plan.parquet                the trials of the whole grid; its metadata: analysis_plan, grid, ...
    plans/<digest>.parquet      every plan the folder has had, this one among them
    grid.yaml                   the grid as it was written
    active/<run>.json           touched by each run that is going on (harness.lease)
    damaged/<time>/...          what a repair has set aside

A *stem* is a trial's id, or `part-<digest>` for the many trials that `harness.upkeep` put into one
file. Whoever reads follows three rules:

1. Only names that are a stem plus `.parquet` count. Everything else is hidden, foreign or half.
2. A stem counts when its file stands in `trials/`; epochs and gradients are read from the files of
   the same stem. Without it they are orphans of an attempt that died.
3. A trial may stand in several files, with equal rows, after a compaction was killed between
   making a part and removing what it is made of. It is read from one stem only, a part first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.errors import DamagedFileError
from harness.places import Place, open_place
from harness.records import (
    AnalysisPlan,
    ChoiceRow,
    EpochRow,
    FailureRow,
    GradientRow,
    PlannedTrial,
    Settings,
    TrialRow,
    TrialRows,
)
from harness.tables import decode, encode, find_differing_columns, to_rows, to_table
from harness.trials import TRAINING_VERSION, Trial

TABLES: Mapping[str, type[Any]] = {
    "epochs": EpochRow,
    "gradients": GradientRow,
    "trials": TrialRow,
}
"""Table -> its record, in the order of a commit: the row that makes a trial finished comes last."""

ORPHAN_AGE = 120.0
"""Seconds; younger leavings may belong to a worker that is about to finish its trial."""

_NAMES = {
    **dict.fromkeys(TABLES, re.compile(r"(part-)?[0-9a-f]{16}\.parquet")),
    "failures": re.compile(r"[0-9a-f]{16}-.+\.parquet"),
    "plans": re.compile(r"[0-9a-f]{16}\.parquet"),
}
"""Folder -> the names that count in it."""

_PLAN_FACTS = {"analysis_plan", "grid", "written", "finished_before", "training_version"}
_SETTINGS = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True, slots=True)
class Plan:
    """A grid that a results folder was used for."""

    analysis: AnalysisPlan
    trials: tuple[Trial, ...]
    source: str
    """The grid as it was written."""
    written: datetime
    finished_before: int
    """Trials that were finished when the plan came: above 0, it was made in sight of results."""


def name_stem(trial_ids: Collection[str]) -> str:
    """The stem of files that hold these trials: an id, or a digest of several."""
    if len(trial_ids) == 1:
        return next(iter(trial_ids))
    return f"part-{_digest(' '.join(sorted(trial_ids)))}"


class Store:
    """The rows of one grid. Any number of processes may write at once; equal trials stay single.

    Raises:
        StoreError: the location cannot be used, or holds something that is not ours. Its text
            names the file and says what to do.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        location = os.fspath(location)
        # Workers run in folders of their own.
        self.location = location if "://" in location else str(Path(location).absolute())
        self.place: Place = open_place(self.location)
        self._part_ids: dict[str, list[str]] = {}  # a part is named by its content: no other comes

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.location,)

    def finished_ids(self) -> frozenset[str]:
        """The trials that need no training any more."""
        return frozenset(self.locate_trials())

    def locate_trials(self) -> dict[str, str]:
        """Finished trial -> the stem it is read from: a part, if it stands in one."""
        ids = self.read_ids()
        return {trial_id: stem for stem in sorted(ids, key=_is_part) for trial_id in ids[stem]}

    def read_ids(self) -> dict[str, list[str]]:
        """Stem -> the finished trials in its files. Only parts are opened, and each once."""
        stems = self._stems("trials")
        for stem in filter(_is_part, stems):
            if stem not in self._part_ids:
                trials = self._read(TrialRow, f"trials/{stem}.parquet")
                self._part_ids[stem] = trials["trial_id"].to_pylist()
        return {stem: self._part_ids.get(stem, [stem]) for stem in stems}

    def measure_stems(self) -> dict[str, int]:
        """Stem -> bytes of its files, over all tables."""
        sizes = dict.fromkeys(self._stems("trials"), 0)
        for table in TABLES:
            for file in self.place.list_files(table):
                if _stem(file.name) in sizes:
                    sizes[_stem(file.name)] += file.size
        return sizes

    def write_trial(self, rows: TrialRows) -> None:
        """Commit one trial; one that is finished already stays as it is."""
        trial_id = rows.trial.trial_id
        tables = {
            "epochs": to_table(rows.epochs, EpochRow),
            "gradients": to_table(rows.gradients, GradientRow),
            "trials": to_table([rows.trial], TrialRow),
        }
        for table in tables.values():
            _check_trial_ids(table, {trial_id})
        _check_identity(tables["trials"])
        self.write_tables(trial_id, tables)

    def write_tables(self, stem: str, tables: Mapping[str, pa.Table]) -> None:
        """Commit all tables of a stem, the one that makes its trials finished last."""
        content = {name: encode(tables[name]) for name in TABLES}
        if self.place.has(f"trials/{stem}.parquet"):
            return
        for name in ("epochs", "gradients"):
            self._create_or_mend(name, stem, content[name])
        self.place.create(f"trials/{stem}.parquet", content["trials"])

    def write_failure(self, row: FailureRow) -> None:
        """Keep one broken attempt, whatever characters its text is made of."""
        row = replace(row, message=_encodable(row.message), traceback=_encodable(row.traceback))
        content = encode(to_table([row], FailureRow))
        self.place.create(f"failures/{row.trial_id}-{row.run}-{row.attempt}.parquet", content)

    def write_plan(self, plan: AnalysisPlan, trials: Sequence[Trial], source: str) -> None:
        """Make this the folder's plan.

        Rows of other plans stay, and so do the plans themselves, below `plans/`: whoever reads
        the results can tell that, and after how many finished trials, a margin was changed.
        """
        rows = [PlannedTrial(**asdict(trial), trial_id=trial.id) for trial in trials]
        canonical = json.dumps([asdict(plan), sorted(row.trial_id for row in rows)], sort_keys=True)
        path = f"plans/{_digest(canonical)}.parquet"
        content = encode(
            to_table(rows, PlannedTrial),
            {
                "analysis_plan": json.dumps(asdict(plan)),
                "grid": source,
                "written": datetime.now(UTC).isoformat(),
                "finished_before": str(len(self.finished_ids())),
                "training_version": str(TRAINING_VERSION),
            },
        )
        if not self.place.create(path, content):
            content = self._content(path)
        if content != self.place.read("plan.parquet"):
            self.place.replace("plan.parquet", content)
        if source.encode() != self.place.read("grid.yaml"):
            self.place.replace("grid.yaml", source.encode())

    def write_choices(self, choices: Sequence[ChoiceRow]) -> None:
        """Keep what the tuning stage chose, and the scores it chose by; nothing where it did not."""
        if choices:
            content = encode(to_table(choices, ChoiceRow))
            if content != self.place.read("choices.parquet"):
                self.place.replace("choices.parquet", content)

    def read_choices(self) -> list[ChoiceRow]:
        """What the tuning stage chose; empty where it has not, or there is none."""
        if not self.place.has("choices.parquet"):
            return []
        return to_rows(self._read(ChoiceRow, "choices.parquet"), ChoiceRow)

    def read_plan(self) -> Plan | None:
        """The plan the folder was last used for; None before the first."""
        return self._read_plan("plan.parquet") if self.place.has("plan.parquet") else None

    def read_plans(self) -> list[Plan]:
        """Every plan the folder has had, the earliest first."""
        return sorted(map(self._read_plan, self.list_paths("plans")), key=lambda plan: plan.written)

    def read_trial_rows(self) -> list[TrialRow]:
        """The rows of all finished trials, by id."""
        rows: dict[str, TrialRow] = {}
        for stem in sorted(self._stems("trials"), key=_is_part):  # a part decides: rule 3
            table = self._read(TrialRow, f"trials/{stem}.parquet")
            rows |= {row.trial_id: row for row in to_rows(table, TrialRow)}
        return [rows[trial_id] for trial_id in sorted(rows)]

    def read_whole(self) -> tuple[list[TrialRow], list[FailureRow], list[DamagedFileError]]:
        """Trials, failures, and the files of either that are damaged: for whoever only looks on."""
        rows: dict[str, TrialRow] = {}
        failures: list[FailureRow] = []
        damage: list[DamagedFileError] = []
        for path in sorted(self.list_paths("trials"), key=lambda path: _is_part(_stem(path))):
            with _collecting(damage):
                table = self._read(TrialRow, path)
                rows |= {row.trial_id: row for row in to_rows(table, TrialRow)}
        for path in self.list_paths("failures"):
            with _collecting(damage):
                failures += to_rows(self._read(FailureRow, path), FailureRow)
        return list(rows.values()), sorted(failures, key=lambda row: row.failed_at), damage

    def read_tables(self, stem: str) -> dict[str, pa.Table]:
        """All tables of one stem, checked against each other."""
        trials = self._read(TrialRow, f"trials/{stem}.parquet")
        ids = set(trials["trial_id"].to_pylist())
        tables = {"trials": trials}
        for name in ("epochs", "gradients"):
            path = f"{name}/{stem}.parquet"
            tables[name] = self._read(TABLES[name], path)
            with self._naming(path):
                _check_trial_ids(tables[name], ids)
        return {name: tables[name] for name in TABLES}

    def read_failures(self) -> list[FailureRow]:
        """Every attempt that broke, the earliest first."""
        rows = [
            row
            for path in self.list_paths("failures")
            for row in to_rows(self._read(FailureRow, path), FailureRow)
        ]
        return sorted(rows, key=lambda row: row.failed_at)

    def drop(self, stem: str) -> None:
        """Remove the files of a stem whose trials stand in another."""
        for path in _companions(f"trials/{stem}.parquet"):
            self.place.remove(path)

    def list_paths(self, folder: str) -> list[str]:
        """The files of `folder` that count: neither hidden nor foreign nor half."""
        names = [file.name for file in self.place.list_files(folder)]
        return [f"{folder}/{name}" for name in names if _NAMES[folder].fullmatch(name)]

    def find_damage(self) -> list[DamagedFileError]:
        """Every file that is not what its name promises. Reads all of them."""
        return list(self._damage())

    def set_aside(self, damage: Iterable[DamagedFileError]) -> list[str]:
        """Move damaged files, and what belongs to the same trial, below `damaged/`; their paths.

        The row in `trials/` moves first: at any moment a trial is finished and whole, or missing.
        """
        folder = f"damaged/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        moved: list[str] = []
        for error in damage:
            for path in _companions(error.path):
                if self.place.has(path):
                    self.place.move(path, f"{folder}/{path}")
                    moved.append(path)
        return moved

    def sweep(self) -> list[str]:
        """Remove what attempts that died have left, once it is older than ORPHAN_AGE; its paths."""
        folders = (*TABLES, "failures", "plans", "active", "")
        # `trials` after its children: a trial finished meanwhile is not taken for an orphan.
        listing = {folder: self.place.list_files(folder) for folder in folders}
        finished = {file.name for file in listing["trials"]}
        # The newest file tells the time of the file server; this machine's clock may differ.
        now = max((file.modified for files in listing.values() for file in files), default=0.0)
        swept = [
            f"{folder}/{file.name}".lstrip("/")
            for folder, files in listing.items()
            for file in files
            if now - file.modified > ORPHAN_AGE
            and (
                file.name.startswith(".")
                or (folder in {"epochs", "gradients"} and file.name not in finished)
            )
        ]
        for path in swept:
            self.place.remove(path)
        return swept

    def _stems(self, table: str) -> list[str]:
        return [_stem(path) for path in self.list_paths(table)]

    def _content(self, path: str) -> bytes:
        with self._naming(path):
            content = self.place.read(path)
            if content is None:
                raise ValueError("is missing")
            return content

    def _read(self, row_type: type[Any], path: str) -> pa.Table:
        """One file of rows, checked; trials are those that the name of their file promises."""
        content = self._content(path)
        with self._naming(path):
            table = decode(content, row_type)
            if row_type is TrialRow:
                if name_stem(table["trial_id"].to_pylist()) != _stem(path):
                    raise ValueError("holds rows of another trial than its name promises")
                _check_identity(table)
            return table

    def _read_plan(self, path: str) -> Plan:
        table = self._read(PlannedTrial, path)
        with self._naming(path):
            facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
            if absent := _PLAN_FACTS - facts.keys():
                raise ValueError(f"lacks metadata: {', '.join(sorted(absent))}")
            version = int(facts["training_version"])
            trials = tuple(Trial(**row) for row in table.select(_SETTINGS).to_pylist())
            if [trial.id_under(version) for trial in trials] != table["trial_id"].to_pylist():
                raise ValueError("trial_id does not follow from the settings beside it")
            return Plan(
                analysis=AnalysisPlan(**json.loads(facts["analysis_plan"])),
                trials=trials,
                source=facts["grid"],
                written=datetime.fromisoformat(facts["written"]),
                finished_before=int(facts["finished_before"]),
            )

    def _create_or_mend(self, table: str, stem: str, content: bytes) -> None:
        """Write epochs or gradients of a trial that is not finished.

        What is there already is an orphan, or the work of a second driver on the same trial. It
        may be about to become part of a finished trial, so that it stays if it is equal.
        """
        path = f"{table}/{stem}.parquet"
        if not self.place.create(path, content) and not self._holds(path, content, TABLES[table]):
            self.place.replace(path, content)

    def _holds(self, path: str, content: bytes, row_type: type[Any]) -> bool:
        try:
            found = decode(self.place.read(path) or b"", row_type)
        except ValueError:
            return False
        return not find_differing_columns(found, decode(content, row_type))

    def _damage(self) -> Iterator[DamagedFileError]:
        for folder, ours in _NAMES.items():
            for file in self.place.list_files(folder):
                if not (file.name.startswith(".") or ours.fullmatch(file.name)):
                    path = f"{folder}/{file.name}"
                    yield DamagedFileError(self.location, path, "is no file of this harness")
        plan = ["plan.parquet"] if self.place.has("plan.parquet") else []
        yield from _failures_of(self.read_tables, self._stems("trials"))
        yield from _failures_of(partial(self._read, FailureRow), self.list_paths("failures"))
        yield from _failures_of(self._read_plan, plan + self.list_paths("plans"))

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Say which file a ValueError is about."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise DamagedFileError(self.location, path, str(error)) from error


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")


def _is_part(stem: str) -> bool:
    return stem.startswith("part-")


def _companions(path: str) -> list[str]:
    """The files that are only worth something together, the one that marks them finished first."""
    folder, _, name = path.partition("/")
    return [f"{table}/{name}" for table in reversed([*TABLES])] if folder in TABLES else [path]


@contextmanager
def _collecting(damage: list[DamagedFileError]) -> Iterator[None]:
    try:
        yield
    except DamagedFileError as error:
        damage.append(error)


def _failures_of(read: Callable[[str], object], names: Iterable[str]) -> Iterator[DamagedFileError]:
    for name in names:
        found: list[DamagedFileError] = []
        with _collecting(found):
            read(name)
        yield from found


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _check_trial_ids(table: pa.Table, ids: Collection[str]) -> None:
    strangers = sorted(set(table["trial_id"].to_pylist()) - set(ids))
    if strangers:
        raise ValueError(f"holds rows of another trial: {strangers[0]}")


def _check_identity(trials: pa.Table) -> None:
    """A trial's name follows from its settings: an altered setting or id shows here."""
    for row in trials.select([*_SETTINGS, "training_version", "trial_id"]).to_pylist():
        trial_id, version = row.pop("trial_id"), row.pop("training_version")
        if Trial(**row).id_under(version) != trial_id:
            raise ValueError(f"trial_id {trial_id} does not follow from the settings beside it")
