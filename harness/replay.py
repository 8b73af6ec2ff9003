"""python -m harness.replay RESULTS TRIAL: train a stored trial again, here, and compare every row.

Runs without Ray, in this process, with the trial's thread count, and writes nothing. On the same
kind of device and version of torch the rows must match bit for bit, except timings and provenance.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.study.errors import HarnessError, StoreError
from harness.study.records import TrialRow, TrialRows, settings_of
from harness.study.terminal import Parser, say
from harness.study.trials import TRAINING_VERSION, Trial
from harness.study.wording import format_count, format_duration

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from harness.results import Store

    Tables = Mapping[str, pa.Table]

EQUAL, DIFFERENT = 0, 1

_KEYS = {"epochs": ("epoch",), "gradients": ("step", "layer"), "trials": ()}
"""The columns that identify a row within its trial."""

_CAUSES = {
    "code_digest": "other training code",
    "device_kind": "another kind of device",
    "device": "another device",
    "torch": "another version of torch",
    "cuda": "another version of CUDA",
    "deterministic": "other determinism flags",
}
"""Provenance that may explain unequal rows, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first value, in the order of training, that was not reproduced."""

    table: str
    row: str
    column: str
    stored: object
    replayed: object

    def __str__(self) -> str:
        where = f"{self.table}, {self.row}" if self.row else self.table
        return f"{where}, {self.column}: {self.stored!r} stored, {self.replayed!r} now"


def find_stored(store: Store, prefix: str) -> Tables:
    """The rows of the one finished trial whose id begins with `prefix`.

    Raises:
        StoreError: no finished trial has such an id, several have, or a file is damaged.
    """
    from harness.results import select_trials  # noqa: PLC0415  pyarrow: not for --help

    stems = store.locate_trials()
    if not stems:
        raise StoreError(f"{store.location}: no finished trials there")
    found = sorted(trial_id for trial_id in stems if trial_id.startswith(prefix.lower()))
    if not found:
        raise StoreError(
            f"{store.location}: no finished trial has an id that begins with {prefix!r}"
        )
    if len(found) > 1:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise StoreError(
            f"{store.location}: {len(found)} ids begin with {prefix!r}: {some}; give more of it"
        )
    return select_trials(store.read_tables(stems[found[0]]), found)


def train_again(trial: Trial, device: torch.device) -> TrialRows:
    """The rows of the trial, trained in this process, which has the file of a user's own network.

    Raises:
        DataError: its data set is missing on this machine.
    """
    from harness.training.images import load_images  # noqa: PLC0415  torch: not for --help
    from harness.training.train import prepare_worker, train_pack  # noqa: PLC0415  the same

    prepare_worker(trial.threads)
    [rows] = train_pack([trial], load_images(trial.dataset, fetch=True), device=device)
    return rows


def find_first_difference(stored: Tables, replayed: Tables) -> Difference | None:
    """The first difference, in the order of training; None if the two are equal."""
    readings = sorted(_list_differences(stored, replayed), key=lambda found: found[0])
    return readings[0][1] if readings else None


def list_likely_causes(stored: TrialRow, replayed: TrialRow) -> Iterator[str]:
    """What has changed since the trial was trained: 'another version of torch: 2.11, now 2.15'."""
    for column, cause in _CAUSES.items():
        then, now = getattr(stored, column), getattr(replayed, column)
        if then != now:
            yield f"{cause}: {then or 'none'}, now {now or 'none'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(
        prog="python -m harness.replay",
        description="Train a stored trial again, here, without Ray, and compare it row for row.",
        allow_abbrev=False,
        epilog="Runs the file of a user's own network that the folder keeps. Exit codes: 0 equal, 1 "
        "different, 2 bad input, 3 the folder cannot be used.",
    )
    parser.add_argument("results", metavar="RESULTS", help="folder, or s3://bucket/prefix")
    parser.add_argument("trial", metavar="TRIAL", help="its id, or the first digits of it")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the kind it was trained on"
    )
    options = parser.parse_args(arguments)
    from harness.results import Store  # noqa: PLC0415  pyarrow: not for --help

    try:
        return _replay(Store(options.results), options.trial, options.device)
    except HarnessError as error:
        say(f"harness.replay: {error}", is_error=True)
        return error.exit_code


def _replay(store: Store, prefix: str, device_kind: str | None) -> int:
    import torch  # noqa: PLC0415  not for --help

    from harness.results import provide_network, to_rows, to_tables  # noqa: PLC0415  pyarrow

    stored = find_stored(store, prefix)
    [row] = to_rows(stored["trials"], TrialRow)
    trial = Trial(**settings_of(row))
    if row.training_version != TRAINING_VERSION:
        raise StoreError(
            f"{row.trial_id} was trained under training version {row.training_version}; this code "
            f"is version {TRAINING_VERSION} and means something else by its settings. "
            f"Check out commit {row.commit or 'of that time'}"
        )
    kind = device_kind or row.device_kind
    if kind == "cuda" and not torch.cuda.is_available():
        raise StoreError(
            f"{row.trial_id} was trained on a GPU and there is none here; --device cpu compares all "
            "the same, but another kind of device gives other sums"
        )
    provide_network(store, trial)
    say(f"{trial.label} ({trial.id}), trained in {format_duration(row.wall_time)} on {row.host}")
    begun = time.monotonic()
    rows = train_again(trial, torch.device(kind))
    took = format_duration(time.monotonic() - begun)
    replayed = to_tables(rows)
    causes = list(list_likely_causes(row, rows.trial))
    difference = find_first_difference(stored, replayed)
    if difference is None:
        counts = ", ".join(
            format_count(len(replayed[name]), what)
            for name, what in (("epochs", "epoch"), ("gradients", "gradient"))
        )
        say(f"equal: {counts}, and the trial's own row, bit for bit, replayed in {took}")
        for cause in causes:
            say(f"  although under {cause}")
        return EQUAL
    say(f"different: {difference}")
    for cause in causes:
        say(f"  likely cause: {cause}")
    if not causes:
        say("  code, device and torch are the same: this should not be")
    return DIFFERENT


def _list_differences(stored: Tables, replayed: Tables) -> Iterator[tuple[float, Difference]]:
    """Yield the first difference of each table with the number of steps taken by then."""
    from harness.results import TABLES, find_differing_columns  # noqa: PLC0415  pyarrow

    for name in TABLES:
        columns = find_differing_columns(stored[name], replayed[name])
        if not columns:
            continue
        pairs = zip(stored[name].to_pylist(), replayed[name].to_pylist(), strict=False)
        for old, new in pairs:
            # Compared as text, so that NaN equals NaN; equal values have equal text.
            unequal = [column for column in columns if repr(old[column]) != repr(new[column])]
            if unequal:
                row = " ".join(f"{key} {old[key]}" for key in _KEYS[name])
                column = unequal[0]
                step = old.get("step", float("inf"))
                yield step, Difference(name, row, column, old[column], new[column])
                break
        else:
            counts = len(stored[name]), len(replayed[name])
            yield float("inf"), Difference(name, "", "number of rows", *counts)


if __name__ == "__main__":
    sys.exit(main())
