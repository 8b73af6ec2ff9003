"""Optimizer steps as one CUDA graph, recorded once and replayed ever after.

A step of a small network is hundreds of kernels of a few microseconds each: Python takes longer to
launch one than a GPU to run it. A graph launches them all at once. Kernels, operands and order stay
what they were, so that a replayed step leaves the bits of a plain one.

Shapes (letters of this module):
    B images of a batch, R replicas, D = R*C channels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""(x_BDHW, y_BR) of one learner."""

Score = tuple[Tensor, Tensor]
"""(loss_R, hits_R) of its step."""

WARM_UP_STEPS = 3
"""Plain steps ahead of recording, in which libraries choose kernels and set memory aside."""


class Steppable(Protocol):
    """What can be recorded: a learner whose step waits for nothing and branches on no number."""

    def take_step(self, x_BDHW: Tensor, y_BR: Tensor) -> Score:
        """One optimizer step."""
        ...

    def written(self) -> Iterator[Tensor]:
        """Every tensor that a step changes and the next one reads."""
        ...


class CapturedSteps:
    """A step of each of several learners at once, as parallel branches of one graph.

    Learners share nothing: each branch has a stream and memory of its own, so that each learner
    gets the bits it would get alone. They are left as they were found, ahead of their first step.

    Limits: shapes are those of the first batches; what a learner holds must not move, in
    particular no weight, buffer or momentum may be replaced by another tensor.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture; branches: CUDA C++
        Programming Guide, "Cross-stream Dependencies and Events".
    """

    def __init__(self, learners: Sequence[Steppable], batches: Sequence[Batch]) -> None:
        self._inputs = [(x_BDHW.clone(), y_BR.clone()) for x_BDHW, y_BR in batches]
        streams = _streams(len(learners), self._inputs[0][0].device)
        caller = torch.cuda.current_stream()
        with left_as_found(tensor for learner in learners for tensor in learner.written()):
            streams[0].wait_stream(caller)
            for _ in range(WARM_UP_STEPS):
                self._step_side_by_side(learners, streams)
            caller.wait_stream(streams[0])
        self._graph = torch.cuda.CUDAGraph()
        # Recording runs nothing. Gradients it makes lie in the graph's own memory from now on, and
        # every replay fills them anew.
        with torch.cuda.graph(self._graph, stream=streams[0]):
            self._outputs = self._step_side_by_side(learners, streams)

    def __call__(self, batches: Sequence[Batch]) -> list[Score]:
        """Take a step of each learner; the tensors that come back are overwritten by the next."""
        for inputs, batch in zip(self._inputs, batches, strict=True):
            for into, tensor in zip(inputs, batch, strict=True):
                into.copy_(tensor)
        self._graph.replay()
        return self._outputs

    def _step_side_by_side(
        self, learners: Sequence[Steppable], streams: Sequence[torch.cuda.Stream]
    ) -> list[Score]:
        first, *others = streams
        for stream in others:
            stream.wait_stream(first)
        outputs: list[Score] = []
        for learner, (x_BDHW, y_BR), stream in zip(learners, self._inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(learner.take_step(x_BDHW, y_BR))
        for stream in others:
            first.wait_stream(stream)
        return outputs


@contextmanager
def left_as_found(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put back, in place, what the block does to the tensors."""
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
