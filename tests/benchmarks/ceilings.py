"""What arithmetic and memory of a machine allow at most, and what a training step asks of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from harness.study.trials import Trial
from harness.training.images import Batches, Images
from harness.training.learner import Learner

TORCHS_OWN = "torch's default"
"""TF32 in convolutions and float32 in matrix products, as far as the GPU has TF32."""


def measure_ceilings(
    device: torch.device,
    *,
    matrix: int,
    copied: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The fastest of a few large matrix products in each precision, and of a few large copies.

    Units:
        matrix: rows, and columns; copied: bytes.
    """
    generator = torch.Generator(device).manual_seed(0)
    ceilings: dict[str, float] = {}
    for precision in ("float32", "TF32", "bfloat16"):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (
            torch.randn(matrix, matrix, device=device, generator=generator).to(dtype)
            for _ in range(2)
        )
        out = torch.empty_like(a)
        with allow_tf32(precision):
            seconds = _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, clock)
        ceilings[f"{precision} FLOP/s"] = 2 * matrix**3 / seconds
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ceilings["bytes/s"] = 2 * copied / _fastest(lambda: target.copy_(source), device, clock)
    return ceilings


def _fastest(act: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few, after one to warm up."""
    seconds: list[float] = []
    for _ in range(8):
        wait(device)
        begun = clock()
        act()
        wait(device)
        seconds.append(clock() - begun)
    return min(seconds[1:])


def count_work(trial: Trial, images: Images, device: torch.device) -> dict[str, float]:
    """FLOP of convolutions and matrix products, and bytes moved, of a step, per image.

    Limits: the bytes are those of separate kernels; fused ones could do with fewer.
    """
    work: dict[str, float] = {}
    for precision, name in (("float32", "bytes"), ("bfloat16", "bfloat16 bytes")):
        half = replace(trial, precision=precision)
        learner = Learner([half], images, device, captured=False)
        batch = next(Batches(images, [half], device).epoch())
        flop = FlopCounterMode(display=False)
        with flop:
            learner.step(*batch, lr=0.01)
        with Traffic() as traffic:
            learner.step(*batch, lr=0.01)
        work[name] = traffic.bytes / trial.batch_size
        work["FLOP"] = flop.get_total_flops() / trial.batch_size
    return work


class Traffic(TorchDispatchMode):
    """Bytes that the operations read and write, each by itself, as kernels that are not fused do."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        makes_views = any(
            returned.alias_info is not None and not returned.alias_info.is_write
            for returned in func._schema.returns
        )
        if not makes_views and "empty" not in func._schema.name:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)))
            self.bytes += sum(map(_count_bytes, tensors))
        return result


def _count_bytes(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())


@contextmanager
def allow_tf32(precision: str) -> Iterator[None]:
    """TF32 in convolutions, which is torch's default, and in matrix products, which is not."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    found = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = precision in {TORCHS_OWN, "TF32"}
    matmul.allow_tf32 = precision == "TF32"
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = found


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
