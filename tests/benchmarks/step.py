"""Where the time of a step goes at real sizes, and what keeping freed memory saves of it.

Two processes train the same network in turn: one keeps what it frees, one returns it to the system.
Times are those of the processor, because other processes on the machine do not add to them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from harness.training.images import Batches
from harness.training.learner import Learner
from harness.training.train import EVALUATION_BATCH, Evaluation, prepare_worker
from tests.benchmarks.ceilings import count_work, measure_ceilings
from tests.benchmarks.trial import Subject, make_images

CPU = torch.device("cpu")
SUBJECTS = tuple(
    Subject(architecture, depth, width_factor, side)
    for architecture, depth in (("resnet", 8), ("resnet", 20))
    for width_factor in (0.5, 1.0)
    for side in (28, 32)
)
ACTS = ("step", "bare convs", "evaluation")


def measure_steps(*, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a step and its shares, and what kept memory gains for it and an evaluation."""
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, initializer=prepare_worker, initargs=(1,)) as keeps,
        ProcessPoolExecutor(1, spawn, initializer=torch.set_num_threads, initargs=(1,)) as returns,
    ):
        pace = keeps.submit(_measure_pace).result()
        rows: list[dict[str, Any]] = []
        for subject in SUBJECTS:
            seconds: dict[tuple[str, str], list[float]] = {}
            for _ in range(1 + repeats):
                for side, worker in (("keeps", keeps), ("returns", returns)):
                    for act in ACTS:
                        took = worker.submit(_time, subject, act).result()
                        seconds.setdefault((side, act), []).append(took)
            # The first turn of each is for warming up.
            took = {key: statistics.median(of_key[1:]) for key, of_key in seconds.items()}
            flop = keeps.submit(_count_flop, subject).result()
            rows.append(
                {
                    "network": subject.name,
                    "step ms": 1e3 * took["keeps", "step"],
                    "in bare convs %": 100 * took["keeps", "bare convs"] / took["keeps", "step"],
                    "of the arithmetic %": 100 * flop / pace / took["keeps", "step"],
                    "step x": took["returns", "step"] / took["keeps", "step"],
                    "evaluation x": took["returns", "evaluation"] / took["keeps", "evaluation"],
                }
            )
    return rows


def _measure_pace() -> float:
    return measure_ceilings(CPU, matrix=1_024, copied=2**20, clock=time.process_time)[
        "float32 FLOP/s"
    ]


def _count_flop(subject: Subject) -> float:
    trial = subject.trial
    work = count_work(trial, make_images(subject.side, trial.batch_size), CPU)
    return trial.batch_size * work["FLOP"]


def _time(subject: Subject, act: str) -> float:
    acts = _prepare(subject)
    begun = time.process_time()
    acts[act]()
    return time.process_time() - begun


@cache
def _prepare(subject: Subject) -> dict[str, Callable[[], object]]:
    trial = replace(subject.trial, augmentation="none")
    images = make_images(subject.side, EVALUATION_BATCH)
    learner = Learner([trial], images, CPU)
    batch = next(iter(Batches(images, [trial], CPU).epoch()))
    evaluate = Evaluation(images, trial, CPU)
    passes = _find_convs(learner.network, batch[0])
    return {
        "step": lambda: learner.step(*batch, lr=0.01),
        "bare convs": lambda: [run() for run in passes],
        "evaluation": lambda: evaluate(learner.network, images.train),
    }


def _find_convs(network: nn.Module, x_NDHW: Tensor) -> list[Callable[[], object]]:
    """Forward and backward of each convolution alone, on tensors of the shapes it meets."""
    passes: list[Callable[[], object]] = []

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], y_NDHW: Tensor) -> None:
        x_NDHW = inputs[0].detach().requires_grad_(inputs[0].requires_grad)
        grad_NDHW = torch.randn_like(y_NDHW)
        wanted = [x for x in (x_NDHW, *conv.parameters()) if x.requires_grad]
        passes.append(lambda: torch.autograd.grad(conv(x_NDHW), wanted, grad_NDHW))

    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    handles = [conv.register_forward_hook(note) for conv in convs]
    network(x_NDHW)
    for handle in handles:
        handle.remove()
    return passes
