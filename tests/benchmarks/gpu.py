"""python -m tests.benchmarks.gpu [--minutes 8] [--json FILE] [--device cuda]

Images per second of one GPU: a loop over a DataLoader as one would write it, and what the harness
changes about it step by step (data on the device, the step as a graph, streams, packs, precisions),
beside what arithmetic and memory of this very machine would allow. The sides alternate, and the
script keeps to its minutes by itself. It needs torch and torchvision, and of the harness only what
trains. On a CPU it runs with tiny networks, to show that it runs.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from harness.study.trials import PROGRAMS, Trial
from harness.training.gradients import Probe
from harness.training.images import Batches, Images, Part
from harness.training.learner import CapturedSteps, Learner
from harness.training.networks import build_network, initialize
from harness.training.train import prepare_worker
from tests.benchmarks.ceilings import TORCHS_OWN, allow_tf32, count_work, measure_ceilings, wait
from tests.benchmarks.timing import describe_machine, show, write_json
from tests.benchmarks.tutorial import PictureDataset

LOOP, PLAIN = "DataLoader", "plain steps"
PRECISIONS = ("float32", "TF32", "bfloat16")
BASELINES = ((LOOP, TORCHS_OWN), (PLAIN, "float32"))
"""What everything is compared with: measured even where the time does not suffice."""
GRAPH = "graph"
PACKS = STREAMS = (5, 10)
"""Replicas side by side in one grouped network, and as branches of one graph."""

GOALS = {GRAPH: 4.0, "pack": 10.0}
"""Trials per hour of resnet-20, as multiples of plain steps, that this project wants from one H100."""

RECIPE_IMAGES, RECIPE_EPOCHS = 45_000, 200
"""Of the trial that trials per hour speak of, with a reading of gradient flow after each epoch."""

MINUTES = {"cuda": 8.0, "cpu": 0.5}
"""Of the whole measurement, by device, unless told otherwise."""

ROUNDS = 7
SECONDS_OF_TIMING = 0.4
"""Long against a clock's noise, short enough to alternate."""

WARM_UP_STEPS = 3
COMPARED_STEPS = 5
"""After which a learner that replays must have the bits of one that does not."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is: as in a study where there is a GPU, else as small as can be."""

    subjects: tuple[tuple[str, int], ...]
    batch_size: int
    side: int
    width: float
    train_images: int
    matrix: int
    copied: int
    workers: int


ON_GPU = Scale(
    subjects=(("resnet", 20), ("plain", 20), ("resnet", 56), ("vgg", 16), ("mlp", 8)),
    batch_size=128,
    side=32,
    width=1.0,
    train_images=12_800,
    matrix=8_192,
    copied=2**30,
    workers=8,
)
ON_CPU = Scale(
    subjects=(("resnet", 8), ("plain", 8), ("vgg", 11), ("mlp", 2)),
    batch_size=8,
    side=8,
    width=0.125,
    train_images=64,
    matrix=256,
    copied=2**20,
    workers=0,
)


@dataclass(slots=True)
class Side:
    """One way to train: a step takes `images` forward and backward, all replicas together."""

    name: str
    precision: str
    images: int
    step: Callable[[], object]
    steps: int = 1
    """Of one timing."""
    seconds: list[float] = field(default_factory=list)
    """Per step, one number a round."""

    @property
    def rate(self) -> float:
        """Images per second, the median of the rounds."""
        return self.images / statistics.median(self.seconds)


Maker = Callable[[], tuple[Callable[[], object], int]]
"""Makes a side: its step, and the replicas that one step trains."""


