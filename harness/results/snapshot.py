"""Read a results folder as of one moment: list each folder once, read each file once."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from harness.results.index import list_settled, recall, write_index
from harness.results.networks import read_network
from harness.results.places import File
from harness.results.plans import Plan
from harness.results.store import NAMES, ROOT_FILES, Store, name_stem, path_of
from harness.results.tally import Tally
from harness.study.errors import DamagedFileError, StoreError
from harness.study.records import ChoiceRow, FailureRow, TrialRow
from harness.study.trials import Trial
from harness.study.wording import format_count

NAMED_DAMAGE = 10
"""Damaged files that an error lists by name; the rest are counted."""

_Made = TypeVar("_Made")
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A results folder as it was at one moment. Damaged files count as missing."""

    location: str
    plan: Plan | None
    """The plan the folder was last used for; None before the first."""
    plans: tuple[Plan, ...]
    """Every plan it has had, the earliest first."""
    choices: tuple[ChoiceRow, ...]
    rows: Mapping[str, TrialRow]
    """The finished trials by id, in the order of their ids."""
    ids: Mapping[str, Sequence[str]]
    """Stem of the files -> the finished trials in them."""
    failures: tuple[FailureRow, ...]
    """Every failed attempt, the earliest first."""
    damage: tuple[DamagedFileError, ...]
    """Files whose content does not match their name, each once."""
    last_activity: float | None
    """Seconds since 1970: when the folder was last written to; None where it never was."""
    settled: Mapping[str, File]
    """Stem -> its file in `trials` as listed ahead of being read, if that tells it from any other."""
    read_singly: int
    """Files of `trials` that were read one by one."""

    def tally(self, trials: Sequence[Trial]) -> Tally:
        """The outcome of each of these trials."""
        return Tally.of(trials, self.rows.values(), self.failures)

    def keep_index(self, store: Store) -> None:
        """Index the rows, if reading them one by one took long; who may not write goes without."""
        if self.read_singly >= store.place.indexed_from:
            with suppress(StoreError):
                write_index(store, self.rows, self.ids, self.settled)

    def refuse_damage(self, remedy: str = "") -> None:
        """Stop if a file is damaged or foreign.

        Raises:
            StoreError: which files are damaged or foreign, and the remedy.
        """
        if self.damage:
            named = [f"  {error.path}: {error.reason}" for error in self.damage[:NAMED_DAMAGE]]
            if len(self.damage) > NAMED_DAMAGE:
                named.append(f"  and {len(self.damage) - NAMED_DAMAGE} more")
            count = format_count(len(self.damage), "damaged or foreign file")
            what = f"{self.location}: {count}; nothing was changed"
            mend = remedy or (
                "To set them aside, so that the next run trains their trials again: "
                f"python -m harness.upkeep repair {shlex.quote(self.location)}"
            )
            raise StoreError("\n".join([what, *named, mend]))


