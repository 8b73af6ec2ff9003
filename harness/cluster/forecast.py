"""How long trials take and how much they write: roughly, then better with every finished one.

Ahead of any finished trial, a network takes as long as its work, counted by torch (see `work`), at
the pace of a processor. A driver that has not loaded torch has it counted in a process of its own
while Ray starts: torch takes as long to import as Ray to start, and its memory would stay with the
driver for the whole run.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.study.facts import look_up_facts
from harness.study.own import is_own, recall
from harness.study.trials import EARLY_STEPS, Trial

if TYPE_CHECKING:
    from harness.cluster.work import Work

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a processor trains, everything around the sums included.

    Units:
        seconds of an optimizer step for each unit of `Work`.
    """

    flop: float
    narrow_flop: float
    odd_number: float
    parameter: float
    operation: float


PACES: Mapping[str, Pace] = {
    # Fitted to the steps of ten networks on images of 8, 28 and 32 pixels, one core of an AMD EPYC
    # with AVX-512. `python -m tests.benchmarks forecast` says how well they do.
    "cpu": Pace(
        flop=2.5e-11, narrow_flop=5e-10, odd_number=4.7e-9, parameter=5.5e-9, operation=6e-5
    ),
    # A large GPU on images of 32 pixels: an order of magnitude.
    "cuda": Pace(flop=1e-12, narrow_flop=5e-12, odd_number=2e-11, parameter=2e-11, operation=1e-5),
}

FORWARD_SHARE = 0.28
"""Of an optimizer step, its forward pass."""

PROBE_STEPS = 1.7
"""A reading of gradient flow, in optimizer steps on as many images."""

EVALUATION_BATCH = 512
SECONDS_PER_TRIAL = 0.05
"""What a trial costs however short it is: its network is built, its rows are written."""

START_UP = 8.0
"""Seconds ahead of the first trial: Ray's start, and that of workers, which import torch."""

LEAST_LIMIT = 1_200.0
"""Seconds that any trial may take; and a trial longer than that so many times its own."""

LIMIT_OF_MEASURED = 10
LIMIT_OF_GUESSED = 50


@dataclass(slots=True)
class _Record:
    """What some trials have taken; as cheap to add to and to ask whatever their number."""

    trials: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def note(self, seconds: float) -> None:
        self.trials += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)


class Forecast:
    """Seconds of work in a trial: the mean of its own cell's, where some have been trained.

    Elsewhere the rough model, scaled by what it was wrong by so far: with trials of the same pack
    size where there are some, for what packs save is known from finished ones alone.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._of_cell: dict[Trial, _Record] = defaultdict(_Record)
        self._under_way: dict[Trial, float] = {}  # by cell, until a trial of it is finished
        self._scales: dict[int, float] = {}  # by pack size, until another trial is finished

    def prepare(self, trials: Iterable[Trial]) -> None:
        """Begin to count the work behind a forecast for `trials`; returns at once."""
        cells = dict.fromkeys(map(_cell, trials))
        if not cells.keys() <= self._of_cell.keys():
            _begin_to_count([*cells, *self._of_cell])

    def find_mistakes(self, trials: Iterable[Trial]) -> list[str]:
        """What keeps users' own networks among `trials` from being trained; waits for the count.

        Where the data set does not lie here, nobody knows yet what its images are.
        """
        own = [
            trial
            for trial in dict.fromkeys(map(_network, trials))
            if is_own(trial.architecture) and not _look_up(trial.dataset).is_assumed
        ]
        _begin_to_count(own)
        counted = [_counts[trial].result()[trial] for trial in own]
        return list(dict.fromkeys(found for found in counted if isinstance(found, str)))

    def note(self, trial: Trial, seconds: float) -> None:
        """Learn from a finished trial."""
        self._of_cell[_cell(trial)].note(seconds)
        self._under_way.pop(_cell(trial), None)
        self._scales.clear()

    def note_pace(self, trial: Trial, seconds: float) -> None:
        """Learn from the epochs of a trial in training, until one of its cell is finished."""
        if (cell := _cell(trial)) not in self._of_cell:
            self._under_way[cell] = seconds
            self._scales.clear()

    def seconds(self, trial: Trial) -> float:
        """Seconds that the trial will take on one worker."""
        if known := self._of_cell.get(_cell(trial)):
            return known.seconds / known.trials
        if under_way := self._under_way.get(_cell(trial)):
            return under_way
        size = trial.pack_size
        if size not in self._scales:
            self._scales[size] = self._measure_scale(size)
        return self._scales[size] * guess_seconds(trial, self.device)

    def wall_time(
        self,
        trials: Iterable[Trial],
        workers: int,
        *,
        warm: bool = False,
        begun: Iterable[float] = (),
    ) -> float:
        """Seconds until so many workers, warm or yet to be started, will have trained them all.

        Units:
            begun: seconds that each training takes which has begun, and is not among the trials.
        """
        durations = [*map(self.seconds, trials), *begun]
        start_up = 0.0 if warm or not durations else START_UP
        return start_up + max(sum(durations) / workers, *durations, 0.0)

    def limit(self, trial: Trial) -> float:
        """Seconds after which the trial counts as hanging, rather than slow.

        Its own cell's slowest sets the measure where there is one, the rough model elsewhere. What
        a worker does once is inside: to import torch, to fetch a data set.
        """
        if known := self._of_cell.get(_cell(trial)):
            return LEAST_LIMIT + LIMIT_OF_MEASURED * known.slowest
        return LEAST_LIMIT + LIMIT_OF_GUESSED * self.seconds(trial)

    @property
    def basis(self) -> str:
        """What the numbers rest on, for whoever reads them."""
        known = sum(record.trials for record in self._of_cell.values())
        return f"from {known} finished trials" if known else "guessed from the size of the networks"

    def _measure_scale(self, pack_size: int) -> float:
        of_size = {c: known for c, known in self._of_cell.items() if c.pack_size == pack_size}
        known = (
            of_size
            or self._of_cell
            or {cell: _Record(1, seconds) for cell, seconds in self._under_way.items()}
        )
        guessed = sum(of.trials * guess_seconds(c, self.device) for c, of in known.items())
        return sum(of.seconds for of in known.values()) / guessed if known else 1.0


def guess_seconds(trial: Trial, device: str = "cpu") -> float:
    """Seconds of training on one worker, from the work of the network; within a factor of 3 or so."""
    return _guess(replace(_cell(trial), pack_size=1), device)


@cache
def _guess(trial: Trial, device: str) -> float:
    facts, pace = _look_up(trial.dataset), PACES[device]
    work = _await_work(trial)
    image = (
        pace.flop * work.flop
        + pace.narrow_flop * work.narrow_flop
        + pace.odd_number * work.odd_numbers
    )

    once = pace.parameter * work.parameters + pace.operation * work.operations

    def step(images: int) -> float:
        return once + image * images

    steps = _count_steps(trial)
    learners = 1 if trial.flow == "own" else 2  # the donor of the flow takes every step, too
    reading = PROBE_STEPS + (trial.snr_batches > 0)
    evaluated = facts.validation_images * trial.epochs + facts.test_images
    return (
        SECONDS_PER_TRIAL
        + learners * steps * step(trial.batch_size)
        + reading * _count_readings(trial, steps) * step(trial.probe_size)
        + FORWARD_SHARE * evaluated / EVALUATION_BATCH * step(EVALUATION_BATCH)
    )


def guess_bytes(trial: Trial) -> int:
    """Bytes of a trial's three files."""
    readings = _count_readings(trial, _count_steps(trial))
    return 30_000 + 100 * readings * trial.depth + 60 * trial.epochs


