"""Read a results folder; refuse what cannot be compared, and name what is missing.

Rows come from `harness.results`: whatever the store refuses, a report refuses in the same words.

A *block* is what the arms of one pair share: every setting but the placement and what goes with
it. A *cell* is what replicates share: every setting but the seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice, pairwise
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.statistics.layers import summarise_layers
from harness.results import TABLES, Plan, Snapshot, Store, Tally, take_snapshot, to_table
from harness.study.errors import StoreError
from harness.study.facts import facts_of
from harness.study.records import (
    AnalysisPlan,
    ChoiceRow,
    FailureRow,
    Settings,
    TrialRow,
)
from harness.study.wording import format_count, list_words

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

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
"""Zero to rounding and batch norm's epsilon where one follows a layer, which is where `qa_sum`
exists; of these the largest is kept."""
FLOW_TIMES = 8
"""Readings of a trial that are shown at most, evenly spread over log time."""
LONGEST_TEXT = 500
"""Characters of a name or a message that a report shows."""
_FILES_APART = 250
"""Files whose rows are held apart at once."""

ResultsError = StoreError
"""These results cannot be analysed; its text is all that the user reads."""


@dataclass(frozen=True)
class Results:
    """One results folder, checked: its rows can be compared with each other.

    `trials` holds planned trials only. `epochs` holds the epochs of each that are drawn, its last, and
    those at whose end its validation accuracy was the highest so far, and `gradients` the readings that
    are judged or shown, of their columns those that are: a large grid has a hundred million readings,
    and no one looks at all of them. `readings` has one row per (trial, step) of
    all, the layers reduced to one number each, in log10. `identities` is how far all of them, at most,
    are off the identities that batch norm brings, NaN where it follows no layer. `choices` is what a
    tuning stage chose, once for all lengths of training that share the stage; empty without. `tally`
    says of every planned trial what has become of it. `warnings` belong on the first screen of
    whatever is shown.
    """

    location: str
    plan: AnalysisPlan
    tally: Tally
    planned: pd.DataFrame
    trials: pd.DataFrame
    epochs: pd.DataFrame
    gradients: pd.DataFrame
    readings: pd.DataFrame
    identities: Mapping[str, float]
    failures: pd.DataFrame
    choices: pd.DataFrame
    warnings: tuple[str, ...]

    @property
    def chance(self) -> dict[str, float]:
        """Data set -> accuracy of guessing, in percent, where it is known."""
        facts = {name: facts_of(name) for name in self.planned["dataset"].unique()}
        return {name: 100 / known.classes for name, known in facts.items() if not known.is_assumed}

    @property
    def unplanned(self) -> int:
        """Finished trials in the folder that nobody planned."""
        return self.tally.strangers

    @property
    def missing(self) -> pd.DataFrame:
        """The planned trials that have no row, in the order they were planned."""
        return self.planned[~self.planned["trial_id"].isin(self.tally.rows)]

    @property
    def failed(self) -> pd.DataFrame:
        """The missing trials that were tried and broke."""
        return self.planned[self.planned["trial_id"].isin(self.tally.failures)]

    @property
    def is_complete(self) -> bool:
        """Does every planned trial have its row?"""
        return self.tally.is_complete


def load_results(location: str, *, allow_mixed: bool = False) -> Results:
    """Everything that the folder or `s3://bucket/prefix` at `location` holds.

    `allow_mixed` turns the refusal of mixed training code or precision into a warning.

    Raises:
        StoreError: there are no results, a file is damaged or foreign, or trials that would be
            compared were not trained by the same code in the same precision.
    """
    store = Store(location)
    store.refuse_emptiness()
    snapshot = take_snapshot(store)
    snapshot.refuse_damage()
    plan = snapshot.plan
    if plan is None:
        raise StoreError(
            f"{location}: no plan.parquet, so nobody knows which trials are missing; "
            "python -m harness.run GRID writes it"
        )
    tally = snapshot.tally(plan.trials)
    rows = sorted(tally.rows.values(), key=lambda row: row.trial_id)
    planned, trials = _to_frame(plan.table), _to_frame(to_table(rows, TrialRow))
    choices = _to_frame(to_table(snapshot.choices, ChoiceRow))
    choices = choices.drop_duplicates(
        choices.columns.difference(["epochs", "warmup_epochs"]), ignore_index=True
    )
    warnings = [
        *_find_changed_plans(snapshot.plans),
        *_find_mixtures(trials, allow_mixed=allow_mixed),
        *_find_split_pairs(trials),
        *_find_selective_loss(planned, trials),
        *_find_edges(choices),
    ]
    if tally.strangers:
        strangers = format_count(tally.strangers, "trial")
        warnings.append(f"Outside the plan, and left out: {strangers} in the folder.")
    sieve = _Sieve(
        plan.analysis, frozenset(row.trial_id for row in rows if row.status == "diverged")
    )
    gradients = _read_sifted(store, snapshot, tally.rows, "gradients", sieve.sift)
    return Results(
        location=location,
        plan=replace(
            plan.analysis, grid=_cut(plan.analysis.grid), control=_cut(plan.analysis.control)
        ),
        tally=tally,
        planned=planned,
        trials=trials,
        epochs=_read_sifted(store, snapshot, tally.rows, "epochs", _sift_epochs),
        gradients=gradients,
        readings=sieve.collect_readings(),
        identities=sieve.identities,
        failures=_to_frame(to_table(snapshot.failures, FailureRow)),
        choices=choices,
        warnings=tuple(warnings),
    )


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """The rows; text of which nobody would read the end is cut, so that every use of it is bounded."""
    for index, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            longest = pc.max(pc.binary_length(column)).as_py() or 0
            if longest > LONGEST_TEXT:
                cut = pa.array(map(_cut, column.to_pylist()), column.type)
                table = table.set_column(index, table.field(index), cut)
    return table.to_pandas(ignore_metadata=True)


def _cut(text: str) -> str:
    """Its begin, and a digest: different texts stay different."""
    if len(text) <= LONGEST_TEXT:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{text[:LONGEST_TEXT]}... ({digest})"


def _read_sifted(
    store: Store,
    snapshot: Snapshot,
    done: Collection[str],
    table: str,
    sift: Callable[[pa.Table], pa.Table],
) -> pd.DataFrame:
    """What `sift` keeps of the rows of done trials, file by file, as one frame.

    A column of one row takes kilobytes beside its eight bytes, so that not all files of a large
    grid are kept apart.
    """
    wanted = {stem: ids for stem, ids in snapshot.ids.items() if any(map(done.__contains__, ids))}

    def keep(rows: pa.Table) -> pa.Table:
        names = rows["trial_id"].unique()
        if not all(map(done.__contains__, names.to_pylist())):
            rows = rows.filter(pc.field("trial_id").isin(list(done)))
        return sift(rows)

    pieces = store.sift(table, wanted, keep)
    joined = [keep(to_table([], TABLES[table]))]  # gives the columns where there is no file
    while batch := list(islice(pieces, _FILES_APART)):
        joined.append(pa.concat_tables(batch).combine_chunks())
    return _to_frame(pa.concat_tables(joined))


_PLANNED_WORDS: Mapping[str, str] = {
    "margin_accuracy": "the margin of accuracy",
    "margin_gradient": "the margin of gradient flow",
    "margin_risk": "the margin of the risk of not training",
    "alpha": "the error rate",
    "gradient_column": "the measure of gradient flow",
    "control": "the control",
    "epochs": "the length of training that decides",
    "looks": "the looks",
}
"""What the grid fixes ahead, all of it but its name, as readers say it."""


def _find_changed_plans(plans: Sequence[Plan]) -> Iterable[str]:
    """Was a margin, or anything else of the analysis, changed once there were results to see?"""
    for earlier, later in pairwise(plans):
        before, after = asdict(earlier.analysis), asdict(later.analysis)
        changes = [
            f"{_PLANNED_WORDS[name]} from {before[name]} to {after[name]}"
            for name in after
            if name != "grid" and before[name] != after[name]
        ]
        if changes and later.finished_before:
            finished = format_count(later.finished_before, "trial")
            yield (
                f"The analysis was planned anew on {later.written:%d %B %Y, %H:%M} UTC, when "
                f"{finished} had finished: {'; '.join(changes)}. A margin or a quantity "
                "chosen in sight of results can be chosen to please."
            )


def _sift_epochs(rows: pa.Table) -> pa.Table:
    """The epochs of each trial that are drawn, and those in which its validation accuracy beat all
    before: they say when it reached what.
    """
    trial_E = rows["trial_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order_E = np.lexsort((rows["epoch"].to_numpy(), trial_E))
    trial_E, epoch_E = trial_E[order_E], rows["epoch"].to_numpy()[order_E]
    # A share is at most 1, so that every trial begins above all that the one ahead of it reached.
    value_E = 2 * trial_E + rows["validation_accuracy"].to_numpy()[order_E]
    best_E = np.fmax.accumulate(np.concatenate([[-1.0], value_E[:-1]])) if len(rows) else value_E
    is_last_E = np.append(trial_E[1:] != trial_E[:-1], True)[: len(rows)]
    is_kept_E = (value_E > best_E) | is_last_E | _are_drawn(epoch_E)
    kept = rows.select(["trial_id", "epoch", "validation_accuracy"])
    return kept.take(pa.array(order_E[is_kept_E]))


def _are_drawn(epoch_E: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Is the epoch one at which curves are drawn: each of the first eight, four per doubling after?

    Of the number of the epoch alone, so that trials of one length are drawn at the same epochs.

    >>> np.flatnonzero(_are_drawn(np.arange(30))).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]
    """
    apart_E = 2 ** np.maximum(np.floor(np.log2(np.maximum(epoch_E, 1))) - 2, 0)
    return (epoch_E > 0) & (epoch_E % apart_E == 0)


