"""Train a network batch by batch, with the update sizes of a donor where the trial names one.

On a GPU a step is a CUDA graph, recorded once and then replayed. A step of a small network is
hundreds of kernels of a few microseconds each: Python takes longer to launch one than a GPU takes
to run it. A graph launches them all at once. Kernels, operands and order stay the same, so that a
replayed step gives the same bits as an eager one.

Shapes (letters of this module):
    B images of a batch, R replicas, D = R*C channels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.study.trials import Trial
from harness.training.images import Images
from harness.training.networks import build_network, initialize
from harness.training.optimizers import grafted_updates, make_optimizer, set_rate

Batch = tuple[Tensor, Tensor]
"""(x_BDHW, y_BR) of one learner."""

StepScore = tuple[Tensor, Tensor]
"""(loss_R, hits_R) of its step."""

WARM_UP_STEPS = 3
"""Eager steps before recording, in which libraries choose kernels and allocate memory."""


class Learner:
    """A network with its optimizer, and its donor where the trial borrows update sizes.

    On a GPU the first step is recorded together with the donor's, and every step replays it.
    """

    def __init__(
        self,
        replicas: Sequence[Trial],
        images: Images,
        device: torch.device,
        *,
        captured: bool = True,
    ) -> None:
        self._trial = trial = replicas[0]
        network = build_network(trial, images.shape, images.classes, replicas=len(replicas))
        initialize(network, replicas)
        network = network.to(device)
        if trial.memory_format == "channels_last":
            network = network.to(memory_format=torch.channels_last)
        self.network = network
        # The probe's hooks stay on the network itself; compiled, it shares every weight with it.
        self._forward = torch.compile(network) if trial.compile else network
        on_gpu = device.type == "cuda"
        # The same optimizer whether captured or not, so that both give the same bits.
        self._optimizer = make_optimizer(network, trial, capturable=on_gpu)
        self._donor = None
        if trial.flow != "own":
            donors = [replica.donor for replica in replicas]
            self._donor = Learner(donors, images, device)
            self._donor_rate = donors[0].lr / trial.lr
        # A network compiled by torch.compile launches its kernels in its own way.
        self._is_captured = captured and on_gpu and not trial.compile
        self._record: CapturedSteps | None = None

    def state(self) -> list[Any]:
        donor = self._donor.state() if self._donor else None
        return [self.network.state_dict(), self._optimizer.state_dict()["state"], donor]

    def restore(self, state: list[Any]) -> None:
        network, averages, donor = state
        self.network.load_state_dict(network)
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": averages})
        self._record = None  # the optimizer's averages are in other memory now
        if self._donor:
            self._donor.restore(donor)

    def step(self, x_BDHW: Tensor, y_BR: Tensor, *, lr: float) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns the mean loss and the number of hits of each replica.

        Both are overwritten by the next step where it is captured.
        """
        self.set_rate(lr)
        if not self._is_captured:
            return self.take_step(x_BDHW, y_BR)
        if self._record is None:
            self._record = CapturedSteps([self], [(x_BDHW, y_BR)])
        (score,) = self._record([(x_BDHW, y_BR)])
        return score

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of the next step to `lr`, and the donor's in proportion."""
        set_rate(self._optimizer, lr)
        if self._donor:  # its schedule has the same shape but its own peak
            self._donor.set_rate(lr * self._donor_rate)

    def take_step(self, x_BDHW: Tensor, y_BR: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step eagerly, kernel by kernel."""
        bfloat16 = self._trial.precision == "bfloat16"
        with torch.autocast(x_BDHW.device.type, torch.bfloat16, enabled=bfloat16):
            y_BRK = self._forward(x_BDHW)
        loss_BR = functional.cross_entropy(
            y_BRK.float().flatten(0, 1),
            y_BR.flatten(),
            reduction="none",
            label_smoothing=self._trial.label_smoothing,
        ).view_as(y_BR)
        loss_R = loss_BR.mean(0)
        self._optimizer.zero_grad(set_to_none=True)
        loss_R.sum().backward()  # replicas share no weight: the sum keeps their gradients apart
        if self._donor is None:
            self._optimizer.step()
        else:
            with grafted_updates(self.network, self._donor.network):
                self._optimizer.step()
                self._donor.take_step(x_BDHW, y_BR)
        return loss_R.detach(), (y_BRK.argmax(-1) == y_BR).sum(0)

    def written(self) -> Iterator[Tensor]:
        """Every tensor that a step changes and the next one reads.

        These are the weights, the statistics of norms, and the optimizer's averages and counts.
        """
        yield from self.network.parameters()
        yield from self.network.buffers()
        for of_parameter in self._optimizer.state.values():
            yield from of_parameter.values()
        if self._donor:
            yield from self._donor.written()


class CapturedSteps:
    """One step of several learners at once, as parallel branches of one graph.

    Learners share nothing: each branch has its own stream and memory, so that each learner gets
    the bits it would get alone. Recording leaves the learners' state unchanged.

    Limits: shapes are those of the first batches; a learner's tensors must stay in place: no
    weight, buffer or average may be replaced by another tensor.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture; branches: CUDA C++
        Programming Guide, "Cross-stream Dependencies and Events".
    """

    def __init__(self, learners: Sequence[Learner], batches: Sequence[Batch]) -> None:
        self._inputs = [(x_BDHW.clone(), y_BR.clone()) for x_BDHW, y_BR in batches]
        streams = _streams(len(learners), self._inputs[0][0].device)
        caller = torch.cuda.current_stream()
        with left_as_found(tensor for learner in learners for tensor in learner.written()):
            streams[0].wait_stream(caller)
            for _ in range(WARM_UP_STEPS):
                self._step_side_by_side(learners, streams)
            caller.wait_stream(streams[0])
        self._graph = torch.cuda.CUDAGraph()
        # Recording runs nothing. The gradients it allocates are in the graph's own memory from now
        # on, and every replay overwrites them.
        with torch.cuda.graph(self._graph, stream=streams[0]):
            self._outputs = self._step_side_by_side(learners, streams)

    def __call__(self, batches: Sequence[Batch]) -> list[StepScore]:
        """Take one step of each learner; the next call overwrites the tensors returned."""
        for inputs, batch in zip(self._inputs, batches, strict=True):
            for into, tensor in zip(inputs, batch, strict=True):
                into.copy_(tensor)
        self._graph.replay()
        return self._outputs

    def _step_side_by_side(
        self, learners: Sequence[Learner], streams: Sequence[torch.cuda.Stream]
    ) -> list[StepScore]:
        first, *others = streams
        for stream in others:
            stream.wait_stream(first)
        outputs: list[StepScore] = []
        try:
            for learner, (x_BDHW, y_BR), stream in zip(
                learners, self._inputs, streams, strict=True
            ):
                with torch.cuda.stream(stream):
                    outputs.append(learner.take_step(x_BDHW, y_BR))
        finally:  # a branch left open would hide what went wrong in another
            for stream in others:
                first.wait_stream(stream)
        return outputs


@contextmanager
def left_as_found(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Undo, in place, what the `with` block does to the tensors."""
    touched = list(tensors)
    found = [tensor.detach().clone() for tensor in touched]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, content in zip(touched, found, strict=True):
                tensor.copy_(content)


@cache
def _streams(count: int, device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    """The same streams for every graph of a process: cuBLAS keeps a workspace for each it has seen."""
    return tuple(torch.cuda.Stream(device) for _ in range(count))
