"""Read a results folder; refuse what cannot be compared, and name what is missing.

A *block* is what the arms of one pair share: every setting but the placement and what goes with
it. A *cell* is what replicates share: every setting but the seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs
from scipy import stats

from harness.study.records import (
    SCHEMA_VERSION,
    AnalysisPlan,
    ChoiceRow,
    EpochRow,
    FailureRow,
    GradientRow,
    PlannedTrial,
    Settings,
    TrialRow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_SETTINGS = tuple(field.name for field in fields(Settings))
BLOCK = tuple(
    name for name in _SETTINGS if name not in {"placement", "program", "lr", "weight_decay"}
)
"""The settings that the arms of a pair share."""
CELL = tuple(name for name in _SETTINGS if name != "seed")
"""The settings that the replicates of an arm share."""

_READINGS = ("trial_id", "step", "epoch", "layer_index")
"""What is kept of table `gradients`, beside the column that the plan names."""
_IDENTITIES = ("qa_sum", "qa_dot")
"""Zero to rounding where batch norm follows a layer; of these the largest is kept."""
FLOW_TIMES = 8
"""Readings of a trial that are shown at most, evenly spread over log time."""

_ARROW = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "datetime": pa.timestamp("us", tz="UTC"),
}
_SIZE_LIMIT = 2**32
"""Bytes that one file may decode to: a few hundred bytes of Parquet can claim a hundred GB."""
_TRIAL_ID = re.compile(r"[0-9a-f]{12,}")
_READERS = {"disk": 2, "network": 16}
"""Files read at once: on a disk more of them wait for each other, on S3 for the network."""
_FILES_APART = 250
"""Files whose rows are held apart at once."""


_PLAN_WORDS = {
    "gradient_column": tuple(
        field.name
        for field in fields(GradientRow)
        if field.type == "float" and field.name != "epoch"
    ),
    "gradient_layer": ("first", "mean", "slope"),
    "gradient_window": ("first-epoch", "all", "init", "last"),
}
"""What the words of a plan can be."""


class ResultsError(Exception):
    """These results cannot be analysed; its text is all that the user reads."""


@dataclass(frozen=True)
class Results:
    """One results folder, checked: its rows can be compared with each other.

    `trials` holds planned trials only. `epochs` holds the last epoch of each, and `gradients` the
    readings that are judged or shown, of their columns those that are: a large grid has a hundred
    million readings, and no one looks at all of them. `identities` is how far all of them, at most,
    are off the identities that hold exactly. `choices` is what a tuning stage chose, empty without.
    `warnings` belong on the first screen of whatever is shown.
    """

    location: str
    plan: AnalysisPlan
    planned: pd.DataFrame
    trials: pd.DataFrame
    epochs: pd.DataFrame
    gradients: pd.DataFrame
    identities: Mapping[str, float]
    failures: pd.DataFrame
    choices: pd.DataFrame
    unplanned: int
    warnings: tuple[str, ...]

    @property
    def missing(self) -> pd.DataFrame:
        """The planned trials that have no row, in the order they were planned."""
        return self.planned[~self.planned["trial_id"].isin(self.trials["trial_id"])]

    @property
    def failed(self) -> pd.DataFrame:
        """The missing trials that were tried and broke."""
        missing = self.missing
        return missing[missing["trial_id"].isin(self.failures["trial_id"])]

    @property
    def is_complete(self) -> bool:
        """Does every planned trial have its row?"""
        return self.missing.empty


def load_results(location: str, *, allow_mixed: bool = False) -> Results:
    """Everything that the folder or `s3://bucket/prefix` at `location` holds.

    `allow_mixed` turns the refusal of mixed training code or precision into a warning.

    Raises:
        ResultsError: there are no results, a file is damaged or foreign, or trials that would be
            compared were not trained by the same code in the same precision.
    """
    folder = _Folder(location)
    plan, planned = _read_plan(folder)
    trials = _check_trials(folder.read("trials", TrialRow), location)
    is_planned = trials["trial_id"].isin(planned["trial_id"])
    unplanned = int((~is_planned).sum())
    trials = trials[is_planned].reset_index(drop=True)

    done = frozenset(trials["trial_id"])
    epochs = _keep(
        folder.read(
            "epochs", EpochRow, only=done, columns=("trial_id", "epoch"), sift=_sift_epochs
        ),
        done,
    )
    sieve = _Sieve(plan, frozenset(trials["trial_id"][trials["status"] == "diverged"]))
    gradients = _keep(
        folder.read("gradients", GradientRow, only=done, columns=sieve.columns, sift=sieve.sift),
        done,
    )
    failures = _join(rows for _, rows in folder.read("failures", FailureRow))

    warnings = [
        *_find_changed_plans(folder),
        *_find_mixtures(trials, allow_mixed=allow_mixed),
        *_find_split_pairs(trials),
        *_find_lost_rows(trials, epochs=epochs, gradients=gradients, location=location),
        *_find_selective_loss(planned, trials),
    ]
    if unplanned:
        warnings.append(
            f"Outside the plan, and left out: {unplanned} trial{'s' * (unplanned != 1)} in the folder."
        )
    return Results(
        location=location,
        plan=plan,
        planned=planned,
        trials=trials,
        epochs=epochs,
        gradients=gradients,
        identities=sieve.identities,
        failures=failures.drop_duplicates(ignore_index=True),
        choices=_read_choices(folder),
        unplanned=unplanned,
        warnings=tuple(warnings),
    )


class _Folder:
    """Parquet files below a local path or an S3 prefix."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") or location
        self._readers = _READERS["network" if location.startswith("s3://") else "disk"]
        try:
            if location.startswith("s3://"):
                self._files: fs.FileSystem = fs.S3FileSystem(
                    # pyarrow does not read these names by itself.
                    endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3")
                    or os.environ.get("AWS_ENDPOINT_URL"),
                    retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=10),
                )
                self._root = self.location.removeprefix("s3://")
            else:
                self._files = fs.LocalFileSystem()
                self._root = str(Path(location).expanduser().resolve())
            kind = self._files.get_file_info(self._root).type
        except OSError as error:
            raise ResultsError(f"{location}: {error}") from error
        if kind == fs.FileType.NotFound:
            raise ResultsError(f"{location}: there is no such results folder")
        if kind != fs.FileType.Directory:
            raise ResultsError(f"{location}: is not a folder; give the folder that holds trials/")

    def read(
        self,
        table: str,
        record: type,
        *,
        only: frozenset[str] | None = None,
        columns: Sequence[str] | None = None,
        sift: Callable[[pa.Table], pa.Table] = lambda rows: rows,
    ) -> Iterator[tuple[str, pa.Table]]:
        """Each file of one table with its rows; at least one pair, maybe without rows.

        `only` names the trials wanted: a file of another trial is not opened. `columns` names
        the columns wanted; None for all. `sift` makes of a file's rows those that are kept, so
        that never more than a few files are in memory whole.
        """
        schema = _schema_of(record, columns)
        paths = [path for path in self.list(table) if _may_hold(path, only)]
        with ThreadPoolExecutor(self._readers) as pool:
            parts = pool.map(lambda path: sift(self._read_file(path, schema)), paths)
            yield from zip(paths, parts, strict=True)
        if not paths:
            yield "", sift(schema.empty_table())

    def read_file(self, name: str, record: type) -> tuple[pd.DataFrame, Mapping[bytes, bytes]]:
        """One table that is one file, and the metadata the file carries.

        Raises:
            FileNotFoundError: there is no such file.
        """
        schema = _schema_of(record)
        table = self._read_file(name, schema)
        return table.to_pandas(ignore_metadata=True), table.schema.metadata or {}

    def list(self, table: str) -> list[str]:
        """The Parquet files of one table, those aside that are being written."""
        selector = fs.FileSelector(f"{self._root}/{table}", allow_not_found=True)
        try:
            infos = self._files.get_file_info(selector)
        except OSError as error:
            raise ResultsError(f"{self.location}/{table}: {error}") from error
        return sorted(
            f"{table}/{info.base_name}"
            for info in infos
            if info.type == fs.FileType.File
            and info.base_name.endswith(".parquet")
            and not info.base_name.startswith((".", "_"))
        )

    def _read_file(self, name: str, schema: pa.Schema) -> pa.Table:
        where = f"{self.location}/{name}"
        try:
            with self._files.open_input_file(f"{self._root}/{name}") as source:
                file = pq.ParquetFile(source, page_checksum_verification=True)
                found = file.schema_arrow
                _check_schema(where, found, schema)
                _check_size(where, file.metadata.num_rows * 8 * len(schema))
                # Only where rows repeat a text can a small file decode to a large one.
                texts = [field.name for field in schema if _is_text(field)]
                repeated = texts if file.metadata.num_rows > 1 else []
                if repeated:
                    file = pq.ParquetFile(
                        source,
                        metadata=file.metadata,
                        read_dictionary=repeated,
                        page_checksum_verification=True,
                    )
                table = file.read(schema.names, use_threads=False).select(schema.names)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            remedy = f"python -m harness.upkeep repair {self.location}"
            raise ResultsError(
                f"{where}: damaged, or not Parquet ({reason}); {remedy} sets it aside"
            ) from error
        for text in repeated:
            for chunk in table[text].chunks:
                longest = max(map(len, chunk.dictionary.to_pylist()), default=0)
                _check_size(where, longest * len(chunk))
        if repeated:
            table = table.cast(schema)
        described = schema.with_metadata(found.metadata)
        return pa.Table.from_arrays(table.columns, schema=described)


