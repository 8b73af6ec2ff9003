"""Images as one uint8 tensor, and the batches that a seed draws from it.

Shapes (letters of this module):
    N images of a part, B of a batch, R replicas, S steps of an epoch
    C channels, H and W height and width; D = R*C
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import DataError
from harness.trials import Trial, derive_seed

PADDING = 4
"""Zeros around an image that 'crop-flip' crops from, as He et al. 2015 (arXiv:1512.03385, s.4.2)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images with their labels.

    Shapes:
        x_NHWC: (N, H, W, C) uint8; the channel is last so that a gathered batch is channels_last.
        y_N: (N,) int64, classes from 0.
    """

    x_NHWC: Tensor
    y_N: Tensor

    def __len__(self) -> int:
        return len(self.y_N)


@dataclass(frozen=True, slots=True)
class Images:
    """A data set: three parts that do not overlap and the statistics of the first.

    Units:
        mean_C, std_C: of the training part, in steps of uint8 (0 to 255).
    """

    name: str
    classes: int
    train: Part
    validation: Part
    test: Part
    mean_C: Tensor
    std_C: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        height, width, channels = self.train.x_NHWC.shape[1:]
        return channels, height, width


def load_images(name: str, root: Path | None = None) -> Images:
    """Read the data set called `name`; where it is kept on disk, below `root`.

    Raises:
        DataError: no data set has this name, or its files are absent or damaged.
    """
    if name not in _LOADERS:
        raise DataError(f"{name!r} is not a data set this version can load: {', '.join(_LOADERS)}")
    return _LOADERS[name](root)


def _digits(_root: Path | None) -> Images:
    """1,797 handwritten digits of 8x8 pixels that scikit-learn carries.

    Train, validation and test parts hold 1,077, 180 and 540 images, stratified by class.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - only who trains on digits needs it

    pixels, labels = load_digits(return_X_y=True)
    x_N64 = torch.from_numpy(pixels) * 15  # 0..16 to 0..240
    x_NHWC = x_N64.to(torch.uint8).unflatten(1, (8, 8, 1))
    y_N = torch.from_numpy(labels).to(torch.int64)
    test_N = _stratified_pick(y_N, 540, name="digits/test")
    validation_N = _stratified_pick(y_N, 180, name="digits/validation", among=~test_N)
    return _assemble("digits", x_NHWC, y_N, validation_N=validation_N, test_N=test_N)


_LOADERS: Mapping[str, Callable[[Path | None], Images]] = {"digits": _digits}


def _assemble(
    name: str, x_NHWC: Tensor, y_N: Tensor, *, validation_N: Tensor, test_N: Tensor
) -> Images:
    train_N = ~(validation_N | test_N)
    train = Part(x_NHWC[train_N], y_N[train_N])
    pixels_PC = train.x_NHWC.flatten(0, 2).double()
    return Images(
        name=name,
        classes=int(y_N.max()) + 1,
        train=train,
        validation=Part(x_NHWC[validation_N], y_N[validation_N]),
        test=Part(x_NHWC[test_N], y_N[test_N]),
        mean_C=pixels_PC.mean(0).float(),
        std_C=pixels_PC.std(0, correction=0).float(),
    )


def _stratified_pick(y_N: Tensor, count: int, *, name: str, among: Tensor | None = None) -> Tensor:
    """Mark `count` images, each class by its share; which ones depends on `name` alone.

    Shapes:
        y_N: (N,) labels; among: (N,) bool, where picking is allowed. Returns (N,) bool.
    """
    allowed = torch.ones_like(y_N, dtype=torch.bool) if among is None else among
    generator = torch.Generator().manual_seed(derive_seed(0, "split", name))
    shuffled = torch.randperm(len(y_N), generator=generator)
    shuffled = shuffled[allowed[shuffled]]
    # Ordered by the quantile of each image within its class, the first `count` are stratified.
    rank = torch.empty(len(shuffled), dtype=torch.float64)
    for label in y_N.unique():
        of_class = y_N[shuffled] == label
        size = int(of_class.sum())
        rank[of_class] = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    picked = torch.zeros_like(y_N, dtype=torch.bool)
    picked[shuffled[rank.argsort(stable=True)[:count]]] = True
    return picked


