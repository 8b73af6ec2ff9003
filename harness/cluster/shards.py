"""Which trials travel together, and what became of each start.

A *pack* is the seeds of one cell that train together. A *shard* is the packs that travel to a
worker together, because sending one costs more than a short training run. Each trial still commits
by itself, from its worker, so that a lost shard loses only what is unfinished; and of a long
training what it had come to lies in `partial/`, so that the next start goes on from there.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.study.errors import StoreError
from harness.study.records import EpochRow, FailureKind, FailureRow
from harness.study.trials import Trial
from harness.training.provenance import digest_code

if TYPE_CHECKING:
    from harness.results.store import Store

Pack = tuple[Trial, ...]

STARTS = 3
"""Starts of a trial in one run. A lost worker or too little memory may be bad luck."""

EXCEPTIONS = 2
"""Exceptions of a trial in one run. Training is deterministic: the second one settles it."""

TIMEOUTS = 2
"""The same for a trial that does not come to its end: each costs its whole time limit."""

KEEP_EVERY = 300.0
"""Seconds between two checkpoints of a training: what a lost worker costs at most, and one epoch.
Most trials are shorter, and never write one."""

SHORTEST_SHARD = 2.0
LONGEST_SHARD = 120.0
"""Seconds of estimated work: enough to pay for its sending, little enough to lose."""

FINEST = 1_000
"""Shards in which the work is cut while much of it is left. What sends them has a cost that grows
with the square of their number: many workers get a few each, few workers no more than this."""


@dataclass(frozen=True, slots=True)
class Due:
    """A pack to be trained in this pass, and the number of the start that this will be.

    Units:
        limit: seconds after which a start counts as hanging.
    """

    pack: Pack
    attempt: int
    limit: float


Shard = tuple[Due, ...]


class Partial:
    """What the training of one pack had come to when its worker was lost, as bytes.

    Whatever happens to it costs time and no row: without it the pack is trained from its start.
    `listed` are the names that a store has listed, once for many packs: of others none is there.
    """

    def __init__(self, store: Store, pack: Pack, *, listed: Collection[str] | None = None) -> None:
        self._store = store
        self._listed = listed
        self._name = find_first(pack).id
        self._is_there = False

    def read(self) -> bytes | None:
        """None where there is nothing.

        Raises:
            ValueError: it is larger than it can be.
        """
        if self._listed is not None and self._name not in self._listed:
            return None
        content = self._store.read_partial(self._name)
        self._is_there = content is not None
        return content

    def write(self, content: bytes | memoryview) -> None:
        self._store.write_partial(self._name, content)
        self._is_there = True

    def drop(self) -> None:
        """Remove it, once it is of no use any more. A later run's sweep does, where this may not."""
        if self._is_there:
            with suppress(StoreError):
                self._store.drop_partial(self._name)
            self._is_there = False


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a pack on a worker."""

    pack: Pack
    attempt: int
    run: str
    on_gpu: bool
    partial: Partial
    keep_every: float
    """Seconds after which what the training has come to is kept in `partial` again."""
    has_raised: bool = False
    """An earlier start in this run ended in an exception: this one does without what may fail."""
    tell: Callable[[Sequence[EpochRow]], None] | None = None
    """Is given the rows of each epoch as it ends, and returns at once."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the store knows at a moment: finished trials, and by trial the failures of a run."""

    finished: frozenset[str]
    failures: Mapping[str, Sequence[FailureRow]]

    @classmethod
    def read(cls, store: Store, run: str, packs: Iterable[Pack] | None = None) -> Standing:
        """Of these packs only, if any are named: that costs the same however large the grid is."""
        asked = None if packs is None else {trial.id for pack in packs for trial in pack}
        failures: dict[str, list[FailureRow]] = defaultdict(list)
        for row in sorted(store.read_failures(run, asked), key=lambda row: row.attempt):
            failures[row.trial_id].append(row)
        finished = store.finished_ids() if asked is None else store.find_finished(asked)
        return cls(finished, dict(failures))

    def attempt(self, pack: Pack) -> int:
        """Number of the pack's next start in this run, from 1."""
        return 1 + max(len(self.failures.get(trial.id, ())) for trial in pack)

    def has_raised(self, pack: Pack) -> bool:
        """Did a start of the pack in this run end in an exception?"""
        return any(
            row.kind == FailureKind.EXCEPTION
            for trial in pack
            for row in self.failures.get(trial.id, ())
        )

    def is_over(self, pack: Pack) -> bool:
        """Is every trial of the pack finished or, for this run, given up?"""
        return all(trial.id in self.finished or self._is_given_up(trial) for trial in pack)

    def list_open(self, shard: Shard) -> list[Due]:
        """What a worker that takes up the shard now has to train, each with its attempt.

        A pack that has raised in this pass waits for the next one, where workers are new. So the
        first one of this list is the one that was in training when a worker was lost.
        """
        return [
            replace(due, attempt=self.attempt(due.pack))
            for due in shard
            if not self.is_over(due.pack)
            and not any(
                row.attempt >= due.attempt and row.kind != FailureKind.WORKER_LOST
                for trial in due.pack
                for row in self.failures.get(trial.id, ())
            )
        ]

    def _is_given_up(self, trial: Trial) -> bool:
        kinds = [row.kind for row in self.failures.get(trial.id, ())]
        return (
            len(kinds) >= STARTS
            or kinds.count(FailureKind.EXCEPTION) >= EXCEPTIONS
            or kinds.count(FailureKind.TIMEOUT) >= TIMEOUTS
        )