def measure_gpu(
    device: torch.device | None = None,
    minutes: float | None = None,
    *,
    tell: Callable[[str, dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Rows of every network and side; the ceilings; what was not measured, and why.

    `tell` hears of each network as soon as it is measured: a later one may end the process.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    until = time.monotonic() + 60 * (minutes or MINUTES[device.type])
    prepare_worker(threads=1)
    scale = ON_GPU if device.type == "cuda" else ON_CPU
    images = make_images(scale)
    ceilings = measure_ceilings(device, matrix=scale.matrix, copied=scale.copied)
    results: dict[str, Any] = {"device": str(device), "ceilings": ceilings, "rows": []}
    for done, (architecture, depth) in enumerate(scale.subjects):
        trial = Trial(
            architecture=architecture,
            placement="before",
            program=PROGRAMS[architecture]["before"],
            depth=depth,
            seed=0,
            width_factor=scale.width,
            batch_size=scale.batch_size,
            lr=0.01,
        )
        name = f"{architecture}-{depth} {scale.side}x{scale.side}"
        ends = time.monotonic() + (until - time.monotonic()) / (len(scale.subjects) - done)
        rows, results[name] = _measure_network(
            name, trial, images, device, scale, ceilings=ceilings, until=ends
        )
        results["rows"] += rows
        _give_memory_back(device)
        if tell:
            tell(name, results)
    return results


def _measure_network(
    name: str,
    trial: Trial,
    images: Images,
    device: torch.device,
    scale: Scale,
    *,
    ceilings: Mapping[str, float],
    until: float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, and what is told beside them; nothing that holds memory of the device."""
    work = count_work(trial, images, device)
    work["seconds of a reading"] = _time_reading(trial, images, device)
    try:
        same_bits = compare_bits(trial, images, device) if device.type == "cuda" else "needs CUDA"
    except RuntimeError as error:
        same_bits = _first_line(error)
    sides, gaps = _measure(trial, images, device, scale, until=until)
    return [_make_row(name, side, sides, work, ceilings) for side in sides], {
        "counted": work,
        "a graph leaves the bits of plain steps": same_bits,
        "not measured": gaps,
        "seconds per step": {f"{side.name}, {side.precision}": side.seconds for side in sides},
    }


def _give_memory_back(device: torch.device) -> None:
    """A network's graphs hold gigabytes each, and cycles of its modules keep them alive."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _measure(
    trial: Trial, images: Images, device: torch.device, scale: Scale, *, until: float
) -> tuple[list[Side], dict[str, str]]:
    """Make the sides ready in half of the time at most, and let them take turns in the rest."""
    halfway = (time.monotonic() + until) / 2
    sides: list[Side] = []
    gaps: dict[str, str] = {}
    for (name, precision), make in _list_sides(trial, images, device, scale).items():
        what = f"{name}, {precision}"
        if device.type != "cuda" and (GRAPH in name or precision == "TF32"):
            gaps[what] = "needs CUDA"
            continue
        if (name, precision) not in BASELINES and time.monotonic() > halfway:
            gaps[what] = "out of time"
            continue
        try:
            with allow_tf32(precision):
                step, replicas = make()
                side = Side(name, precision, trial.batch_size * replicas, step)
                _time(side, device, WARM_UP_STEPS)  # the first one records, where one does
        except RuntimeError as error:  # out of memory is one; so is a graph that cannot be recorded
            gaps[what] = _first_line(error)
            _give_memory_back(device)
            continue
        side.steps = max(1, round(SECONDS_OF_TIMING / _time(side, device, 2)))
        sides.append(side)
    for _ in range(ROUNDS):
        begun = time.monotonic()
        for side in sides:
            side.seconds.append(_time(side, device, side.steps))
        now = time.monotonic()
        if now + (now - begun) > until:  # another one would take too long
            break
    return sides, gaps


def _list_sides(
    trial: Trial, images: Images, device: torch.device, scale: Scale
) -> dict[tuple[str, str], Maker]:
    """How to make each side, by name and precision; a pack's step is a graph where there is CUDA.

    The loop comes last, because no thread may touch CUDA, as its loader's does, while a graph is
    recorded.
    """

    def pack(size: int, precision: str) -> Maker:
        packed = replace(trial, pack_size=size, precision=_own(precision))
        return lambda: _make_steps(packed, images, device)

    def streams(size: int, precision: str) -> Maker:
        alone = replace(trial, precision=_own(precision))
        return lambda: _make_streams(alone, images, device, size)

    sides: dict[tuple[str, str], Maker] = {}
    for precision in ("float32", "bfloat16"):
        plain = replace(trial, precision=precision)
        steps = partial(_make_steps, plain, images, device, captured=False)
        sides[PLAIN, precision] = steps
    for precision in PRECISIONS:
        sides[GRAPH, precision] = pack(1, precision)
        sides |= {(f"pack of {n}", precision): pack(n, precision) for n in PACKS}
    for precision in PRECISIONS:
        sides |= {(f"{GRAPH}, {n} streams", precision): streams(n, precision) for n in STREAMS}
    return sides | {(LOOP, TORCHS_OWN): lambda: _make_loop(trial, images, device, scale)}


def _own(precision: str) -> str:
    """The setting of a trial: TF32 is a switch of torch's beside it."""
    return "float32" if precision == "TF32" else precision


def _make_row(
    network: str,
    side: Side,
    sides: list[Side],
    work: Mapping[str, float],
    ceilings: Mapping[str, float],
) -> dict[str, Any]:
    exact = (TORCHS_OWN, "float32")  # plain steps in other precisions are sides like others
    rates = {other.name: other.rate for other in sides if other.precision in exact}
    unit = "TF32" if side.precision == TORCHS_OWN else side.precision
    moved = work["bfloat16 bytes" if unit == "bfloat16" else "bytes"]
    floor = max(work["FLOP"] / ceilings[f"{unit} FLOP/s"], moved / ceilings["bytes/s"])
    # The loop has its record of gradients already, at every step.
    reading = 0.0 if side.name == LOOP else work["seconds of a reading"]
    return {
        "network": network,
        "side": side.name,
        "precision": side.precision,
        "images/s": side.rate,
        f"x {LOOP}": side.rate / rates.get(LOOP, math.nan),
        f"x {PLAIN}": side.rate / rates.get(PLAIN, math.nan),
        "trials/h": 3_600 / (RECIPE_EPOCHS * (RECIPE_IMAGES / side.rate + reading)),
        "floor %": 100 * side.rate * floor,
        "rounds": len(side.seconds),
    }


def _time(side: Side, device: torch.device, steps: int) -> float:
    """Seconds per step."""
    wait(device)
    begun = time.perf_counter()
    for _ in range(steps):
        side.step()
    wait(device)
    return (time.perf_counter() - begun) / steps


def _time_reading(trial: Trial, images: Images, device: torch.device) -> float:
    """Seconds of a reading in one network; in a pack it takes each of its seeds less."""
    network = Learner([trial], images, device).network
    probe = Probe.on(images, network, trial, steps_per_epoch=RECIPE_IMAGES // trial.batch_size)
    side = Side("reading", trial.precision, trial.probe_size, lambda: probe.read(0))
    return statistics.median(_time(side, device, 2) for _ in range(5))


def make_images(scale: Scale) -> Images:
    """Noise: what is in the images makes no step longer or shorter."""
    generator = torch.Generator().manual_seed(0)
    shape = (scale.side, scale.side, 3)

    def make_part(count: int) -> Part:
        x_NHWC = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
        return Part(x_NHWC, torch.randint(10, (count,), generator=generator))

    return Images(
        name="noise",
        classes=10,
        train=make_part(scale.train_images),
        validation=make_part(16),
        test=make_part(16),
        mean_C=torch.full((3,), 127.5),
        std_C=torch.full((3,), 73.9),
    )


def _make_steps(
    trial: Trial, images: Images, device: torch.device, *, captured: bool = True
) -> tuple[Callable[[], object], int]:
    """The harness's own steps and batches, of a whole pack."""
    replicas = [replace(trial, seed=seed) for seed in trial.pack]
    learner = Learner(replicas, images, device, captured=captured)
    batches = _repeat(Batches(images, replicas, device))
    return lambda: learner.step(*next(batches), lr=trial.lr), len(replicas)


def _make_streams(
    trial: Trial, images: Images, device: torch.device, streams: int
) -> tuple[Callable[[], object], int]:
    """Several seeds, each a network of its own, as branches of one graph."""
    trials = [replace(trial, seed=seed) for seed in range(streams)]
    learners = [Learner([each], images, device) for each in trials]
    for learner in learners:
        learner.set_rate(trial.lr)
    batches = _repeat(Batches(images, trials, device))  # one gather for all of them

    def divide() -> list[tuple[Tensor, Tensor]]:
        x_BDHW, y_BR = next(batches)
        return list(zip(x_BDHW.chunk(streams, 1), y_BR.chunk(streams, 1), strict=True))

    # Laid out as each of them would have it alone; what is copied there may lie otherwise.
    layout = torch.channels_last
    first = [(x_BDHW.contiguous(memory_format=layout), y_BR) for x_BDHW, y_BR in divide()]
    record = CapturedSteps(learners, first)
    return lambda: (learners, record(divide())), streams


def _repeat(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from batches.epoch()


def _make_loop(
    trial: Trial, images: Images, device: torch.device, scale: Scale
) -> tuple[Callable[[], object], int]:
    """The loop of the tutorials: PIL images, worker processes, a record of each layer's gradient."""
    augmented = transforms.Compose(
        [
            transforms.RandomCrop(images.shape[1:], padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((images.mean_C / 255).tolist(), (images.std_C / 255).tolist()),
        ]
    )
    loader = DataLoader(
        PictureDataset(images.train, augmented),
        trial.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=scale.workers,
        persistent_workers=scale.workers > 0,
        pin_memory=device.type == "cuda",
    )

    def load() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = load()
    network = build_network(trial, images.shape, images.classes)
    initialize(network, [trial])
    network = network.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=trial.lr,
        momentum=trial.momentum,
        weight_decay=trial.weight_decay,
        nesterov=True,
    )
    record: list[float] = []

    def step() -> None:
        x, y = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with allow_tf32(TORCHS_OWN):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x)[:, 0], y)
            loss.backward()
        record[:] = [
            parameter.grad.abs().mean().item()
            for parameter in network.parameters()
            if parameter.ndim > 1 and parameter.grad is not None
        ]
        optimizer.step()
        record.append(loss.item())

    return step, 1


def compare_bits(trial: Trial, images: Images, device: torch.device) -> bool:
    """Does a learner that replays a graph come to where one that does not comes to?"""
    learners = [Learner([trial], images, device, captured=captured) for captured in (True, False)]
    for learner in learners:
        batches = _repeat(Batches(images, [trial], device))
        for _ in range(COMPARED_STEPS):
            learner.step(*next(batches), lr=trial.lr)
    return all(map(torch.equal, *(list(learner.written()) for learner in learners)))


def describe_goals(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What became of the goals, in float32 as studies train: a graph alone, and the best pack."""
    network = rows[0]["network"] if rows else ""
    own = {
        r["side"]: r["trials/h"]
        for r in rows
        if (r["network"], r["precision"]) == (network, "float32")
    }
    for word, goal in GOALS.items():
        known = [name for name in own if name == word or name.startswith(f"{word} of")]
        best = max(known, key=own.__getitem__, default="")
        if best and PLAIN in own:
            times = own[best] / own[PLAIN]
            verdict = "reached" if times >= goal else "missed"
            yield f"goal {verdict}: {network}: {best} {times:.1f} times {PLAIN}, wanted {goal:g}"


def main() -> None:
    """Measure, print a table, and keep every round in the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", type=torch.device)
    options = parser.parse_args()
    machine = describe_machine() | {
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": torch.backends.cudnn.version(),
    }
    print("  ".join(f"{key} {value}" for key, value in machine.items() if value))
    recipe = f"{RECIPE_EPOCHS} epochs of {RECIPE_IMAGES:,} images"

    def tell(network: str, results: dict[str, Any]) -> None:
        if options.json:
            write_json(options.json, {"machine": machine, **results})
        rows = [row for row in results["rows"] if row["network"] == network]
        if rows:
            show(f"trials of {recipe}, a reading after each, no evaluation", rows)
        told = results[network]
        gaps = ", ".join(f"{what} ({why})" for what, why in told["not measured"].items())
        same = told["a graph leaves the bits of plain steps"]
        print(
            f"{network}: a graph leaves the bits of plain steps: {same}; left out: {gaps or None}"
        )

    begun = time.monotonic()
    results = measure_gpu(options.device, options.minutes, tell=tell)
    print("  ".join(f"{name} {value:.3g}" for name, value in results["ceilings"].items()))
    for line in describe_goals(results["rows"]):
        print(line)
    print(f"took {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
