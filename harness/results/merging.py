"""Merge the trials that several machines have trained into one folder, if they agree.

The target keeps many trials in one file, so that a study of thousands reads fast from a bucket and
can be kept in git.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from harness.results.plans import Plan
from harness.results.store import TABLES, Store, name_stem
from harness.results.tables import find_differing_columns
from harness.study.errors import StoreError
from harness.study.records import ChoiceRow
from harness.study.trials import settings_of
from harness.study.wording import format_count

PART_BYTES = 128 << 20
"""Bytes in memory, over all tables, that go into one part; compressed it is well below the largest
file that git hosts accept."""

Tables = Mapping[str, pa.Table]

NAMED_DIFFERENCES = 20
"""Trials that a failed merge lists by name; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of a merge."""

    trials: int
    """Trials of the result."""
    repeated: int
    """Trials that were trained more than once: equal in every bit except timings and provenance."""


def merge(sources: Sequence[Store], target: Store, *, part_bytes: int = PART_BYTES) -> Merged:
    """Copy all of the sources that is no copy itself to `target`. Safe to repeat if killed.

    That is trials, failures, plans, choices and the looks that were taken: a look spends its share
    of the error rate wherever the rows go.

    Raises:
        StoreError: rows of one trial differ in more than timings and provenance, or the sources
            were planned with different analyses, or tuned to different recipes. In all three cases
            nothing is written.
    """
    for source in sources:
        source.refuse_emptiness()
    copies = _find_copies([*sources, target])
    _refuse_differences(copies)
    plans = _find_plans(sources)
    choices = _join_choices(sources)
    for source in sources:
        for folder in ("plans", "failures", "networks", "looks"):
            _copy_files(source, target, folder)
    target.write_choices(choices)
    if plans:
        trials = dict.fromkeys(trial for plan in plans for trial in plan.trials)
        grids = dict.fromkeys(plan.source for plan in plans)
        ordered = list(trials)  # of one folder the plan stays as it is
        if len(plans) > 1:
            ordered.sort(key=lambda trial: (trial.seed, trial.label))
        target.write_plan(plans[0].analysis, ordered, "\n---\n".join(grids))
    done = set(target.finished_ids())
    group: list[Tables] = []
    for store, stem in dict.fromkeys(found[0] for found in copies.values()):
        if missing := [trial_id for trial_id in store.ids_of(stem) if trial_id not in done]:
            group.append(select_trials(store.read_tables(stem), missing))
            done.update(missing)
        if sum(table.nbytes for tables in group for table in tables.values()) > part_bytes:
            _write_part(target, group)
            group = []
    _write_part(target, group)
    return Merged(len(done), sum(len(found) > 1 for found in copies.values()))


def select_trials(tables: Tables, trial_ids: Collection[str]) -> dict[str, pa.Table]:
    """Only the rows of these trials."""
    is_wanted = pc.field("trial_id").isin(list(trial_ids))
    return {name: table.filter(is_wanted) for name, table in tables.items()}


def _write_part(target: Store, group: Sequence[Tables]) -> None:
    """Put all of these trials into one file per table."""
    if group:
        joined = {
            name: pa.concat_tables([tables[name] for tables in group]).combine_chunks()
            for name in TABLES
        }
        target.write_tables(name_stem(joined["trials"]["trial_id"].to_pylist()), joined)


def _find_copies(stores: Sequence[Store]) -> dict[str, list[tuple[Store, str]]]:
    """Trial -> its copies: the stores that have it, each with the stem there."""
    copies: dict[str, list[tuple[Store, str]]] = {}
    for store in stores:
        for trial_id, stem in store.locate_trials().items():
            copies.setdefault(trial_id, []).append((store, stem))
    return copies


def _refuse_differences(copies: Mapping[str, Sequence[tuple[Store, str]]]) -> None:
    differences = list(_find_differences(copies))
    if differences:
        what = (
            f"trained more than once, with different results: {format_count(len(differences), 'trial')}; "
            "nothing has been merged. On one kind of device they must agree bit for bit"
        )
        more = len(differences) - NAMED_DIFFERENCES
        named = differences[:NAMED_DIFFERENCES] + [f"and {more} more"] * (more > 0)
        raise StoreError("\n".join([what, *named]))


def _find_differences(copies: Mapping[str, Sequence[tuple[Store, str]]]) -> Iterator[str]:
    read_tables = lru_cache(maxsize=4)(Store.read_tables)  # a part serves many trials in a row
    for trial_id, ((first, first_stem), *others) in copies.items():
        for store, stem in others:
            one = select_trials(read_tables(first, first_stem), [trial_id])
            other = select_trials(read_tables(store, stem), [trial_id])
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


def _find_plans(sources: Sequence[Store]) -> list[Plan]:
    """The plans of all sources; their analyses agree."""
    plans = [(store, plan) for store in sources if (plan := store.read_plan())]
    for (first, fixed), (store, plan) in zip(plans[:1] * len(plans), plans, strict=True):
        wanted, found = asdict(fixed.analysis), asdict(plan.analysis)
        differing = [
            f"{key} {wanted[key]} and {found[key]}" for key in wanted if wanted[key] != found[key]
        ]
        if differing:
            raise StoreError(
                f"{first.location} and {store.location} were planned with different analyses: "
                f"{', '.join(differing)}"
            )
    return [plan for _, plan in plans]


def _join_choices(sources: Sequence[Store]) -> list[ChoiceRow]:
    """What the tuning stages of all sources chose; no two say different things of one recipe."""
    rows: dict[tuple[object, ...], tuple[Store, ChoiceRow]] = {}
    for store in sources:
        for row in store.read_choices():
            first, known = rows.setdefault(tuple(settings_of(row).values()), (store, row))
            if known != row:
                raise StoreError(
                    f"the tuning stages of {first.location} and {store.location} ended differently "
                    f"for {row.architecture}-{row.depth} {row.placement} at rate {row.lr:g}: they "
                    "are two studies"
                )
    return [row for _, row in rows.values()]


def _copy_files(source: Store, target: Store, folder: str) -> None:
    for path in source.list_paths(folder):
        content = source.place.read(path)
        if content is not None:
            target.place.create(path, content)
