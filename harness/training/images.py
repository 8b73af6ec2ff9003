"""Images as one uint8 tensor, and the batches that a seed draws from it.

Shapes (letters of this module):
    N images of a part, B of a batch, R replicas, S steps of an epoch
    C channels, H and W height and width; D = R*C
"""

from __future__ import annotations

import fcntl
import gzip
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from harness.study.errors import DataError
from harness.study.facts import (
    CONTENTS,
    count_held_out,
    default_root,
    facts_of,
    find_count_mistake,
    find_dataset_mistake,
    prepared_folder,
)
from harness.study.trials import Trial, derive_seed
from harness.training import sources

PADDING = 4
"""Width of the zero border that 'crop-flip' adds: He et al. 2015 (arXiv:1512.03385, s.4.2)."""


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


def load_images(name: str, root: Path | None = None, *, fetch: bool = False) -> Images:
    """Map the data set called `name` into memory; the first process on a node prepares it.

    Looks for files in torchvision's layout below `root`, else below the folder that the environment
    variable BN_ORDER_DATA names, else below ~/.cache/bn-order. `fetch` downloads missing files;
    without it the network is never used. A tenth of the published training images, at most 5,000,
    are held out as the validation part.

    Any number of processes may call this at once: the first one reads the files and writes the
    prepared parts, the others wait for it, and all share the same pages of memory.

    Raises:
        DataError: no data set has this name, or its files are absent or damaged.
    """
    mistake = find_dataset_mistake(name)
    if mistake:
        raise DataError(mistake)
    if name == "digits":
        return _digits()
    root = root or default_root()
    folder = prepared_folder(name, root)
    images = _map_shared(name, folder)
    if images is None:
        with _exclusive(folder):
            images = _map_shared(name, folder)  # another process may have written it
            if images is None:
                if fetch:
                    sources.fetch(name, root)
                _write_shared(_divide(name, sources.read(name, root)), folder)
                images = _map_shared(name, folder)
    if images is None:
        raise DataError(f"{folder} is damaged as soon as it is written; is the disk all right?")
    return images


def _digits() -> Images:
    """1,797 handwritten digits of 8x8 pixels that scikit-learn carries.

    Train, validation and test parts are stratified by class.
    """
    table_N65 = _read_digits()
    x_N64 = table_N65[:, :64] * 15  # 0..16 to 0..240
    x_NHWC = x_N64.to(torch.uint8).unflatten(1, (8, 8, 1))
    y_N = table_N65[:, 64].to(torch.int64)
    facts = facts_of("digits")
    test_N = _stratified_pick(y_N, facts.test_images, name="digits/test")
    validation_N = _stratified_pick(
        y_N, facts.validation_images, name="digits/validation", among=~test_N
    )
    return _assemble("digits", x_NHWC, y_N, validation_N=validation_N, test_N=test_N)


def _read_digits() -> Tensor:
    """A row per image: its pixels, then its class. Importing scikit-learn takes over a second more."""
    package = find_spec("sklearn")
    place = Path((package and package.origin) or "").parent
    file = place / "datasets/data/digits.csv.gz"
    if not file.is_file():  # a version of scikit-learn that keeps it elsewhere
        from sklearn.datasets import load_digits  # noqa: PLC0415  only training on digits needs it

        pixels, labels = load_digits(return_X_y=True)
        return torch.hstack([torch.from_numpy(pixels), torch.from_numpy(labels)[:, None]])
    with gzip.open(file, "rt", encoding="ascii") as lines:
        rows = [[float(value) for value in line.split(",")] for line in lines]
    return torch.tensor(rows, dtype=torch.float64)


def _divide(name: str, source: sources.Labelled) -> Images:
    held_out = count_held_out(int((~source.test_N).sum()))
    validation_N = _stratified_pick(
        source.y_N, held_out, name=f"{name}/validation", among=~source.test_N
    )
    return _assemble(
        name, source.x_NHWC, source.y_N, validation_N=validation_N, test_N=source.test_N
    )


def _assemble(
    name: str, x_NHWC: Tensor, y_N: Tensor, *, validation_N: Tensor, test_N: Tensor
) -> Images:
    train_N = ~(validation_N | test_N)
    train = Part(x_NHWC[train_N], y_N[train_N])
    mean_C, std_C = _measure_channels(train.x_NHWC)
    return Images(
        name=name,
        classes=int(y_N.max()) + 1,
        train=train,
        validation=Part(x_NHWC[validation_N], y_N[validation_N]),
        test=Part(x_NHWC[test_N], y_N[test_N]),
        mean_C=mean_C.float(),
        std_C=std_C.float(),
    )


