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
    active/<run>.json           touched by each run that is going on (harness.results.lease)
    partial/<pack>.pt           what a long training has come to, until it is finished; no result
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from harness.results.places import Place, complete_location, open_place
from harness.results.tables import decode, encode, find_differing_columns, to_rows, to_table
from harness.study.errors import DamagedFileError
from harness.study.records import (
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
from harness.study.trials import TRAINING_VERSION, Trial

TABLES: Mapping[str, type[Any]] = {
    "epochs": EpochRow,
    "gradients": GradientRow,
    "trials": TrialRow,
}
"""Table -> its record, in the order of a commit: the row that makes a trial finished comes last."""

ORPHAN_AGE = 120.0
"""Seconds; younger leavings may belong to a worker that is about to finish its trial."""

PARTIAL_AGE = 30 * 86_400.0
"""Seconds after which nobody comes back to a training that was broken off."""

LARGEST_PARTIAL = 1 << 32
"""Bytes; four times what torchvision's largest VGG and its optimizer have."""

_NAMES = {
    **dict.fromkeys(TABLES, re.compile(r"(part-)?[0-9a-f]{16}\.parquet")),
    "failures": re.compile(r"[0-9a-f]{16}-.+\.parquet"),
    "plans": re.compile(r"[0-9a-f]{16}\.parquet"),
}
"""Folder -> the names that count in it."""

_FILES = {"plan.parquet", "choices.parquet", "grid.yaml"}
"""The files that lie in no folder."""

_Read = TypeVar("_Read")
_Row = TypeVar("_Row")

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
    """Later than that of the plan before it, whatever the clocks of the machines say."""
    finished_before: int
    """Trials that were finished when the plan came: above 0, it was made in sight of results."""
    training_version: int

    def says(self, analysis: AnalysisPlan, trials: Sequence[Trial], source: str) -> bool:
        """Would the folder say nothing new if it had been planned for this now?"""
        said = self.analysis, self.trials, self.source, self.training_version
        return said == (analysis, tuple(trials), source, TRAINING_VERSION)


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
        self.location = complete_location(os.fspath(location))
        self.place: Place = open_place(self.location)
        self._part_ids: dict[str, list[str]] = {}  # a part is named by its content: no other comes

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.location,)

    def finished_ids(self) -> frozenset[str]:
        """The trials that need no training any more."""
        return frozenset(self.locate_trials())

    def is_finished(self, trial_id: str) -> bool:
        """Does the trial stand in a file of its own? Asks for one file, and looks into no part."""
        return self.place.has(f"trials/{trial_id}.parquet")

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
        """Make this the folder's plan; nothing is written where it is already.

        Rows of other plans stay, and so do the plans themselves, below `plans/`, one file for each
        time the folder was planned anew: whoever reads the results can tell that, and after how
        many finished trials, a margin was changed, or changed back.
        """
        path, newest = max(self._read_plans().items(), key=_written, default=("", None))
        if newest is None or not newest.says(plan, trials, source):
            path = self._add_plan(plan, trials, source, after=newest)
        self._renew("plan.parquet", self._content(path))
        self._renew("grid.yaml", source.encode())

    def write_choices(self, choices: Sequence[ChoiceRow]) -> None:
        """Keep what the tuning stage chose, and the scores it chose by; nothing where it did not."""
        if choices:
            self._renew("choices.parquet", encode(to_table(choices, ChoiceRow)))

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
        return [plan for _, plan in sorted(self._read_plans().items(), key=_written)]

    def read_trial_rows(self) -> list[TrialRow]:
        """The rows of all finished trials, by id."""
        rows: dict[str, TrialRow] = {}
        for found in self._map(partial(self._read_rows, TrialRow), self._trial_paths()):
            rows |= {row.trial_id: row for row in found}
        return [rows[trial_id] for trial_id in sorted(rows)]

    def read_whole(self) -> tuple[list[TrialRow], list[FailureRow], list[DamagedFileError]]:
        """Trials, failures, and the files of either that are damaged: for whoever only looks on."""
        rows: dict[str, TrialRow] = {}
        failures: list[FailureRow] = []
        damage: list[DamagedFileError] = []
        read_trials = _or_error(partial(self._read_rows, TrialRow))
        for found in self._map(read_trials, self._trial_paths()):
            if isinstance(found, DamagedFileError):
                damage.append(found)
            else:
                rows |= {row.trial_id: row for row in found}
        read_failures = _or_error(partial(self._read_rows, FailureRow))
        for found in self._map(read_failures, self.list_paths("failures")):
            if isinstance(found, DamagedFileError):
                damage.append(found)
            else:
                failures += found
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

    def read_failures(
        self, run: str = "", trial_ids: Collection[str] | None = None
    ) -> list[FailureRow]:
        """Every attempt that broke, the earliest first; of one run, of some trials, if named."""
        paths = [
            path
            for path in self.list_paths("failures")
            if f"-{run}" in path and (trial_ids is None or _stem(path)[:16] in trial_ids)
        ]
        found = self._map(partial(self._read_rows, FailureRow), paths)
        rows = [row for rows in found for row in rows if run in {"", row.run}]
        return sorted(rows, key=lambda row: row.failed_at)

    def write_partial(self, name: str, content: bytes | memoryview) -> None:
        """Keep what the training of a pack has come to, in place of what it had come to before."""
        self.place.replace(f"partial/{name}.pt", content)

    def read_partial(self, name: str) -> bytes | None:
        """What was kept; None where nothing was.

        Raises:
            ValueError: it is larger than any network's.
        """
        return self.place.read(f"partial/{name}.pt", largest=LARGEST_PARTIAL)

    def drop_partial(self, name: str) -> None:
        """Forget it."""
        self.place.remove(f"partial/{name}.pt")

    def drop(self, stem: str) -> None:
        """Remove the files of a stem whose trials stand in another."""
        for path in _companions(f"trials/{stem}.parquet"):
            self.place.remove(path)

    def list_paths(self, folder: str) -> list[str]:
        """The files of `folder` that count: neither hidden nor foreign nor half."""
        names = [file.name for file in self.place.list_files(folder)]
        return [f"{folder}/{name}" for name in names if _NAMES[folder].fullmatch(name)]

    def find_damage(self, *, reading: bool = True) -> list[DamagedFileError]:
        """Everything that is not what its name promises, each once.

        Reads every file; or, of finished trials, only the lists of files, which takes a second
        where reading takes a minute.
        """
        damage: dict[str, DamagedFileError] = {}
        for error in self._damage(reading=reading):
            damage.setdefault(error.path, error)
        return list(damage.values())

    def set_aside(self, damage: Iterable[DamagedFileError]) -> list[str]:
        """Move damaged files, and what belongs to the same trial, below `damaged/`; their paths.

        The row in `trials/` moves first: at any moment a trial is finished and whole, or missing.
        """
        folder = f"damaged/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        moved: list[str] = []
        for error in damage:
            for path in _companions(error.path):
                if self.place.has(path) or self._is_taken(path):
                    self.place.move(path, f"{folder}/{path}")
                    moved.append(path)
        return moved

    def sweep(self) -> list[str]:
        """Remove what attempts that died have left, once it is old enough; its paths."""
        folders = ("partial", *TABLES, "failures", "plans", "active", "")
        # `trials` after its children: a trial finished meanwhile is not taken for an orphan.
        listing = {folder: self.place.list_files(folder) for folder in folders}
        finished = {file.name for file in listing["trials"]}
        # The newest file tells the time of the file server; this machine's clock may differ.
        now = max((file.modified for files in listing.values() for file in files), default=0.0)
        swept = [
            f"{folder}/{file.name}".lstrip("/")
            for folder, files in listing.items()
            for file in files
            if _is_left_over(folder, file.name, finished, age=now - file.modified)
        ]
        for path in swept:
            self.place.remove(path)
        return swept

    def _trial_paths(self) -> list[str]:
        """Those of parts last: where a trial stands in several files, a part decides."""
        return sorted(self.list_paths("trials"), key=lambda path: _is_part(_stem(path)))

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

    def _renew(self, path: str, content: bytes) -> None:
        """Write a file anew, unless it says the same already."""
        with self._naming(path):
            if content != self.place.read(path):
                self.place.replace(path, content)

    def _add_plan(
        self, plan: AnalysisPlan, trials: Sequence[Trial], source: str, *, after: Plan | None
    ) -> str:
        written = datetime.now(UTC)
        if after:
            written = max(written, after.written + timedelta.resolution)
        facts = {
            "analysis_plan": json.dumps(asdict(plan)),
            "grid": source,
            "written": written.isoformat(),
            "finished_before": str(len(self.finished_ids())),
            "training_version": str(TRAINING_VERSION),
        }
        rows = [PlannedTrial(**asdict(trial), trial_id=trial.id) for trial in trials]
        named = json.dumps([facts, sorted(row.trial_id for row in rows)], sort_keys=True)
        path = f"plans/{_digest(named)}.parquet"
        self.place.create(path, encode(to_table(rows, PlannedTrial), facts))
        return path

    def _read_plans(self) -> dict[str, Plan]:
        return {path: self._read_plan(path) for path in self.list_paths("plans")}

    def _read_rows(self, row_type: type[_Row], path: str) -> list[_Row]:
        return to_rows(self._read(row_type, path), row_type)

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
                written=datetime.fromisoformat(facts["written"]).astimezone(UTC),
                finished_before=int(facts["finished_before"]),
                training_version=version,
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

    def _is_taken(self, path: str) -> bool:
        """Does something stand there that is no file?"""
        folder, _, name = path.rpartition("/")
        return name in self.place.list_others(folder)

    def _damage(self, *, reading: bool) -> Iterator[DamagedFileError]:
        for folder, ours in _NAMES.items():
            for file in self.place.list_files(folder):
                if not (file.name.startswith(".") or ours.fullmatch(file.name)):
                    path = f"{folder}/{file.name}"
                    yield DamagedFileError(self.location, path, "is no file of this harness")
            for name, what in self.place.list_others(folder).items():
                yield DamagedFileError(self.location, f"{folder}/{name}", f"{what}, not a file")
        for name, what in self.place.list_others("").items():
            if name in _FILES:
                yield DamagedFileError(self.location, name, f"{what}, not a file")
        plans = [*filter(self.place.has, ["plan.parquet"]), *self.list_paths("plans")]
        choices = filter(self.place.has, ["choices.parquet"])
        if reading:
            yield from self._failures_of(self.read_tables, self._stems("trials"))
        else:
            yield from self._find_lost_files()
        yield from self._failures_of(partial(self._read, FailureRow), self.list_paths("failures"))
        yield from self._failures_of(partial(self._read, ChoiceRow), choices)
        yield from self._failures_of(self._read_plan, plans)

    def _find_lost_files(self) -> Iterator[DamagedFileError]:
        stems = self._stems("trials")  # ahead of the rest: a trial finished meanwhile lacks nothing
        for table in TABLES:
            sizes = {file.name: file.size for file in self.place.list_files(table)}
            for name in (f"{stem}.parquet" for stem in stems):
                if not sizes.get(name):
                    reason = "is empty" if name in sizes else "is missing"
                    yield DamagedFileError(self.location, f"{table}/{name}", reason)

    def _failures_of(
        self, read: Callable[[str], object], names: Iterable[str]
    ) -> Iterator[DamagedFileError]:
        def find(name: str) -> DamagedFileError | None:  # keeps nothing of what it reads
            outcome = _or_error(read)(name)
            return outcome if isinstance(outcome, DamagedFileError) else None

        yield from filter(None, self._map(find, names))

    def _map(self, read: Callable[[str], _Read], names: Iterable[str]) -> Iterator[_Read]:
        """What `read` makes of each name, in their order; some are read at once."""
        with ThreadPoolExecutor(self.place.readers) as pool:
            yield from pool.map(read, names)

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Say which file a ValueError is about."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise DamagedFileError(self.location, path, str(error)) from error


def _written(plan: tuple[str, Plan]) -> tuple[datetime, str]:
    return plan[1].written, plan[0]


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")


def _is_part(stem: str) -> bool:
    return stem.startswith("part-")


def _companions(path: str) -> list[str]:
    """The files that are only worth something together, the one that marks them finished first."""
    folder, _, name = path.partition("/")
    return [f"{table}/{name}" for table in reversed([*TABLES])] if folder in TABLES else [path]


def _or_error(read: Callable[[str], _Read]) -> Callable[[str], _Read | DamagedFileError]:
    def attempt(name: str) -> _Read | DamagedFileError:
        try:
            return read(name)
        except DamagedFileError as error:
            return error

    return attempt


def _is_left_over(folder: str, name: str, finished: Collection[str], *, age: float) -> bool:
    """Is a file of no use to anyone any more? `finished` are the names of files in `trials/`."""
    if folder == "partial" and age > PARTIAL_AGE:
        return True
    return age > ORPHAN_AGE and (
        name.startswith(".")
        or (folder in {"epochs", "gradients"} and name not in finished)
        or (folder == "partial" and name.replace(".pt", ".parquet") in finished)
    )


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
