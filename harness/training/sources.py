"""Where images come from: published files, a folder of pictures, a formula.

torchvision fetches and reads the published files, in the layout it has always used; its MD5 sums
are checked here file by file, so that a message can name the file. Nothing is fetched unless
`fetch` is called.

Shapes (letters of this module):
    N images, H and W height and width, C channels; K classes
"""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from http.client import HTTPException
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from harness.study.errors import DataError
from harness.study.trials import IMAGE_FOLDER, SYNTHETIC, derive_seed

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder


@dataclass(frozen=True, slots=True)
class Labelled:
    """All images of a data set.

    Shapes:
        x_NHWC: uint8; y_N: int64, classes from 0; test_N: bool, the test part as published.
    """

    x_NHWC: Tensor
    y_N: Tensor
    test_N: Tensor

    @classmethod
    def join(cls, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Labelled:
        """One from the (x_NHWC, y_N) of both halves."""
        x_NHWC, y_N = (torch.cat(both) for both in zip(train, test, strict=True))
        return cls(x_NHWC, y_N, torch.arange(len(y_N)) >= len(train[1]))


def read(name: str, root: Path) -> Labelled:
    """Read the data set called `name`, whose files are below `root`.

    Raises:
        DataError: a file is absent or damaged; says which, and what to do.
    """
    if name == "synthetic":
        name = LIKE_CIFAR10
    if shape := SYNTHETIC.fullmatch(name):
        return draw_gratings(*map(int, shape.groups()), seed=derive_seed(0, name))
    if folder := IMAGE_FOLDER.fullmatch(name):
        return _read_folder(root / folder[1], pixels=int(folder[2]), digest=folder[3])
    publication = _find_publication(name)
    for damage in publication.find_damage(root):
        raise DataError(
            f"{name}: {damage}. `python -m harness.datasets {name}` fetches it; "
            f"without a network, first put {_list_archives(publication)} below {root}"
        )
    return publication.read(root)


def fetch(name: str, root: Path) -> None:
    """Have the files of the data set called `name` below `root`, whole, if it is a published one.

    An archive that is there already is used instead of the network. Files arrive in a folder of
    their own and are moved once all are in order. One process at a time may do this.

    Raises:
        DataError: they cannot be fetched.
    """
    if name not in _PUBLICATIONS:
        return
    publication = _find_publication(name)
    if not any(publication.find_damage(root)):
        return
    arrivals = root / f".{name}-arriving"
    shutil.rmtree(arrivals, ignore_errors=True)  # of a process that was killed
    try:
        for path, _, md5 in publication.archives():
            if _find_difference(root / path, md5) is None:
                (arrivals / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, arrivals / path)
        publication.fetch(arrivals)
        for damage in publication.find_damage(arrivals):
            raise DataError(f"{name}: {damage}, although just fetched")
        for file in sorted(path for path in arrivals.rglob("*") if path.is_file()):
            target = root / file.relative_to(arrivals)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    except (OSError, HTTPException, RuntimeError) as error:  # torchvision raises all three
        raise DataError(
            f"{name} cannot be fetched: {error}. "
            f"Put {_list_archives(publication)} below {root} and try again"
        ) from error
    finally:
        shutil.rmtree(arrivals, ignore_errors=True)


class _Publication(Protocol):
    """A data set that torchvision knows, in one of the formats that such things come in."""

    def archives(self) -> Sequence[tuple[str, str, str]]:
        """What is fetched: (path below the root, URL, MD5)."""
        ...

    def find_damage(self, root: Path) -> Iterator[str]:
        """Say of every file that is absent or damaged what is wrong with it."""
        ...

    def fetch(self, root: Path) -> None: ...
    def read(self, root: Path) -> Labelled: ...


@dataclass(frozen=True)
class _Cifar:
    """Pickled batches of (N, 3*32*32) bytes, packed into one archive.

    A pickle can run code: torchvision and `find_damage` compare its MD5 first.
    """

    publisher: Any

    def archives(self) -> Sequence[tuple[str, str, str]]:
        return [(self.publisher.filename, self.publisher.url, self.publisher.tgz_md5)]

    def find_damage(self, root: Path) -> Iterator[str]:
        folder = root / self.publisher.base_folder
        batches = [*self.publisher.train_list, *self.publisher.test_list]
        for file, md5 in [*batches, (self.publisher.meta["filename"], self.publisher.meta["md5"])]:
            yield from _name_difference(folder / file, md5)

    def fetch(self, root: Path) -> None:
        self.publisher(root, download=True)

    def read(self, root: Path) -> Labelled:
        train, test = (self.publisher(root, train=train) for train in (True, False))
        return Labelled.join(
            (torch.from_numpy(train.data), torch.tensor(train.targets)),
            (torch.from_numpy(test.data), torch.tensor(test.targets)),
        )


@dataclass(frozen=True)
class _Mnist:
    """IDX files of (N, 28, 28) bytes and of N labels, each beside the .gz it came in."""

    publisher: Any

    def archives(self) -> Sequence[tuple[str, str, str]]:
        mirror = self.publisher.mirrors[0]
        return [
            (f"{self._folder}/{file}", f"{mirror}{file}", md5)
            for file, md5 in self.publisher.resources
        ]

    def find_damage(self, root: Path) -> Iterator[str]:
        for path, _, md5 in self.archives():
            archive = root / path
            differs = list(_name_difference(archive, md5))
            yield from differs or _find_unpacked_damage(archive)

    def fetch(self, root: Path) -> None:
        self.publisher(root, download=True)

    def read(self, root: Path) -> Labelled:
        old = root / self.publisher.__name__ / "processed"
        if old.exists():  # torchvision would read this instead
            raise DataError(f"{old} is of an old torchvision and cannot be checked; remove it")
        train, test = (self.publisher(root, train=train) for train in (True, False))
        return Labelled.join(
            (train.data[..., None], train.targets), (test.data[..., None], test.targets)
        )

    @property
    def _folder(self) -> str:
        return f"{self.publisher.__name__}/raw"


@dataclass(frozen=True)
class _Svhn:
    """MATLAB files of (32, 32, 3, N) bytes and N labels from 1 to 10, where 10 is a zero."""

    publisher: Any

    def archives(self) -> Sequence[tuple[str, str, str]]:
        halves = (self.publisher.split_list[half] for half in ("train", "test"))
        return [(file, url, md5) for url, file, md5 in halves]

    def find_damage(self, root: Path) -> Iterator[str]:
        for file, _, md5 in self.archives():
            yield from _name_difference(root / file, md5)

    def fetch(self, root: Path) -> None:
        for half in ("train", "test"):
            self.publisher(root, split=half, download=True)

    def read(self, root: Path) -> Labelled:
        def read_half(half: str) -> tuple[Tensor, Tensor]:
            published = self.publisher(root, split=half)
            x_NCHW = torch.from_numpy(published.data)
            return x_NCHW.permute(0, 2, 3, 1), torch.from_numpy(published.labels)

        return Labelled.join(read_half("train"), read_half("test"))


_PUBLICATIONS: Mapping[str, tuple[str, Callable[[Any], _Publication]]] = {
    "cifar10": ("CIFAR10", _Cifar),
    "cifar100": ("CIFAR100", _Cifar),
    "mnist": ("MNIST", _Mnist),
    "fashion-mnist": ("FashionMNIST", _Mnist),
    "svhn": ("SVHN", _Svhn),
}
"""Name of a data set -> torchvision's class and the format of its files."""


def _find_publication(name: str) -> _Publication:
    from torchvision import datasets  # noqa: PLC0415 - takes seconds, and a shared copy needs none

    publisher, as_format = _PUBLICATIONS[name]
    return as_format(getattr(datasets, publisher))


def _list_archives(publication: _Publication) -> str:
    return " and ".join(f"{path} (from {url})" for path, url, _ in publication.archives())


def _find_difference(file: Path, md5: str) -> str | None:
    from torchvision.datasets.utils import calculate_md5  # noqa: PLC0415 - as above

    if not file.is_file():
        return "is missing"
    found = calculate_md5(file)
    return None if found == md5 else f"is damaged: its MD5 is {found} and should be {md5}"


def _name_difference(file: Path, md5: str) -> Iterator[str]:
    difference = _find_difference(file, md5)
    if difference:
        yield f"{file} {difference}"


def _find_unpacked_damage(archive: Path) -> Iterator[str]:
    """Compare what torchvision has unpacked, and never looks at again, with its .gz.

    Source:
        RFC 1952, s. 2.3.1: the last 8 bytes are CRC-32 and length of what was packed.
    """
    unpacked = archive.with_suffix("")
    if not unpacked.is_file():
        yield f"{unpacked} is missing"
        return
    content = unpacked.read_bytes()
    if struct.pack("<II", zlib.crc32(content), len(content)) != archive.read_bytes()[-8:]:
        yield f"{unpacked} is damaged: it is not what {archive.name} beside it holds"


def name_folder(name: str, root: Path) -> str:
    """Complete `imagefolder:FOLDER:PIXELS` with the digest of the files that are there now.

    Raises:
        DataError: the folder does not hold what it should.
    """
    folder = root / name.split(":")[1]
    return f"{name}@{_digest_halves(folder, _list_halves(folder))}"


def _read_folder(folder: Path, *, pixels: int, digest: str) -> Labelled:
    """Pictures as RGB squares: the shorter side resized to `pixels`, then the centre."""
    halves = _list_halves(folder)
    found = _digest_halves(folder, halves)
    if found != digest:
        raise DataError(
            f"the files in {folder} have the digest {found}, not {digest}: they are other images. "
            f"Restore them, or name these: imagefolder:{folder.name}:{pixels}@{found}"
        )
    train, test = (_read_pictures(half, pixels) for half in halves)
    return Labelled.join(train, test)


def _list_halves(folder: Path) -> tuple[ImageFolder, ImageFolder]:
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 - as above

    try:
        train, test = ImageFolder(folder / "train"), ImageFolder(folder / "test")
    except OSError as error:
        raise DataError(
            f"{folder} should hold train/CLASS/PICTURE and test/CLASS/PICTURE: {error}"
        ) from error
    if train.classes != test.classes:
        differing = sorted({*train.classes} ^ {*test.classes})
        raise DataError(f"train and test in {folder} differ in classes: {', '.join(differing)}")
    return train, test


def _digest_halves(folder: Path, halves: Sequence[ImageFolder]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for half in halves:
        for path, _ in half.samples:
            file = Path(path)
            content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
            digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _read_pictures(half: ImageFolder, pixels: int) -> tuple[Tensor, Tensor]:
    from torchvision.transforms import functional  # noqa: PLC0415 - as above

    x_NHWC = torch.empty((len(half), pixels, pixels, 3), dtype=torch.uint8)
    for image_HWC, (path, _) in zip(x_NHWC, half.samples, strict=True):
        try:
            picture = half.loader(path)
        except OSError as error:  # Pillow's own errors are among them
            raise DataError(f"{path} is not a picture that can be read: {error}") from error
        square = functional.center_crop(functional.resize(picture, [pixels]), [pixels])
        image_HWC.copy_(functional.pil_to_tensor(square).permute(1, 2, 0))
    return x_NHWC, torch.tensor(half.targets)


LIKE_CIFAR10 = "synthetic:3x32x32x10x60000"
"""What plain `synthetic` stands for: the shape and the size of CIFAR-10."""

SIGNAL_TO_NOISE = 10.0
"""Energy of an image's wave over twice the variance of a pixel's noise (Es/N0)."""

_SIGMA = 32.0  # steps of uint8: 4 standard deviations fit on either side of mid-grey
_FINE = 64  # waves may be fainter than one step: added in 1/64 steps, rounded with the noise
_CHUNK = 1024


def draw_gratings(
    channels: int, height: int, width: int, classes: int, images: int, *, seed: int
) -> Labelled:
    """A task of any shape whose best accuracy is known: which wave is hidden in the noise?

    An image of class k is the plane wave with the k-th lowest frequency, the same in all
    channels, at a random phase, in white Gaussian noise. The random phase gives all classes the
    same mean, so that no linear classifier beats chance, and a shifted image keeps its class.
    The waves are orthogonal, of equal energy: see `bayes_accuracy`. The last sixth is the test
    part. Integers from tables throughout: equal bits on every machine.

    Train it without augmentation: the waves are faint, and the black border of a shifted crop
    drowns them.
    """
    generator = torch.Generator().manual_seed(seed)
    lattice = [(u, v) for u in range((height + 1) // 2) for v in range((width + 1) // 2)]
    lattice.sort(key=lambda wave: ((wave[0] / height) ** 2 + (wave[1] / width) ** 2, wave))
    wave_K2 = torch.tensor(lattice[1 : classes + 1])  # cycles per image; [0] is no wave

    period = 16 * math.lcm(height, width)
    amplitude = _SIGMA * math.sqrt(4 * SIGNAL_TO_NOISE / (channels * height * width))
    cosine = _tabulate(amplitude * math.cos(math.tau * at / period) for at in range(period))
    normal = NormalDist(sigma=_SIGMA)
    quantile = _tabulate(normal.inv_cdf((at + 0.5) / 2**16) for at in range(2**16))

    y_N = torch.arange(images) % classes
    phase_N = torch.randint(period, (images,), generator=generator)
    row_H = torch.arange(height) * (period // height)
    column_W = torch.arange(width) * (period // width)
    x_NHWC = torch.empty((images, height, width, channels), dtype=torch.uint8)
    for chunk in torch.arange(images).split(_CHUNK):
        u_N, v_N = wave_K2[y_N[chunk]].T
        at_NHW = (
            phase_N[chunk, None, None]
            + u_N[:, None, None] * row_H[:, None]
            + v_N[:, None, None] * column_W
        ) % period
        uniform = torch.randint(2**16, x_NHWC[chunk].shape, dtype=torch.int32, generator=generator)
        fine_NHWC = cosine[at_NHW][..., None] + quantile[uniform]
        rounded = (fine_NHWC + (128 * _FINE + _FINE // 2)).div(_FINE, rounding_mode="floor")
        x_NHWC[chunk] = rounded.clamp(0, 255).to(torch.uint8)
    return Labelled(x_NHWC, y_N, torch.arange(images) >= images - images // 6)


def bayes_accuracy(classes: int) -> float:
    """Share of gratings that the best of all classifiers gets right; it depends on K alone.

    With g = SIGNAL_TO_NOISE: the sum over n < K of (-1)^n C(K-1, n) exp(-g n / (n+1)) / (n+1).

    Source:
        Proakis & Salehi, Digital Communications, 5th ed., s. 4.5-3: orthogonal signals of equal
        energy, detected without knowledge of the phase.

    >>> round(bayes_accuracy(10), 4)
    0.9784
    """
    with localcontext(prec=classes + 30):  # the terms cancel: up to 2^K each
        energy = Decimal(SIGNAL_TO_NOISE)
        return float(
            sum(
                Decimal((-1) ** n * math.comb(classes - 1, n))
                * (-energy * n / (n + 1)).exp()
                / (n + 1)
                for n in range(classes)
            )
        )


def _tabulate(values: Iterator[float]) -> Tensor:
    return torch.tensor([round(_FINE * value) for value in values], dtype=torch.int32)