class _Sieve:
    """Of each trial's readings those that are shown; of all of them one number per reading.

    Shown are the first epoch's, the last, and the few in between that stand for all. A trial that
    diverged has fewer than its neighbours, and which of its own stand at their times is not known
    yet: it keeps them all.
    """

    def __init__(self, plan: AnalysisPlan, diverged: frozenset[str]) -> None:
        self._column = plan.gradient_column
        kept = (*_READINGS, self._column, "update_ratio")
        self._kept = list(dict.fromkeys(kept))
        self._diverged = diverged
        self._lock = Lock()
        self._readings: list[pd.DataFrame] = []
        self.identities: Mapping[str, float] = dict.fromkeys(_IDENTITIES, math.nan)

    def sift(self, rows: pa.Table) -> pa.Table:
        """The rows that are kept of one file's."""
        follows_R = np.isfinite(rows["qa_sum"].to_numpy())
        found = {
            name: _largest(np.where(follows_R, rows[name].to_numpy(), math.nan))
            for name in _IDENTITIES
        }
        names = rows["trial_id"].combine_chunks().dictionary_encode()
        name_R = names.indices.to_numpy()
        step_R, epoch_R = rows["step"].to_numpy(), rows["epoch"].to_numpy()
        readings = self._summarise(rows, names.dictionary.to_pylist(), name_R)
        with self._lock:
            self._readings.append(readings)
            self.identities = {
                name: float(np.fmax(largest, found[name]))
                for name, largest in self.identities.items()
            }
        keeps_R = epoch_R <= 1
        for code, name in enumerate(names.dictionary.to_pylist()):
            own = np.flatnonzero(name_R == code)
            if name in self._diverged:
                keeps_R[own] = True
                continue
            steps = np.unique(step_R[own]).tolist()
            keeps_R[own] |= np.isin(step_R[own], list(spread_times(steps)))
        return rows.select(self._kept).filter(pa.array(keeps_R))

    def collect_readings(self) -> pd.DataFrame:
        """One row per (trial, step) of every reading: its epoch, and the layers reduced."""
        found = [readings for readings in self._readings if len(readings)]
        if not found:
            return pd.DataFrame(columns=["trial_id", "step", "epoch", "mean", "first", "fall"])
        return pd.concat(found, ignore_index=True).drop_duplicates(["trial_id", "step"])

    def _summarise(
        self, rows: pa.Table, names: Sequence[str], name_R: NDArray[np.integer]
    ) -> pd.DataFrame:
        if not len(rows):
            return pd.DataFrame()
        step_R, epoch_R = rows["step"].to_numpy(), rows["epoch"].to_numpy()
        key_R2 = np.stack([name_R, step_R], axis=-1)
        _, first_G, reading_R = np.unique(key_R2, axis=0, return_index=True, return_inverse=True)
        reduced = summarise_layers(
            rows[self._column].to_numpy(), rows["layer_index"].to_numpy(), reading_R.reshape(-1)
        )
        return pd.DataFrame(
            {
                "trial_id": [names[name] for name in name_R[first_G]],
                "step": step_R[first_G],
                "epoch": epoch_R[first_G],
                **reduced,
            }
        )


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
            is_digest = name == "code_digest"  # which tells a reader nothing
            shares = ", ".join(
                f"{f'version {number}' if is_digest else value or '(none)'}: {count}"
                for number, (value, count) in enumerate(counts.items(), start=1)
            )
            message = f"{where}: trials of {len(counts)} {what} would be compared ({shares})"
            if name != "device_kind" and not allow_mixed:
                raise StoreError(f"{message}; --allow-mixed compares them all the same")
            warnings.append(f"{message}.")
    return warnings


