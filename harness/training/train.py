"""Train one pack of trials from its first batch to its last; returns rows, writes no results.

A pack is R seeds of one cell, trained as one network of R replicas; usually it is a single seed.
Needs torch and the standard library only, so that it runs where nothing else is installed.

Shapes (letters of this module):
    B images of a batch, R replicas, D = R*C channels, S steps of an epoch, N images of a part
"""

from __future__ import annotations

import ctypes
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.study.records import EpochRow, Outcome, TrialRow, TrialRows
from harness.study.trials import Trial
from harness.training.checkpoints import Checkpoint
from harness.training.folding import measure_folding
from harness.training.gradients import Probe
from harness.training.images import Batches, Images, Normalize, Part
from harness.training.learner import Learner
from harness.training.networks import Network
from harness.training.optimizers import make_schedule
from harness.training.provenance import describe
from harness.training.quality import Quality, examine

EVALUATION_BATCH = 512
"""Images per forward pass of an evaluation: fixed, because another size may choose other kernels."""


def prepare_worker(threads: int) -> None:
    """Set, once per process, the flags that decide the bits of every trial, and keep its memory."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next tensor, where it can be told to.

    Left to itself, glibc returns activations to the system and gets them back page by page, each
    one zeroed by the kernel, in every step. This changes no bits.

    Source:
        The parameters of mallopt(3): M_MMAP_MAX and M_TRIM_THRESHOLD, the values of glibc's malloc.h.
    """
    mmap_max, trim_threshold = -4, -1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def train_pack(
    trials: Sequence[Trial],
    images: Images,
    *,
    device: torch.device,
    attempt: int = 1,
    run: str = "",
    checkpoint: Checkpoint | None = None,
    captured: bool = True,
    tell: Callable[[Sequence[EpochRow]], None] | None = None,
) -> list[TrialRows]:
    """Train the pack that `trials` belong to and return the rows of each of them, in their order.

    Trains the whole pack even if `trials` are only some of it: the sums of a grouped network
    depend on how many groups there are. Resumes from `checkpoint` if it holds one; the rows then
    equal, bit for bit, those of an uninterrupted run. On a GPU steps are `captured` unless told
    otherwise, which is faster and gives the same rows. After each epoch `tell` is given its row for
    each replica whose loss is still finite; it must return at once.

    Raises:
        DataError: the training images are fewer than one batch, or than `train_images`.
    """
    trial = trials[0]
    replicas = [replace(trial, seed=seed) for seed in trial.pack]
    assert all(asked in replicas for asked in trials), "trials of one pack differ only in seed"
    started = datetime.now(UTC)

    batches = Batches(images, replicas, device)
    learner = Learner(replicas, images, device, captured=captured)
    network = learner.network
    schedule = make_schedule(trial, batches.steps)
    probe = Probe.on(images, network, trial, steps_per_epoch=batches.steps)
    evaluate = Evaluation(images, trial, device)
    clock = Clock(device)
    ledger = Ledger(len(replicas), batches.steps, trial.batch_size, device)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of earlier trials in this process

    resumable = (learner, batches, probe, ledger, clock)
    epoch = 0 if checkpoint is None else checkpoint.resume(resumable)
    step = epoch * batches.steps
    if step == 0:
        with clock.probing():
            probe.read(step)
    while epoch < trial.epochs and not ledger.all_diverged():
        clock.start_epoch()
        network.train()
        for x_BDHW, y_BR in batches.epoch():
            if probe.is_due(step + 1):
                probe.remember_weights()
            loss_R, hits_R = learner.step(x_BDHW, y_BR, lr=schedule[step])
            step += 1
            ledger.note_step(loss_R, hits_R)
            if probe.is_due(step):
                with clock.probing():
                    probe.read(step)
        validation = evaluate(network, images.validation)
        ledger.close_epoch(validation, lr=schedule[step - 1], seconds=clock.end_epoch())
        epoch += 1
        if tell is not None:
            tell(ledger.last_rows(replicas))
        if checkpoint is not None:
            checkpoint.keep(resumable, epoch)
    test = evaluate(network, images.test)
    qualities = examine(
        torch.cat(test.logits),
        test.correct_NR,
        images.test.y_N.to(device),
        measure_folding(network, probe.x_NDHW),
    )
    wall_time, probe_time = clock.stop()

    parameters = sum(parameter.numel() for parameter in network.parameters()) // len(replicas)
    provenance = describe(device, started=started, attempt=attempt, run=run)
    rows: list[TrialRows] = []
    for asked in trials:
        replica = replicas.index(asked)
        outcome = Outcome(
            **ledger.outcome(replica, test, qualities[replica]),
            parameters=parameters,
            wall_time=wall_time / len(replicas),
            probe_time=probe_time / len(replicas),
            peak_memory=_peak_memory(device),
        )
        columns = asdict(asked) | asdict(outcome) | asdict(provenance)
        rows.append(
            TrialRows(
                trial=TrialRow(trial_id=asked.id, arm=asked.arm, **columns),
                epochs=ledger.epoch_rows(replica, asked.id),
                gradients=probe.rows(replica, asked.id, until=ledger.diverged_at[replica]),
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Score:
    """One evaluation's result, on the device: loss_R, the mean over the part, and correct_NR."""

    loss_R: Tensor
    correct_NR: Tensor
    logits: tuple[Tensor, ...]
    """y_BRK of each batch, as the network put them out: only the last evaluation joins them."""


class Evaluation:
    """Scores a network on a whole part, BN in evaluation mode, every replica on the same images."""

    def __init__(self, images: Images, trial: Trial, device: torch.device) -> None:
        self._normalize = Normalize(images, trial, device)
        self._device = device
        self._autocast = trial.precision == "bfloat16"

    @torch.no_grad()
    def __call__(self, network: Network, part: Part) -> Score:
        network.eval()
        losses_R: list[Tensor] = []
        correct_BR: list[Tensor] = []
        logits: list[Tensor] = []
        x_NHWC, y_N = part.x_NHWC.to(self._device), part.y_N.to(self._device)  # one wait, not many
        batches = zip(x_NHWC.split(EVALUATION_BATCH), y_N.split(EVALUATION_BATCH), strict=True)
        for x_BHWC, y_B in batches:
            x_BRHWC = x_BHWC[:, None].expand(-1, network.replicas, *x_BHWC.shape[1:])
            y_BR = y_B[:, None].expand(-1, network.replicas)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                y_BRK = network(self._normalize(x_BRHWC)).float()
            loss_BR = functional.cross_entropy(
                y_BRK.flatten(0, 1), y_BR.flatten(), reduction="none"
            ).view_as(y_BR)
            losses_R.append(loss_BR.sum(0))
            correct_BR.append(y_BRK.argmax(-1) == y_BR)
            logits.append(y_BRK)
        loss_R = torch.stack(losses_R).sum(0) / len(part)
        return Score(loss_R, torch.cat(correct_BR), tuple(logits))


class Ledger:
    """Losses and hits of every step, read from the device once an epoch.

    A replica whose loss turns non-finite has diverged at that step: its earlier records stay, it
    gets no more, and the other replicas of the pack continue.
    """

    def __init__(self, replicas: int, steps: int, batch_size: int, device: torch.device) -> None:
        self.diverged_at: list[int | None] = [None] * replicas
        self._loss_SR = torch.zeros(steps, replicas, device=device)
        self._hits_SR = torch.zeros(steps, replicas, dtype=torch.int64, device=device)
        self._batch_size = batch_size
        self._steps = 0
        self._epochs: list[list[dict[str, Any]]] = [[] for _ in range(replicas)]

    def state(self) -> list[Any]:
        return [self.diverged_at, self._steps, self._epochs]

    def restore(self, state: list[Any]) -> None:
        self.diverged_at, self._steps, self._epochs = state

    def note_step(self, loss_R: Tensor, hits_R: Tensor) -> None:
        at = self._steps % len(self._loss_SR)
        self._loss_SR[at] = loss_R
        self._hits_SR[at] = hits_R
        self._steps += 1

    def close_epoch(self, validation: Score, *, lr: float, seconds: float) -> None:
        """Turn the epoch's steps into one record per replica that is still finite."""
        steps, replicas = self._loss_SR.shape
        bad_SR = ~self._loss_SR.isfinite()
        columns = torch.stack(
            [
                self._loss_SR.mean(0).double(),
                self._hits_SR.sum(0).double() / (steps * self._batch_size),
                validation.loss_R.double(),
                validation.correct_NR.double().mean(0),
                # The first step with a bad loss; `steps` if only the evaluation was bad.
                torch.cat([bad_SR, torch.ones_like(bad_SR[:1])]).double().argmax(0).double(),
            ]
        ).T.tolist()
        for replica, (train_loss, train_accuracy, loss, accuracy, first_bad) in enumerate(columns):
            if self.diverged_at[replica] is not None:
                continue
            if not (math.isfinite(train_loss) and math.isfinite(loss)):
                self.diverged_at[replica] = self._steps - steps + int(first_bad)
                continue
            self._epochs[replica].append(
                {
                    "epoch": self._steps // steps,
                    "step": self._steps,
                    "lr": lr,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "validation_loss": loss,
                    "validation_accuracy": accuracy,
                    "wall_time": seconds / replicas,
                }
            )

    def all_diverged(self) -> bool:
        return all(step is not None for step in self.diverged_at)

    def epoch_rows(self, replica: int, trial_id: str) -> tuple[EpochRow, ...]:
        return tuple(EpochRow(trial_id=trial_id, **epoch) for epoch in self._epochs[replica])

    def last_rows(self, replicas: Sequence[Trial]) -> list[EpochRow]:
        """The epoch just closed, of the replicas that are still finite."""
        return [
            EpochRow(trial_id=replica.id, **epochs[-1])
            for replica, epochs, at in zip(replicas, self._epochs, self.diverged_at, strict=True)
            if at is None
        ]

    def outcome(self, replica: int, test: Score, quality: Quality) -> dict[str, Any]:
        """The columns of `Outcome` that exist only where the losses stayed finite."""
        epochs = self._epochs[replica]
        test_loss = float(test.loss_R[replica])
        if self.diverged_at[replica] is None and not math.isfinite(test_loss):
            self.diverged_at[replica] = self._steps
        diverged_at = self.diverged_at[replica]
        diverged = diverged_at is not None
        last = {} if diverged else epochs[-1]
        correct_N = test.correct_NR[:, replica]
        return {
            "status": "diverged" if diverged else "done",
            "epochs_trained": len(epochs),
            "steps": diverged_at if diverged else self._steps,
            **{
                name: last.get(name, math.nan)
                for name in (
                    "train_loss",
                    "train_accuracy",
                    "validation_loss",
                    "validation_accuracy",
                )
            },
            "test_loss": math.nan if diverged else test_loss,
            "test_accuracy": math.nan if diverged else float(correct_N.double().mean()),
            "test_correct": b"" if diverged else _pack_bits(correct_N),
            **asdict(Quality() if diverged else quality),
        }


class Clock:
    """Times a pack and its probe; on a GPU with events, so that it never waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = self._epoch_begun = time.perf_counter()
        self._probed = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def state(self) -> list[float]:
        return [time.perf_counter() - self._begun, self._measure_probe()]

    def restore(self, state: list[float]) -> None:
        elapsed, self._probed = state
        self._begun = time.perf_counter() - elapsed

    @contextmanager
    def probing(self) -> Iterator[None]:
        if self._device.type == "cuda":
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
        else:
            begun = time.perf_counter()
            yield
            self._probed += time.perf_counter() - begun

    def start_epoch(self) -> None:
        self._epoch_begun = time.perf_counter()

    def end_epoch(self) -> float:
        self._wait()
        return time.perf_counter() - self._epoch_begun

    def stop(self) -> tuple[float, float]:
        """Total seconds, and seconds spent in the probe."""
        self._wait()
        return time.perf_counter() - self._begun, self._measure_probe()

    def _measure_probe(self) -> float:
        return self._probed + sum(start.elapsed_time(end) for start, end in self._events) / 1e3

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _pack_bits(correct_N: Tensor) -> bytes:
    """One bit per image, most significant first, the last byte padded with zeros."""
    bits = functional.pad(correct_N.to(torch.uint8), (0, -len(correct_N) % 8)).unflatten(0, (-1, 8))
    place = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return bytes((bits * place).sum(1).tolist())


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