def _schema_of(record: type, columns: Sequence[str] | None = None) -> pa.Schema:
    declared = {field.name: _ARROW[str(field.type)] for field in fields(record)}
    return pa.schema([pa.field(name, declared[name]) for name in columns or declared])


def _is_text(field: pa.Field) -> bool:
    return field.type in (pa.string(), pa.binary())


def _may_hold(path: str, only: frozenset[str] | None) -> bool:
    """False for the file of one trial that is not wanted; a file of many is filtered later."""
    stem = Path(path).stem
    return only is None or not _TRIAL_ID.fullmatch(stem) or stem in only


def _check_schema(where: str, found: pa.Schema, wanted: pa.Schema) -> None:
    version = (found.metadata or {}).get(b"schema_version")
    if version is None:
        raise ResultsError(f"{where}: carries no schema_version, so the harness did not write it")
    if version != str(SCHEMA_VERSION).encode():
        raise ResultsError(
            f"{where}: schema version {version.decode(errors='replace')}, but this analysis "
            f"reads {SCHEMA_VERSION}; analyse it with the bn-order that wrote it"
        )
    for field in wanted:
        index = found.get_field_index(field.name)
        if index < 0:
            raise ResultsError(f"{where}: column {field.name!r} is missing")
        if found.field(index).type != field.type:
            raise ResultsError(
                f"{where}: column {field.name!r} is {found.field(index).type}, not {field.type}"
            )


