"""Give one folder the trials that several machines have trained, if they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from harness.results.compaction import Tables, select
from harness.results.store import TABLES, Store, name_stem
from harness.results.tables import find_differing_columns
from harness.study.errors import StoreError
from harness.study.trials import Trial
from harness.study.wording import format_count

NAMED_DIFFERENCES = 20
"""Trials that a merge in vain names; the rest is counted."""


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
                tables = select(source.read_tables(stem), missing)
                target.write_tables(name_stem(missing), tables)
                done.update(missing)
        _copy_files(source, target, "failures")
    return Merged(len(done), sum(len(found) > 1 for found in copies.values()))


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
            one = select(read_tables(first, first_stem), [trial_id])
            other = select(read_tables(store, stem), [trial_id])
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