def take_snapshot(
    store: Store, *, whole_up_to: float = 0, since: Snapshot | None = None
) -> Snapshot:
    """Read everything but epochs and gradients; check those too for damage if at most `whole_up_to`
    trials are finished.

    Does not read again the finished trials and failures in `since`: their files never change. Takes
    trials from an index (`harness.results.index`) unless all files are to be checked.

    Raises:
        StoreError: the place cannot be used.
    """
    # List `trials` first: a trial that finishes during the listing then lacks no file.
    folders = dict.fromkeys(("trials", *NAMES, "active", ""))
    entries = {folder: store.place.list_entries(folder) for folder in folders}
    damage = {error.path: error for error in _find_strangers(store.location, entries)}

    def read_each(read: Callable[[str], _Made], names: Iterable[str]) -> list[_Made]:
        """Read what can be read, and note as damaged what cannot."""
        found = list(store.map(_or_error(read), names))
        errors = [error for error in found if isinstance(error, DamagedFileError)]
        damage.update({error.path: error for error in errors if error.path not in damage})
        return [made for made in found if not isinstance(made, DamagedFileError)]

    def read_rows(
        row_type: type[_Row], folder: str, known: Mapping[str, list[_Row]]
    ) -> list[list[_Row]]:
        """The rows of each file; those of known files are reused."""
        names = [file.name for file in entries[folder] if _is_ours(folder, file)]
        paths = [f"{folder}/{name}" for name in names]
        new = [path for path in paths if path not in known]
        old = [known[path] for path in paths if path in known]
        return old + read_each(lambda path: store.read_rows(row_type, path), new)

    if since:
        known, broken = _list_known(since)
    else:  # whoever looks for damage in all files wants to read them
        known, broken = recall(store, entries) if math.isfinite(whole_up_to) else {}, {}
    rows: dict[str, TrialRow] = {}
    ids: dict[str, list[str]] = {}
    for held in sorted(read_rows(TrialRow, "trials", known), key=len, reverse=True):
        own = {row.trial_id: row for row in held}
        stem = name_stem(own)
        # Of two views Python walks the smaller; of a view and a dict it would walk all rows, each time.
        if twice := sorted(own.keys() & rows.keys()):  # of two files the smaller is the duplicate
            path, reason = f"trials/{stem}.parquet", f"holds trial {twice[0]}, as another file does"
            damage.setdefault(path, DamagedFileError(store.location, path, reason))
        else:
            ids[stem] = list(own)
            rows |= own
    if len(rows) <= whole_up_to:
        for table in ("epochs", "gradients"):
            read_each(partial(_check, store, table, ids), ids)
    else:
        lost = _find_losses(store.location, entries, ids)
        damage.update({error.path: error for error in lost if error.path not in damage})
    failures = [row for held in read_rows(FailureRow, "failures", broken) for row in held]
    root = {file.name for file in entries[""] if not file.oddity}
    choices = read_each(lambda path: store.read_rows(ChoiceRow, path), {"choices.parquet"} & root)
    plan = read_each(store.read_plan_at, {"plan.parquet"} & root)
    names = [file.name for file in entries["plans"] if _is_ours("plans", file)]
    plans = read_each(store.read_plan_at, [f"plans/{name}" for name in names])
    names = [file.name for file in entries["networks"] if _is_ours("networks", file)]
    read_each(partial(read_network, store), [f"networks/{name}" for name in names])
    settled = list_settled(entries)
    if since:  # its rows were read after an earlier listing
        settled = {stem: settled[stem] for stem in settled.keys() - since.ids} | {**since.settled}
    written = [
        file.modified
        for folder in ("trials", "failures", "active")
        for file in entries[folder]
        if not file.oddity
    ]
    return Snapshot(
        location=store.location,
        plan=plan[0] if plan else None,
        plans=tuple(sorted(plans, key=lambda plan: plan.rank)),
        choices=tuple(row for held in choices for row in held),
        rows=dict(sorted(rows.items())),
        ids=ids,
        failures=tuple(sorted(failures, key=lambda row: row.failed_at)),
        damage=tuple(damage.values()),
        last_activity=max(written, default=None),
        settled=settled,
        read_singly=sum(f"trials/{stem}.parquet" not in known for stem in ids)
        + (since.read_singly if since else 0),
    )


def _is_ours(folder: str, file: File) -> bool:
    return not file.oddity and bool(NAMES[folder].fullmatch(file.name))


def _list_known(
    since: Snapshot,
) -> tuple[dict[str, list[TrialRow]], dict[str, list[FailureRow]]]:
    """Path -> the rows of its file, for trials and failures."""
    trials = {
        f"trials/{stem}.parquet": [since.rows[trial_id] for trial_id in ids]
        for stem, ids in since.ids.items()
    }
    return trials, {path_of(row): [row] for row in since.failures}


def _find_strangers(
    location: str, entries: Mapping[str, Sequence[File]]
) -> Iterator[DamagedFileError]:
    """Entries whose name is not ours or that are not files, except hidden ones."""
    for folder, ours in NAMES.items():
        visible = [file for file in entries[folder] if not file.name.startswith(".")]
        for file in sorted(visible, key=lambda file: bool(file.oddity)):
            if file.oddity or not ours.fullmatch(file.name):
                reason = (
                    f"{file.oddity}, not a file" if file.oddity else "is no file of this harness"
                )
                yield DamagedFileError(location, f"{folder}/{file.name}", reason)
    for file in entries[""]:
        if file.oddity and file.name in ROOT_FILES:
            yield DamagedFileError(location, file.name, f"{file.oddity}, not a file")


def _find_losses(
    location: str, entries: Mapping[str, Sequence[File]], stems: Iterable[str]
) -> Iterator[DamagedFileError]:
    """Files of a finished trial that are missing or empty, judged from the listings alone."""
    for table in ("epochs", "gradients"):
        sizes = {file.name: file.size for file in entries[table]}
        for name in sorted(f"{stem}.parquet" for stem in stems):
            if not sizes.get(name):
                reason = "is empty" if name in sizes else "is missing"
                yield DamagedFileError(location, f"{table}/{name}", reason)


def _check(store: Store, table: str, ids: Mapping[str, Collection[str]], stem: str) -> None:
    store.read_companion(table, stem, ids[stem])  # checks it; the rows are dropped


def _or_error(read: Callable[[str], _Made]) -> Callable[[str], _Made | DamagedFileError]:
    def attempt(name: str) -> _Made | DamagedFileError:
        try:
            return read(name)
        except DamagedFileError as error:
            return error

    return attempt