def pack_trials(trials: Iterable[Trial]) -> list[Pack]:
    """Put the trials of one pack together, packs in the order of their first trials."""
    packs: dict[Trial, list[Trial]] = defaultdict(list)
    for trial in trials:
        packs[find_first((trial,))].append(trial)
    return [tuple(pack) for pack in packs.values()]


def find_first(pack: Pack) -> Trial:
    """The trial that names the pack, whichever of its trials are asked for."""
    return replace(pack[0], seed=pack[0].pack[0])


def order_packs(packs: Sequence[Pack], estimate: Callable[[Pack], float]) -> list[Pack]:
    """Seed after seed as they come, and of each seed what takes longest first.

    A run that is stopped early has every cell of some seeds, and at the end of one that is not the
    workers wait for a short pack, never for a long one.

    Units:
        estimate: seconds of work in a pack.
    Source:
        Graham 1969, doi:10.1137/0117039 (longest processing time first).
    """
    seeds = {seed: turn for turn, seed in enumerate(dict.fromkeys(pack[0].seed for pack in packs))}
    return sorted(packs, key=lambda pack: (seeds[pack[0].seed], -estimate(pack)))


def cut_shards(
    packs: Sequence[Pack], estimate: Callable[[Pack], float], workers: int
) -> Iterator[Sequence[Pack]]:
    """Cut the packs, in their order, into shards that get shorter towards the end.

    The first shard is half of a worker's share of all, and they get shorter as steadily as they are
    sent, down to a worker's share of what is left: so that all workers come to their end together,
    although packs do not travel one by one and a worker takes no more than about five shards.

    Units:
        estimate: seconds of work in a pack.
    Source:
        Tzeng & Ni 1993, doi:10.1109/71.205655 (trapezoid self-scheduling), and towards the end
        Polychronopoulos & Kuck 1987, doi:10.1109/TC.1987.5009495 (guided self-scheduling).
    """
    seconds = [estimate(pack) for pack in packs]
    total = left = sum(seconds)
    half_share = total / (2 * workers)
    # Estimates may be wrong by much: however short all of it seems, every worker gets some of it.
    shortest = min(SHORTEST_SHARD, half_share)
    longest = max(LONGEST_SHARD, total / FINEST)
    first, work = 0, 0.0
    for index, duration in enumerate(seconds):
        work += duration
        share = left / workers
        steady = half_share * math.sqrt(max(0.0, left / total)) if total else 0.0
        if work >= max(shortest, min(share, steady, longest)) or index == len(packs) - 1:
            yield packs[first : index + 1]
            left -= work
            first, work = index + 1, 0.0


def find_hopeless(failures: Sequence[FailureRow]) -> frozenset[str]:
    """The trials that the training code as it is now has failed, by exception, often enough."""
    digest = digest_code()
    raised = Counter(
        row.trial_id
        for row in failures
        if row.kind == FailureKind.EXCEPTION and row.code_digest == digest
    )
    return frozenset(trial_id for trial_id, times in raised.items() if times >= EXCEPTIONS)


def classify(error: BaseException) -> FailureKind:
    """The kind of failure that an exception of training is."""
    out_of_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's; and Ray's
        or "not enough memory" in str(error)  # torch's allocator on a CPU
    )
    return FailureKind.OUT_OF_MEMORY if out_of_memory else FailureKind.EXCEPTION


def write_failures(
    store: Store,
    due: Due,
    run: str,
    *,
    kind: FailureKind,
    message: str,
    text: str,
    host: str = "",
) -> None:
    """Keep one broken start of a pack: a row for each of its trials."""
    if kind == FailureKind.OUT_OF_MEMORY:
        message = f"{message} ({_describe_size(due.pack)})"
    for trial in due.pack:
        store.write_failure(
            FailureRow(
                trial_id=trial.id,
                trial=trial.label,
                attempt=due.attempt,
                run=run,
                kind=kind.value,
                message=message,
                traceback=text,
                failed_at=datetime.now(UTC),
                host=host,
                code_digest=digest_code(),
            )
        )


def _describe_size(pack: Pack) -> str:
    """What an out-of-memory error does not say: how large the network was."""
    trial = pack[0]
    together = f" of {len(trial.pack)} seeds" if len(trial.pack) > 1 else ""
    return (
        f"{trial.architecture}-{trial.depth}{together}, {trial.width_factor:g} times the width, "
        f"batches of {trial.batch_size}, {trial.precision}"
    )