def _find_split_pairs(trials: pd.DataFrame) -> Iterable[str]:
    """Where the arms of a pair ran on different devices, their difference is also the devices'."""
    devices = trials.groupby(list(BLOCK), sort=False)["device"].nunique()
    if split := int((devices > 1).sum()):
        names = ", ".join(sorted(trials["device"].unique()))
        yield (
            f"In {split} of {len(devices)} blocks the arms that are compared were trained on "
            f"different types of device ({names})."
        )


def _find_selective_loss(planned: pd.DataFrame, trials: pd.DataFrame) -> Iterable[str]:
    """Is more missing in one placement than in the others than chance explains?

    Source:
        Fisher's exact test per placement against the rest, Bonferroni over placements.
    """
    is_missing = ~planned["trial_id"].isin(trials["trial_id"])
    if not is_missing.any():
        return
    from scipy import stats  # noqa: PLC0415  takes a second to import

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


def _find_edges(choices: pd.DataFrame) -> Iterable[str]:
    """An arm whose best recipe is the last one tried may do better than it is shown to do."""
    chosen = choices[choices["chosen"].astype(bool)]
    counts = chosen.groupby(["placement", "flow"], sort=False)["at_edge"].agg(["sum", "count"])
    told = [
        f"'{placement}' in {edges} of {networks}"
        for (placement, _), edges, networks in counts.itertuples(name=None)
        if edges
    ]
    if told:
        yield (
            "Some arms do best at the smallest or largest learning rate that was tried, and may do "
            f"better beyond it: {list_words(told)} networks."
        )