def _check_size(where: str, size: int) -> None:
    if size > _SIZE_LIMIT:
        raise ResultsError(f"{where}: would decode to {size / 2**30:.0f} GiB; not a file of ours")


def _read_plan(folder: _Folder) -> tuple[AnalysisPlan, pd.DataFrame]:
    try:
        planned, metadata = folder.read_file("plan.parquet", PlannedTrial)
    except FileNotFoundError as error:
        raise ResultsError(
            f"{folder.location}: no plan.parquet, so this is not a results folder; "
            "python -m harness.run GRID makes one"
        ) from error
    plan = _parse_plan(f"{folder.location}/plan.parquet", metadata)
    if repeats := planned["trial_id"][planned["trial_id"].duplicated()].tolist():
        raise ResultsError(f"{folder.location}/plan.parquet: plans trial {repeats[0]} twice")
    return plan, planned


def _parse_plan(where: str, metadata: Mapping[bytes, bytes]) -> AnalysisPlan:
    known = {field.name: field for field in fields(AnalysisPlan)}
    try:
        settings = json.loads(metadata[b"analysis_plan"])
        unknown = ", ".join(sorted(set(settings) - set(known)))
        if unknown:
            raise ResultsError(f"{where}: the analysis plan sets {unknown}, unknown here")
        plan = AnalysisPlan(**settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{where}: the analysis plan in it cannot be read ({error})") from error
    for name, field in known.items():
        value = getattr(plan, name)
        if type(value).__name__ not in {str(field.type), *(["int"] * (field.type == "float"))}:
            raise ResultsError(f"{where}: the plan's {name} is {value!r}, not a {field.type}")
    for name, allowed in _PLAN_WORDS.items():
        if getattr(plan, name) not in allowed:
            raise ResultsError(
                f"{where}: the plan's {name} is {getattr(plan, name)!r}; "
                f"it can be {', '.join(allowed)}"
            )
    return plan


def _find_changed_plans(folder: _Folder) -> Iterable[str]:
    """Was a margin, or anything else of the analysis, changed once there were results to see?"""
    plans = []
    for name in folder.list("plans"):
        _, metadata = folder.read_file(name, PlannedTrial)
        plan = asdict(_parse_plan(f"{folder.location}/{name}", metadata))
        try:
            written = datetime.fromisoformat(metadata[b"written"].decode())
            plans.append((written, int(metadata[b"finished_before"]), plan))
        except (KeyError, ValueError) as error:
            raise ResultsError(
                f"{folder.location}/{name}: does not say when it was written ({error})"
            ) from error
    plans.sort(key=lambda entry: entry[0])
    for (_, _, earlier), (written, finished, later) in pairwise(plans):
        changes = [
            f"{name} from {earlier[name]} to {later[name]}"
            for name in later
            if name != "grid" and earlier[name] != later[name]
        ]
        if changes and finished:
            yield (
                f"The analysis was planned anew on {written:%d %B %Y, %H:%M} UTC, when "
                f"{finished} trial{'s' * (finished != 1)} had finished: {'; '.join(changes)}. A margin or a quantity "
                "chosen in sight of results can be chosen to please."
            )


def _read_choices(folder: _Folder) -> pd.DataFrame:
    try:
        return folder.read_file("choices.parquet", ChoiceRow)[0]
    except FileNotFoundError:
        return _schema_of(ChoiceRow).empty_table().to_pandas()


def _join(parts: Iterable[pa.Table]) -> pd.DataFrame:
    """All rows as one frame.

    A column of one row takes kilobytes beside its eight bytes, so that not all files of a large
    grid are kept apart.
    """
    remaining = iter(parts)
    joined = []
    while batch := list(islice(remaining, _FILES_APART)):
        joined.append(pa.concat_tables(batch).combine_chunks())
    return pa.concat_tables(joined).to_pandas(ignore_metadata=True)


def _check_trials(found: Iterable[tuple[str, pa.Table]], location: str) -> pd.DataFrame:
    """One row per trial, each named by its own content."""
    files: list[str] = []

    def note_files() -> Iterator[pa.Table]:
        for file, rows in found:
            files.extend([file] * rows.num_rows)
            yield rows

    trials = _join(note_files())
    for file, row in zip(files, trials.to_dict("index").values(), strict=True):
        name = _name_of(row)
        if row["trial_id"] != name:
            raise ResultsError(
                f"{location}/{file}: the row calls itself {row['trial_id']}, "
                f"but its settings are those of trial {name}"
            )
        if row["status"] not in {"done", "diverged"}:
            raise ResultsError(
                f"{location}/{file}: status {row['status']!r}; known are 'done' and 'diverged'"
            )
        for column in ("train_accuracy", "validation_accuracy", "test_accuracy"):
            if not (0 <= row[column] <= 1 or math.isnan(row[column])):
                raise ResultsError(f"{location}/{file}: {column} is {row[column]}, no share of 1")
    trials = trials.assign(file=files).drop_duplicates(subset=list(trials.columns))
    repeats = trials[trials["trial_id"].duplicated(keep=False)].sort_values("trial_id")
    if not repeats.empty:
        name, first, second = repeats["trial_id"].iloc[0], *repeats["file"].iloc[:2]
        raise ResultsError(
            f"{location}: {first} and {second} disagree about trial {name}; "
            f"python -m harness.replay {location} {name} trains it again, remove the one that differs"
        )
    return trials.drop(columns="file").reset_index(drop=True)


def _name_of(row: Mapping[Any, Any]) -> str:
    """The trial's id, from its settings: a digest that `harness.study.trials` defines."""
    content = [row["training_version"], {name: row[name] for name in _SETTINGS}]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _keep(found: Iterable[tuple[str, pa.Table]], done: frozenset[str]) -> pd.DataFrame:
    """The rows of done trials, each trial's from one file: compaction leaves the small ones."""
    seen: set[str] = set()

    def choose() -> Iterator[pa.Table]:
        for _, rows in found:
            names = set(rows["trial_id"].unique().to_pylist())
            wanted = (names & done) - seen
            seen.update(names)
            if wanted == names:
                yield rows
            else:
                is_wanted = pc.field("trial_id").isin(pa.array(sorted(wanted), pa.string()))
                yield rows.filter(is_wanted)

    return _join(choose())


def _sift_epochs(rows: pa.Table) -> pa.Table:
    """The last epoch of each trial."""
    last = rows.group_by("trial_id", use_threads=False).aggregate([("epoch", "max")])
    return last.rename_columns(["trial_id", "epoch"])


class _Sieve:
    """Of each trial's readings those that are judged or shown.

    They are the first epoch's, the last, and the few in between that stand for all; all, where the
    plan averages over all. A trial that diverged has fewer than its neighbours, and which of its
    own stand at their times is not known yet: it keeps them all.
    """

    def __init__(self, plan: AnalysisPlan, diverged: frozenset[str]) -> None:
        self.columns = tuple(dict.fromkeys((*_READINGS, plan.gradient_column, *_IDENTITIES)))
        self._kept = list(dict.fromkeys((*_READINGS, plan.gradient_column)))
        self._plan = plan
        self._diverged = diverged
        self._lock = Lock()
        self.identities: Mapping[str, float] = dict.fromkeys(_IDENTITIES, math.nan)

    def sift(self, rows: pa.Table) -> pa.Table:
        """The rows that are kept of one file's."""
        found = {name: _largest(rows[name].to_numpy()) for name in _IDENTITIES}
        with self._lock:
            self.identities = {
                name: float(np.fmax(largest, found[name]))
                for name, largest in self.identities.items()
            }
        names = rows["trial_id"].combine_chunks().dictionary_encode()
        name_R = names.indices.to_numpy()
        step_R, epoch_R, layer_R = (
            rows[name].to_numpy() for name in ("step", "epoch", "layer_index")
        )
        keeps_R = epoch_R <= 1
        for code, name in enumerate(names.dictionary.to_pylist()):
            own = np.flatnonzero(name_R == code)
            if name in self._diverged:
                keeps_R[own] = True
                continue
            if self._plan.gradient_window == "all":
                decides_first = self._plan.gradient_layer == "first"
                keeps_R[own] |= layer_R[own] == layer_R[own].min() if decides_first else True
            steps = np.unique(step_R[own]).tolist()
            keeps_R[own] |= np.isin(step_R[own], list(spread_times(steps)))
        return rows.select(self._kept).filter(pa.array(keeps_R))


def _largest(values: NDArray[np.float64]) -> float:
    """The largest magnitude; NaN where there is none."""
    return float(np.fmax.reduce(np.abs(values), initial=math.nan))


def spread_times(steps: Sequence[int]) -> set[int]:
    """At most FLOW_TIMES of the steps, the first and the last among them, even over log time."""
    if len(steps) <= FLOW_TIMES:
        return set(steps)
    place = np.log1p(np.asarray(steps, dtype=float))
    wanted = np.linspace(place[0], place[-1], FLOW_TIMES)
    return {steps[int(np.abs(place - target).argmin())] for target in wanted}


def _find_mixtures(trials: pd.DataFrame, *, allow_mixed: bool) -> list[str]:
    """Trials of one study are compared with each other: one code, one precision, one device."""
    warnings = []
    for study, rows in trials.groupby(["dataset", "stage", "recipe"], sort=False):
        where = " ".join(map(str, study))
        for name, what in {
            "code_digest": "versions of the training code",
            "precision": "precisions",
            "device_kind": "kinds of device",
        }.items():
            counts = rows[name].value_counts()
            if len(counts) < 2:
                continue
            shares = ", ".join(f"{value or '(none)'}: {count}" for value, count in counts.items())
            message = f"{where}: trials of {len(counts)} {what} would be compared ({shares})"
            if name != "device_kind" and not allow_mixed:
                raise ResultsError(f"{message}; --allow-mixed compares them all the same")
            warnings.append(f"{message}.")
    return warnings


def _find_split_pairs(trials: pd.DataFrame) -> Iterable[str]:
    """Where the arms of a pair ran on different devices, their difference is also the devices'."""
    devices = trials.groupby(list(BLOCK), sort=False)["device"].nunique()
    if split := int((devices > 1).sum()):
        names = ", ".join(sorted(trials["device"].unique()))
        yield (
            f"In {split} of {len(devices)} blocks the arms that are compared were trained on "
            f"different types of device ({names}); --pin-device-type would have kept them on one."
        )


def _find_lost_rows(
    trials: pd.DataFrame, *, epochs: pd.DataFrame, gradients: pd.DataFrame, location: str
) -> Iterable[str]:
    """A trial's other rows are written before its own, so that these can only have been lost."""
    for table, rows in {"epochs": epochs, "gradients": gradients}.items():
        lost = trials["trial_id"][~trials["trial_id"].isin(rows["trial_id"].unique())].tolist()
        if lost:
            yield (
                f"The rows in {table}/ of {len(lost)} trial{'s' * (len(lost) != 1)} are lost, "
                f"{lost[0]} among them: "
                f"python -m harness.upkeep repair {location} sets what is left of them aside, and "
                "the next run trains them again."
            )


def _find_selective_loss(planned: pd.DataFrame, trials: pd.DataFrame) -> Iterable[str]:
    """Is more missing in one placement than in the others than chance explains?

    Source:
        Fisher's exact test per placement against the rest, Bonferroni over placements.
    """
    is_missing = ~planned["trial_id"].isin(trials["trial_id"])
    placements = planned["placement"].unique()
    for placement in placements if len(placements) > 1 else ():
        here = planned["placement"] == placement
        table = pd.crosstab(here, is_missing).reindex(
            index=[True, False], columns=[True, False], fill_value=0
        )
        p = float(stats.fisher_exact(table).pvalue) * len(placements)  # pyright: ignore[reportAttributeAccessIssue]
        if p < 0.05 and is_missing[here].mean() > is_missing[~here].mean():
            yield (
                f"{is_missing[here].sum()} of {here.sum()} trials of '{placement}' are missing, "
                f"against {is_missing[~here].sum()} of {(~here).sum()} of the other placements "
                f"(Fisher's exact p = {p:.2g}): what is left may be a selection."
            )
