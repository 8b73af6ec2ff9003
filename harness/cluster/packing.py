"""How many seeds train at a time as one network: kept as it was, or measured where nothing is known.

Pack size is part of a trial, so all arms of a network have one, and a folder keeps what it began
with: the same command again finds its trials finished.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.study import zoo
from harness.study.errors import GridError
from harness.study.trials import Trial
from harness.study.wording import format_count

if TYPE_CHECKING:
    import torch

    from harness.training.images import Images

Network = tuple[str, str, int, float]
"""(data set, architecture, depth, width factor): what the arms that are compared have in common."""

SIZES = (1, 2, 5, 10)

LEAST_GAIN = 0.1
"""Share of the time that packs must save: their seeds differ in the last bits from those alone."""

WARM_UP_STEPS = 2
STEPS, ROUNDS = 4, 3
"""Steps that are timed in one go, and how often; the fastest counts, for others only disturb."""


Probe = Callable[[list[tuple[Trial, list[int]]]], list[dict[int, float]]]
"""Times trials at pack sizes where they would be trained, as `time_packs` does."""


def settle_packs(
    trials: Sequence[Trial], planned: Iterable[Trial], probe: Probe | None
) -> tuple[tuple[Trial, ...], list[str]]:
    """The trials with their pack sizes, and for each network a line that says which and why.

    A network keeps the size that it was `planned` with. Without a `probe` others stay as they are.

    Raises:
        GridError: the seeds have become others, which do not fill the packs that were planned.
    """
    sizes = find_sizes(trials, planned)
    lines = [f"{describe_size(network, size)}, as before" for network, size in sizes.items()]
    groups = group_by_network(trials)
    cells = [
        (group[0], list_sizes(group)) for network, group in groups.items() if network not in sizes
    ]
    if cells and probe is None:
        networks = ", ".join(_say(network_of(trial)) for trial, _ in cells)
        lines.append(f"seeds at a time still to be measured: {networks}")
    elif cells and probe is not None:
        for (trial, _), seconds in zip(cells, probe(cells), strict=True):
            network = network_of(trial)
            sizes[network] = choose_size(seconds)
            lines.append(describe_choice(network, seconds))
    return apply_sizes(trials, sizes), lines


def network_of(trial: Trial) -> Network:
    """The network that the trial is an arm of."""
    return trial.dataset, trial.architecture, trial.depth, trial.width_factor


def list_sizes(trials: Iterable[Trial]) -> list[int]:
    """The pack sizes that these trials' seeds fill: no seed is trained that nobody asked for.

    All of them together count as well, if they are few: 3 seeds fill no pack of 2.
    """
    asked = list(trials)
    seeds = {trial.seed for trial in asked}
    if any(trial.architecture in zoo.PROGRAMS for trial in asked):
        return [1]  # torchvision's layers have no groups to spare for replicas
    sizes = sorted({*SIZES, min(len(seeds), max(SIZES))})
    firsts = {size: {seed - seed % size for seed in seeds} for size in sizes}
    return [size for size in sizes if len(firsts[size]) * size == len(seeds)]


def choose_size(seconds: Mapping[int, float]) -> int:
    """The pack size that takes the least time per seed; 1 unless another saves `LEAST_GAIN`.

    Units:
        seconds: per seed, by pack size.

    >>> choose_size({1: 1.0, 2: 0.8, 5: 0.6})
    5
    >>> choose_size({1: 1.0, 2: 0.95})
    1
    """
    best = min(seconds, key=lambda size: (seconds[size], size))
    return best if seconds[best] <= (1 - LEAST_GAIN) * seconds[1] else 1


def find_sizes(trials: Iterable[Trial], planned: Iterable[Trial]) -> dict[Network, int]:
    """The pack size of each network of which trials, with one or another, were planned before.

    Raises:
        GridError: the seeds have become others, which do not fill those packs.
    """
    asked = list(trials)
    cells = {_cell(trial) for trial in asked}
    sizes = {network_of(trial): trial.pack_size for trial in planned if _cell(trial) in cells}
    mistakes = [
        f"{_say(network)} was begun with {sizes[network]} seeds at a time, which the seeds asked for "
        "do not fill; ask for others with --seeds, or train in another folder with --results"
        for network, group in group_by_network(asked).items()
        if network in sizes and sizes[network] not in list_sizes(group)
    ]
    if mistakes:
        raise GridError(mistakes)
    return sizes


def apply_sizes(trials: Iterable[Trial], sizes: Mapping[Network, int]) -> tuple[Trial, ...]:
    """The trials as they are with these pack sizes; as they were, where none is given."""
    return tuple(
        replace(trial, pack_size=sizes.get(network_of(trial), trial.pack_size)) for trial in trials
    )


def group_by_network(trials: Iterable[Trial]) -> dict[Network, list[Trial]]:
    """The trials of each network, in their order."""
    groups: dict[Network, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(network_of(trial), []).append(trial)
    return groups


def describe_choice(network: Network, seconds: Mapping[int, float]) -> str:
    """What was picked for a network, and why.

    >>> describe_choice(("digits", "mlp", 2, 1.0), {1: 0.002, 5: 0.001})
    'digits mlp-2: 5 seeds at a time; ms a step and seed: 1: 2.00, 5: 1.00'
    >>> describe_choice(("digits", "mlp", 2, 0.5), {1: 0.002, 5: 0.0019})
    'digits mlp-2 (width 0.5): 1 seed at a time, more would not save 10%; ms a step and seed: 1: 2.00, 5: 1.90'
    """
    size = choose_size(seconds)
    why = f", more would not save {LEAST_GAIN:.0%}" if size == 1 and len(seconds) > 1 else ""
    times = ", ".join(
        f"{of}: {'too large' if math.isinf(taken) else f'{1e3 * taken:.2f}'}"
        for of, taken in seconds.items()
    )
    return f"{describe_size(network, size)}{why}; ms a step and seed: {times}"


def describe_size(network: Network, size: int) -> str:
    """'digits mlp-2: 5 seeds at a time'."""
    return f"{_say(network)}: {format_count(size, 'seed')} at a time"


def time_packs(
    cells: Sequence[tuple[Trial, Sequence[int]]], on_gpu: bool
) -> list[dict[int, float]]:
    """Time a few steps of each trial at each of its pack sizes, on the device it would train on.

    Units:
        seconds per step and seed; infinity where the device's memory is too small.
    Raises:
        DataError: a data set is absent and cannot be fetched.
    """
    import torch  # noqa: PLC0415  only workers pay for it

    from harness.training.images import load_images  # noqa: PLC0415  needs torch
    from harness.training.train import prepare_worker  # noqa: PLC0415  the same

    device = torch.device("cuda" if on_gpu else "cpu")
    timed: list[dict[int, float]] = []
    for trial, sizes in cells:
        prepare_worker(trial.threads)
        images = load_images(trial.dataset, fetch=True)
        seconds = dict.fromkeys(sizes, math.inf)
        for size in sizes:
            try:
                seconds[size] = _time_step(trial, size, images, device) / size
            except torch.OutOfMemoryError:  # and larger ones would not fit either
                break
        timed.append(seconds)
    return timed


def _time_step(trial: Trial, size: int, images: Images, device: torch.device) -> float:
    import torch  # noqa: PLC0415  as above

    from harness.training.images import Batches  # noqa: PLC0415
    from harness.training.train import Learner  # noqa: PLC0415

    replicas = [replace(trial, seed=seed, pack_size=size) for seed in range(size)]
    learner = Learner(replicas, images, device)
    batch = next(Batches(images, replicas, device).epoch())
    fastest = math.inf
    for count in (WARM_UP_STEPS, *[STEPS] * ROUNDS):
        begun = time.perf_counter()
        for _ in range(count):
            learner.step(*batch, lr=0.0)  # stays where it is, and cannot diverge
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if count == STEPS:
            fastest = min(fastest, (time.perf_counter() - begun) / STEPS)
    return fastest


def _cell(trial: Trial) -> Trial:
    """What stays of a trial when its seed and its pack size are left open."""
    return replace(trial, seed=0, pack_size=1)


def _say(network: Network) -> str:
    dataset, architecture, depth, width = network
    return f"{dataset} {architecture}-{depth}" + (f" (width {width:g})" if width != 1 else "")