def _measure_channels(x_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, exact, from counts of the 256 values."""
    count_CV = torch.stack(
        [x_NHW.flatten().bincount(minlength=256) for x_NHW in x_NHWC.unbind(-1)]
    ).double()
    share_CV = count_CV / count_CV.sum(1, keepdim=True)
    value_V = torch.arange(256, dtype=torch.float64)
    mean_C = share_CV @ value_V
    variance_C = (share_CV * (value_V - mean_C[:, None]) ** 2).sum(1)
    return mean_C, variance_C.sqrt()


def _stratified_pick(y_N: Tensor, count: int, *, name: str, among: Tensor | None = None) -> Tensor:
    """Mark `count` images, stratified by class; which ones depends on `name` alone.

    Those of a smaller count are among those of a larger one.

    Shapes:
        y_N: (N,) labels; among: (N,) bool, where picking is allowed. Returns (N,) bool.
    """
    allowed = torch.ones_like(y_N, dtype=torch.bool) if among is None else among
    generator = torch.Generator().manual_seed(derive_seed(0, "split", name))
    shuffled = torch.randperm(len(y_N), generator=generator)
    shuffled = shuffled[allowed[shuffled]]
    # Sorted by each image's quantile within its class, the first `count` are stratified.
    rank = torch.empty(len(shuffled), dtype=torch.float64)
    for label in y_N.unique():
        of_class = y_N[shuffled] == label
        size = int(of_class.sum())
        rank[of_class] = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    picked = torch.zeros_like(y_N, dtype=torch.bool)
    picked[shuffled[rank.argsort(stable=True)[:count]]] = True
    return picked


def _map_shared(name: str, folder: Path) -> Images | None:
    """The images kept in `folder`; None where they are absent or damaged.

    All processes that map the file share its pages. A process that writes to a tensor gets its
    own copy of the page: neither the file nor another process changes.
    """
    import numpy as np  # noqa: PLC0415 - torch cannot map a file that stores its shape

    try:
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for file, crc in contents["crc32"].items():
            if _checksum(folder / file) != crc:
                return None
            tensors[file] = torch.from_numpy(np.load(folder / file, mmap_mode="c"))
        return Images(
            name=name,
            classes=contents["classes"],
            **{
                part: Part(tensors[f"{part}_x.npy"], tensors[f"{part}_y.npy"])
                for part in ("train", "validation", "test")
            },
            mean_C=tensors["mean.npy"],
            std_C=tensors["std.npy"],
        )
    except (OSError, ValueError, KeyError):  # no such folder, an empty file, text that is no JSON
        return None


def _write_shared(images: Images, folder: Path) -> None:
    """Write `images` to `folder`, which appears whole or not at all; the caller holds the lock."""
    import numpy as np  # noqa: PLC0415 - as above

    tensors = {"mean.npy": images.mean_C, "std.npy": images.std_C}
    counts: dict[str, int] = {}
    for part in ("train", "validation", "test"):
        counts[part] = len(getattr(images, part))
        tensors[f"{part}_x.npy"] = getattr(images, part).x_NHWC
        tensors[f"{part}_y.npy"] = getattr(images, part).y_N
    unfinished = folder.with_name(f".{folder.name}")
    with _explained(folder):
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
        unfinished.mkdir()
        checksums: dict[str, int] = {}
        for file, tensor in tensors.items():
            with (unfinished / file).open("wb") as stream:
                np.save(stream, tensor.numpy())
                _flush(stream)
            checksums[file] = _checksum(unfinished / file)
        with (unfinished / CONTENTS).open("w", encoding="utf-8") as stream:
            contents = {"classes": images.classes, "images": counts, "crc32": checksums}
            json.dump(contents, stream)
            _flush(stream)
        shutil.rmtree(folder, ignore_errors=True)  # damaged: an intact one would have been used
        unfinished.rename(folder)


def _checksum(file: Path) -> int:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        return zlib.crc32(content)


def _flush(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` among the processes of this node; a killed process releases it."""
    with ExitStack() as stack:
        with _explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(folder.with_name(f"{folder.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror}; "
            "let BN_ORDER_DATA name a folder on a disk with room"
        ) from error


class Batches:
    """Training batches of R replicas, each with order and augmentation from its own random streams.

    All random numbers of an epoch are drawn at once on the CPU, so that they are the same on every
    device, and copied in one piece; a batch is then one gather on the device.
    """

    def __init__(self, images: Images, replicas: Sequence[Trial], device: torch.device) -> None:
        trial = replicas[0]
        mistake = find_count_mistake(
            images.name,
            len(images.train),
            images.classes,
            train_images=trial.train_images,
            batch_size=trial.batch_size,
        )
        if mistake:
            raise DataError(mistake)
        self._shown_N = _pick_shown(images, trial.train_images)
        self.size = trial.batch_size
        self.steps = len(self._shown_N) // trial.batch_size  # the last partial batch is dropped
        self._augmented = trial.augmentation == "crop-flip"
        self._normalize = Normalize(images, trial, device)
        _, self._height, self._width = images.shape
        self._x_NHWC = images.train.x_NHWC.to(device)  # on the CPU this keeps the shared pages
        self._y_N = images.train.y_N.to(device)
        self._rows_H = torch.arange(self._height, device=device)
        self._columns_W = torch.arange(self._width, device=device)
        self._order = [_generator(trial, "order") for trial in replicas]
        self._augment = [_generator(trial, "augment") for trial in replicas]

    def state(self) -> list[Tensor]:
        return [generator.get_state() for generator in (*self._order, *self._augment)]

    def restore(self, state: list[Tensor]) -> None:
        for generator, kept in zip((*self._order, *self._augment), state, strict=True):
            generator.set_state(kept)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x_BDHW float32, y_BR) for every step of the next epoch."""
        used = self.steps * self.size
        drawn = [
            self._shown_N[torch.randperm(len(self._shown_N), generator=generator)[:used]]
            for generator in self._order
        ]
        index_SBR = self._arrange(drawn)
        if not self._augmented:
            for index_BR in index_SBR:
                yield self._normalize(self._x_NHWC[index_BR]), self._y_N[index_BR]
            return
        offsets = [
            torch.randint(2 * PADDING + 1, (2, used), generator=generator)
            for generator in self._augment
        ]
        flips = [torch.randint(2, (used,), generator=generator) for generator in self._augment]
        mirrored_W = self._columns_W.flip(0)
        flip_SBR1 = self._arrange(flips)[..., None].bool()
        columns_SBRW = torch.where(flip_SBR1, mirrored_W, self._columns_W) - PADDING
        columns_SBRW = columns_SBRW + self._arrange([left for _, left in offsets])[..., None]
        rows_SBRH = self._rows_H - PADDING + self._arrange([top for top, _ in offsets])[..., None]
        for index_BR, rows_BRH, columns_BRW in zip(index_SBR, rows_SBRH, columns_SBRW, strict=True):
            yield self._crop(index_BR, rows_BRH, columns_BRW)

    def _arrange(self, drawn: list[Tensor]) -> Tensor:
        """Combine one (S*B,) draw per replica into (S, B, R) on the device."""
        device = self._y_N.device
        arranged_SBR = torch.stack(drawn, dim=-1).unflatten(0, (self.steps, self.size))
        if device.type == "cuda":
            arranged_SBR = arranged_SBR.pin_memory()  # copying unpinned memory would block
        return arranged_SBR.to(device, non_blocking=True)

    def _crop(
        self, index_BR: Tensor, rows_BRH: Tensor, columns_BRW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gather crops that may reach into the padding, which is zero and never stored."""
        nearest_BRH = rows_BRH.clamp(0, self._height - 1)
        nearest_BRW = columns_BRW.clamp(0, self._width - 1)
        inside_BRHW = (rows_BRH == nearest_BRH)[..., :, None]
        inside_BRHW = inside_BRHW & (columns_BRW == nearest_BRW)[..., None, :]
        x_BRHWC = self._x_NHWC[
            index_BR[..., None, None], nearest_BRH[..., :, None], nearest_BRW[..., None, :]
        ]
        return self._normalize(x_BRHWC * inside_BRHW[..., None]), self._y_N[index_BR]


def _pick_shown(images: Images, count: int) -> Tensor:
    """Indices of the training images that a trial of `count` of them is shown; 0 for all.

    The same for every trial. Statistics, probe, validation and test remain those of all images:
    readings are compared between counts.
    """
    y_N = images.train.y_N
    if count == 0:
        return torch.arange(len(y_N))
    return _stratified_pick(y_N, count, name=f"{images.name}/train").nonzero()[:, 0]


class Normalize:
    """Turns uint8 images of R replicas into a network's input: x_BRHWC -> x_BDHW, float32."""

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