_look_up = cache(look_up_facts)  # a folder of pictures is counted once


def _count_steps(trial: Trial) -> int:
    images = trial.train_images or _look_up(trial.dataset).train_images
    return images // trial.batch_size * trial.epochs


def _count_readings(trial: Trial, steps: int) -> int:
    """Times at which gradient flow is measured."""
    return sum(step < steps for step in EARLY_STEPS) + trial.epochs


def _cell(trial: Trial) -> Trial:
    return replace(trial, seed=0)


# The work of networks, each counted once in the life of a process.

_NETWORK = [
    "dataset",
    "architecture",
    "architecture_digest",
    "program",
    "depth",
    "width_factor",
    "growth",
    "bottleneck",
    "norm",
    "norm_groups",
    "norm_affine",
    "final_norm",
    "activation",
    "memory_format",
]

_counter = ThreadPoolExecutor(1)
_counts: dict[Trial, Future[dict[Trial, Work | str]]] = {}
"""The work of a network, or why there can be none."""


def _network(trial: Trial) -> Trial:
    """What trials with one network have in common."""
    settings: dict[str, Any] = {name: getattr(trial, name) for name in _NETWORK}
    return Trial(placement="", seed=0, **settings)


def _begin_to_count(trials: Iterable[Trial]) -> None:
    new = [network for network in dict.fromkeys(map(_network, trials)) if network not in _counts]
    if new:
        count = _count_here if "torch" in sys.modules else _count_elsewhere
        _counts.update(dict.fromkeys(new, _counter.submit(count, new)))


def _await_work(trial: Trial) -> Work:
    from harness.cluster.work import Work  # noqa: PLC0415 - not for a mistake in the grid

    _begin_to_count([trial])
    network = _network(trial)
    counted = _counts[network].result()[network]
    return Work() if isinstance(counted, str) else counted  # who trains it is told why


def _count_here(networks: Sequence[Trial]) -> dict[Trial, Work | str]:
    from harness.cluster.work import count_or_explain  # noqa: PLC0415 - torch: not for a driver

    return {network: count_or_explain(network) for network in networks}


def _count_elsewhere(networks: Sequence[Trial]) -> dict[Trial, Work | str]:
    """The same without torch in this process; where that fails, networks count as small."""
    from harness.cluster.work import Work  # noqa: PLC0415 - nor for a mistake in the grid

    digests = dict.fromkeys(network.architecture_digest for network in networks)
    request = {
        "networks": [source for digest in digests if (source := recall(digest)) is not None],
        "trials": [asdict(network) for network in networks],
    }
    try:
        counted = subprocess.run(
            [sys.executable, "-m", "harness.cluster.work"],
            input=json.dumps(request),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            start_new_session=True,  # Ctrl-C is for the run
        )
        works = [
            found if isinstance(found, str) else Work(*found)
            for found in json.loads(counted.stdout)
        ]
        return dict(zip(networks, works, strict=True))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", "") or ""
        _log.warning("no forecast: %s %s", error, said)
        reason = (said.strip().splitlines() or [str(error)])[-1]
        return {
            network: f"{network.architecture} cannot be built: {reason}"
            if is_own(network.architecture)
            else Work()
            for network in networks
        }