class Batches:
    """Training batches of R replicas: each has its own order and augmentation, from its own streams.

    Everything random is drawn once an epoch on the CPU, so that it is the same on every device,
    and moved in one piece; a batch is then one gather on the device.
    """

    def __init__(self, images: Images, replicas: Sequence[Trial], device: torch.device) -> None:
        trial = replicas[0]
        self.size = trial.batch_size
        self.steps = len(images.train) // trial.batch_size  # the last partial batch is dropped
        if self.steps == 0:
            raise DataError(
                f"{images.name} has {len(images.train)} training images, fewer than one batch of "
                f"{trial.batch_size}; lower batch_size"
            )
        self._augmented = trial.augmentation == "crop-flip"
        self._normalize = Normalize(images, trial, device)
        _, self._height, self._width = images.shape
        margin = PADDING if self._augmented else 0
        # F.pad counts from the last dimension: channels, width, height.
        padded = torch.nn.functional.pad(images.train.x_NHWC, (0, 0, *[margin] * 4))
        self._x_NHWC = padded.to(device)
        self._y_N = images.train.y_N.to(device)
        self._rows_H = torch.arange(self._height, device=device)
        self._columns_W = torch.arange(self._width, device=device)
        self._order = [_generator(trial, "order") for trial in replicas]
        self._augment = [_generator(trial, "augment") for trial in replicas]

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x_BDHW float32, y_BR) for every step of the next epoch."""
        used = self.steps * self.size
        drawn = [
            torch.randperm(len(self._y_N), generator=generator)[:used] for generator in self._order
        ]
        index_SBR = self._arrange(drawn)
        if not self._augmented:
            for index_BR in index_SBR:
                yield self._gather(index_BR, self._rows_H, self._columns_W)
            return
        offsets = [
            torch.randint(2 * PADDING + 1, (2, used), generator=generator)
            for generator in self._augment
        ]
        flips = [torch.randint(2, (used,), generator=generator) for generator in self._augment]
        top_SBR = self._arrange([offset[0] for offset in offsets])
        left_SBR = self._arrange([offset[1] for offset in offsets])
        flip_SBR = self._arrange(flips).bool()
        mirrored_W = self._columns_W.flip(0)
        for step, index_BR in enumerate(index_SBR):
            columns = torch.where(flip_SBR[step, ..., None], mirrored_W, self._columns_W)
            yield self._gather(
                index_BR,
                top_SBR[step, ..., None] + self._rows_H,
                left_SBR[step, ..., None] + columns,
            )

    def _arrange(self, drawn: list[Tensor]) -> Tensor:
        """One (S*B,) draw per replica to (S, B, R) on the device."""
        return torch.stack(drawn, dim=-1).unflatten(0, (self.steps, self.size)).to(self._y_N.device)

    def _gather(self, index_BR: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        x_BRHWC = self._x_NHWC[index_BR[..., None, None], rows[..., :, None], columns[..., None, :]]
        return self._normalize(x_BRHWC), self._y_N[index_BR]


class Normalize:
    """uint8 images of R replicas to what a network reads: x_BRHWC -> x_BDHW, float32."""

    def __init__(self, images: Images, trial: Trial, device: torch.device) -> None:
        self._mean_C = images.mean_C.to(device)
        self._scale_C = 1 / images.std_C.clamp(min=1e-3).to(device)
        self._contiguous = trial.memory_format == "contiguous"

    def __call__(self, x_BRHWC: Tensor) -> Tensor:
        x = (x_BRHWC.float() - self._mean_C) * self._scale_C
        # (B, H, W, R*C) in memory is channels_last; with one replica nothing is copied.
        x_BDHW = x.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)
        return x_BDHW.contiguous() if self._contiguous else x_BDHW


def _generator(trial: Trial, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(trial.block_seed, stream))
