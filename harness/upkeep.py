"""Look after results: check and repair them, pack them, join what several machines have trained.

::

    python -m harness.upkeep check RESULTS         name every damaged or foreign file
    python -m harness.upkeep repair RESULTS        set them aside; the next run trains them again
    python -m harness.upkeep compact RESULTS       put thousands of small files into a few
    python -m harness.upkeep merge A B ... -o C    give C the trials of all

RESULTS is a folder or s3://bucket/prefix. No row is removed that does not stand elsewhere, and
each command may be killed at any moment and given again.
"""

# ruff: noqa: T201  this file speaks to the terminal

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from harness.errors import HarnessError, StoreError
from harness.lease import Lease
from harness.store import TABLES, Store, name_stem
from harness.tables import find_differing_columns
from harness.tally import say_count
from harness.trials import Trial

PART_BYTES = 64 << 20
"""Size of the small files, over all tables, that go into one part: it must fit into memory."""

NAMED_DIFFERENCES = 20
"""Trials that a merge in vain names; the rest is counted."""

Tables = Mapping[str, pa.Table]


def compact(store: Store, *, part_bytes: int = PART_BYTES) -> list[str]:
    """Put the trials of many small files into a few parts; the stems of the new ones.

    A part is written, read back and checked before the files it is made of are removed.

    Raises:
        StoreError: a file is damaged, or the place refuses.
    """
    _drop_covered(store)
    parts: list[str] = []
    for stems in _group(store.measure_stems(), part_bytes):
        tables = _concatenate([store.read_tables(stem) for stem in stems])
        part = name_stem(tables["trials"]["trial_id"].to_pylist())
        store.write_tables(part, tables)
        store.read_tables(part)
        for stem in stems:
            store.drop(stem)
        parts.append(part)
    return parts


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge came to."""

    trials: int
    """Trials of the result."""
    repeated: int
    """Trials that were trained more than once: equal bit for bit, timings and provenance aside."""


def merge(sources: Sequence[Store], target: Store) -> Merged:
    """Give `target` the trials, failures and plans of all sources.

    Raises:
        StoreError: rows of one trial differ in more than timings and provenance, or the sources
            were planned with different analyses. Nothing has been written then.
    """
    stores = [*sources, target]
    copies = _find_copies(stores)
    _refuse_differences(copies)
    _merge_plans(sources, target)
    done = set(target.finished_ids())
    for source in sources:
        for stem, trial_ids in source.read_ids().items():
            missing = [trial_id for trial_id in trial_ids if trial_id not in done]
            if missing:
                tables = _select(source.read_tables(stem), missing)
                target.write_tables(name_stem(missing), tables)
                done.update(missing)
        _copy_files(source, target, "failures")
    return Merged(len(done), sum(len(found) > 1 for found in copies.values()))


def repair(store: Store, *, join: bool = False) -> list[str]:
    """Set aside what is damaged or foreign, so that it is trained again; what was done, in lines.

    Raises:
        ActiveRunError: a run is going on in the folder, and `join` is false.
        StoreError: the place refuses.
    """
    with _hold(store, "repair", join=join):
        damage = store.find_damage()
        moved = store.set_aside(damage)
    return [
        *(f"{error.path}: {error.reason}" for error in damage),
        f"{store.location}: {say_count(len(moved), 'file')} set aside below damaged/",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 as wished, 1 `check` has found damage, 2 bad input, 3 a results folder cannot be used.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except HarnessError as error:
        print(f"harness.upkeep: {error}", file=sys.stderr)
        return error.exit_code


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.upkeep",
        description="Look after results: check, repair, compact and merge them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    for name, command, text in (
        ("check", _check, "Name every damaged or foreign file."),
        ("repair", _repair, "Set damaged and foreign files aside; the next run trains them again."),
        ("compact", _compact, "Put the trials of many small files into a few."),
    ):
        add(name, command, text).add_argument("results", metavar="RESULTS")
    merging = add("merge", _merge, "Give one folder the trials of several, if they agree.")
    merging.add_argument("sources", metavar="RESULTS", nargs="+")
    merging.add_argument("-o", "--output", metavar="RESULTS", required=True)
    return parser


def _check(options: argparse.Namespace) -> int:
    damage = _open(options.results).find_damage()
    for error in damage:
        print(f"{error.path}: {error.reason}")
    print(f"{options.results}: {say_count(len(damage), 'damaged or foreign file')}")
    return 1 if damage else 0


def _repair(options: argparse.Namespace) -> int:
    for line in repair(_open(options.results)):
        print(line)
    return 0


def _compact(options: argparse.Namespace) -> int:
    store = _open(options.results)
    with _hold(store, "compact"):
        before = len(store.measure_stems())
        parts = compact(store)
        after = len(store.measure_stems())
    print(
        f"{options.results}: {say_count(before, 'file')} per table before, {after} now; "
        f"{say_count(len(parts), 'new part')}"
    )
    return 0


def _merge(options: argparse.Namespace) -> int:
    target = Store(options.output)
    sources = [_open(location) for location in options.sources]
    with _hold(target, "merge"):
        merged = merge(sources, target)
    print(f"{options.output}: {say_count(merged.trials, 'trial')}")
    if merged.repeated:
        print(
            f"trained more than once, and equal bit for bit, timings and provenance aside: "
            f"{merged.repeated}"
        )
    return 0


def _open(location: str) -> Store:
    """The store, for a command that makes no sense without results: a slip of the pen, mostly."""
    store = Store(location)
    if not (store.place.has("plan.parquet") or store.place.list_files("trials")):
        raise StoreError(f"{location}: no results there: neither plan.parquet nor trials/")
    return store


def _hold(store: Store, command: str, *, join: bool = False) -> AbstractContextManager[object]:
    return Lease(store, f"{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}", join=join)


def _drop_covered(store: Store) -> None:
    """Remove files whose trials all stand in one larger part: a compaction was killed there."""
    ids = store.read_ids()
    holders: dict[str, str] = {}
    for stem in sorted(ids, key=lambda stem: (-len(ids[stem]), stem)):
        for trial_id in ids[stem]:
            holders.setdefault(trial_id, stem)
    for stem, trial_ids in ids.items():
        covers = {holders[trial_id] for trial_id in trial_ids}
        if len(covers) == 1 and covers != {stem}:
            store.read_tables(covers.pop())  # raises where the larger part is not whole
            store.drop(stem)


def _group(sizes: Mapping[str, int], part_bytes: int) -> Iterator[list[str]]:
    """Stems that go together into parts; whatever is half a part already stays as it is."""
    group: list[str] = []
    filled = 0
    for stem, size in sizes.items():
        if size > part_bytes / 2:
            continue
        if group and filled + size > part_bytes:
            yield group
            group, filled = [], 0
        group.append(stem)
        filled += size
    if len(group) > 1:
        yield group


def _concatenate(pieces: Sequence[Tables]) -> dict[str, pa.Table]:
    """One set of tables from several; a trial that occurs twice is taken once."""
    taken: set[str] = set()
    selected: list[Tables] = []
    for tables in pieces:
        new = [t for t in tables["trials"]["trial_id"].to_pylist() if t not in taken]
        taken.update(new)
        selected.append(_select(tables, new))
    return {
        name: pa.concat_tables([tables[name] for tables in selected]).combine_chunks()
        for name in TABLES
    }


def _select(tables: Tables, trial_ids: Collection[str]) -> dict[str, pa.Table]:
    is_wanted = pc.field("trial_id").isin(list(trial_ids))
    return {name: table.filter(is_wanted) for name, table in tables.items()}


def _find_copies(stores: Sequence[Store]) -> dict[str, list[tuple[Store, str]]]:
    """Trial -> where it stands: the stores that have it, each with the stem there."""
    copies: dict[str, list[tuple[Store, str]]] = {}
    for store in stores:
        for trial_id, stem in store.locate_trials().items():
            copies.setdefault(trial_id, []).append((store, stem))
    return copies


def _refuse_differences(copies: Mapping[str, Sequence[tuple[Store, str]]]) -> None:
    differences = list(_find_differences(copies))
    if differences:
        what = (
            f"trained more than once, with different results: {say_count(len(differences), 'trial')}; "
            "nothing has been merged. On one kind of device they must agree bit for bit"
        )
        more = len(differences) - NAMED_DIFFERENCES
        named = differences[:NAMED_DIFFERENCES] + [f"and {more} more"] * (more > 0)
        raise StoreError("\n".join([what, *named]))


def _find_differences(copies: Mapping[str, Sequence[tuple[Store, str]]]) -> Iterator[str]:
    read_tables = lru_cache(maxsize=4)(Store.read_tables)  # a part serves many trials in a row
    for trial_id, ((first, first_stem), *others) in copies.items():
        for store, stem in others:
            one = _select(read_tables(first, first_stem), [trial_id])
            other = _select(read_tables(store, stem), [trial_id])
            if columns := _list_differences(one, other):
                where = f"{first.location} and {store.location} differ in {columns}"
                yield f"{trial_id} ({_label(one)}): {where}"


def _list_differences(one: Tables, other: Tables) -> str:
    return "; ".join(
        f"{name}: {', '.join(columns)}"
        for name in TABLES
        if (columns := find_differing_columns(one[name], other[name]))
    )


def _label(tables: Tables) -> str:
    [row] = (
        tables["trials"]
        .select(["dataset", "architecture", "depth", "placement", "seed"])
        .to_pylist()
    )
    return "{dataset} {architecture}-{depth} {placement} seed {seed}".format(**row)


def _merge_plans(sources: Sequence[Store], target: Store) -> None:
    """The target's plan has the trials of all; their analyses must agree beforehand."""
    plans = [(store, plan) for store in sources if (plan := store.read_plan())]
    if not plans:
        return
    (first, fixed), *others = plans
    for store, plan in others:
        wanted, found = asdict(fixed.analysis), asdict(plan.analysis)
        differing = [
            f"{key} {wanted[key]} and {found[key]}" for key in wanted if wanted[key] != found[key]
        ]
        if differing:
            raise StoreError(
                f"{first.location} and {store.location} were planned with different analyses: "
                f"{', '.join(differing)}"
            )
    for store in sources:
        _copy_files(store, target, "plans")
    trials = dict.fromkeys(trial for _, plan in plans for trial in plan.trials)
    grids = dict.fromkeys(plan.source for _, plan in plans)
    target.write_plan(fixed.analysis, sorted(trials, key=_seed_first), "\n---\n".join(grids))


def _seed_first(trial: Trial) -> tuple[int, str]:
    return trial.seed, trial.label


def _copy_files(source: Store, target: Store, folder: str) -> None:
    for path in source.list_paths(folder):
        content = source.place.read(path)
        if content is not None:
            target.place.create(path, content)


if __name__ == "__main__":
    sys.exit(main())
