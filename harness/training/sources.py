"""Read images from their source: published files, a user's own pictures or arrays, or a formula.

A published file is recognised by its content: it may be unpacked or packed, in torchvision's layout
or where a Debian package puts it. Only `fetch` downloads anything.

Shapes (letters of this module):
    N images, H and W height and width, C channels; K classes
"""

from __future__ import annotations

import gzip
import hashlib
import math
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from http.client import HTTPException
from pathlib import Path
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor

from harness.study.arrays import ARRAYS
from harness.study.errors import DataError
from harness.study.facts import IMAGE_FOLDER, LIKE_CIFAR10, SYNTHETIC, count_synthetic_test
from harness.study.trials import derive_seed
from harness.training.arrays import find_file, read_images
from harness.training.pictures import read_folder


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
        """Join the (x_NHWC, y_N) of the training and test parts."""
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
        train, test = read_folder(root / folder[1], pixels=int(folder[2]), digest=folder[3])
        return Labelled.join(train, test)
    if arrays := ARRAYS.fullmatch(name):
        return Labelled(*read_images(find_file(arrays[1], root), digest=arrays[2]))
    publication = _find_publication(name)
    contents, wrong = _collect(publication, root)
    if wrong:
        raise DataError(
            f"{name}: {next(iter(wrong.values()))}. `python -m harness.datasets {name}` fetches "
            f"it; without a network, {_list_archives(wrong, root)}"
        )
    return publication.read(root, contents)


def fetch(name: str, root: Path) -> None:
    """Download the missing files of the data set called `name`, if it is a published one.

    Downloads only the archives of files of which there is no intact copy. They arrive in a separate
    folder and are moved once all are intact. Only one process at a time may call this.

    Raises:
        DataError: the files cannot be fetched.
    """
    if name not in _PUBLICATIONS:
        return
    publication = _find_publication(name)
    _, wrong = _collect(publication, root)
    if not wrong:
        return
    from torchvision.datasets.utils import download_url  # noqa: PLC0415 - as below

    arrivals = root / f".{name}-arriving"
    shutil.rmtree(arrivals, ignore_errors=True)  # left by a process that was killed
    try:
        for archive, url in {file.archive: file.url for file in wrong}.items():
            target = arrivals / archive
            download_url(url, target.parent, target.name)
        _, still_wrong = _collect(replace(publication, files=tuple(wrong)), arrivals)
        for complaint in still_wrong.values():
            raise DataError(f"{name}: {complaint}, although just fetched")
        for file in sorted(path for path in arrivals.rglob("*") if path.is_file()):
            target = root / file.relative_to(arrivals)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    except (OSError, HTTPException, RuntimeError) as error:  # torchvision raises all three
        raise DataError(
            f"{name}: {next(iter(wrong.values()))}, and cannot be fetched: {error}. "
            f"Without a network, {_list_archives(wrong, root)}, and try again"
        ) from error
    finally:
        shutil.rmtree(arrivals, ignore_errors=True)


@dataclass(frozen=True)
class _File:
    """One published file, recognised by its content however it is packed."""

    path: str
    """Below the root, unpacked."""
    digest: str
    """Digest of the content: MD5 where torchvision publishes it, else SHA-256."""
    archive: str
    """The archive to download, below the root; `path` if the file is published alone."""
    url: str


@dataclass(frozen=True)
class _Publication:
    """A data set that torchvision knows: its files, and how their contents become images."""

    name: str
    files: Sequence[_File]
    read: Callable[[Path, Sequence[bytes]], Labelled]


def _cifar(name: str, publisher: type[Any]) -> _Publication:
    """Pickled batches of (N, 3*32*32) bytes, packed into one archive; the last is the test part."""
    files = [
        _File(f"{publisher.base_folder}/{file}", md5, publisher.filename, publisher.url)
        for file, md5 in [*publisher.train_list, *publisher.test_list]
    ]

    def read_batch(content: bytes) -> tuple[Tensor, Tensor]:
        # A pickle can run code, but `_collect` has checked its MD5.
        batch = pickle.loads(content, encoding="latin1")  # noqa: S301
        labels = batch["labels"] if "labels" in batch else batch["fine_labels"]
        x_NCHW = torch.from_numpy(batch["data"]).unflatten(1, (3, 32, 32))
        return x_NCHW.permute(0, 2, 3, 1), torch.tensor(labels)

    def read_all(_: Path, contents: Sequence[bytes]) -> Labelled:
        *train, test = map(read_batch, contents)
        x_NHWC, y_N = (torch.cat(batches) for batches in zip(*train, strict=True))
        return Labelled.join((x_NHWC, y_N), test)

    return _Publication(name, files, read_all)


_IDX_SHA256: Mapping[str, Sequence[str]] = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
"""Digests of the unpacked files, in torchvision's order, which has the MD5 of one archive only."""


def _mnist(name: str, publisher: type[Any]) -> _Publication:
    """IDX files of (N, 28, 28) bytes and of N labels, train and test; each is packed alone."""
    files = [
        _File(archive.removesuffix(".gz"), digest, archive, publisher.mirrors[0] + file)
        for (file, _), digest in zip(publisher.resources, _IDX_SHA256[name], strict=True)
        for archive in [f"{publisher.__name__}/raw/{file}"]
    ]

    def read_all(_: Path, contents: Sequence[bytes]) -> Labelled:
        train_x, train_y, test_x, test_y = (
            torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents
        )
        train, test = (  # behind a header of 16 and of 8 bytes
            (x[16:].view(-1, 28, 28, 1), y[8:].long())
            for x, y in ((train_x, train_y), (test_x, test_y))
        )
        return Labelled.join(train, test)

    return _Publication(name, files, read_all)


def _svhn(name: str, publisher: type[Any]) -> _Publication:
    """MATLAB files of (32, 32, 3, N) bytes and N labels from 1 to 10, where 10 is a zero."""
    halves = (publisher.split_list[half] for half in ("train", "test"))

    def read_half(root: Path, half: str) -> tuple[Tensor, Tensor]:
        published = publisher(root, split=half)
        x_NCHW = torch.from_numpy(published.data)
        return x_NCHW.permute(0, 2, 3, 1), torch.from_numpy(published.labels)

    return _Publication(
        name,
        [_File(file, md5, file, url) for url, file, md5 in halves],
        lambda root, _: Labelled.join(read_half(root, "train"), read_half(root, "test")),
    )


_PUBLICATIONS: Mapping[str, tuple[str, Callable[[str, type[Any]], _Publication]]] = {
    "cifar10": ("CIFAR10", _cifar),
    "cifar100": ("CIFAR100", _cifar),
    "mnist": ("MNIST", _mnist),
    "fashion-mnist": ("FashionMNIST", _mnist),
    "svhn": ("SVHN", _svhn),
}
"""Name of a data set -> torchvision's class and the format of its files."""

_PACKAGES = Path("/usr/share/datasets")
"""Where Debian's packages dataset-NAME put their files."""

_LARGEST = 2**28
"""Bytes; no published file is larger, but an archive can claim any size."""


def _find_publication(name: str) -> _Publication:
    from torchvision import datasets  # noqa: PLC0415 - takes seconds, and a shared copy needs none

    publisher, as_format = _PUBLICATIONS[name]
    return as_format(name, getattr(datasets, publisher))


def _list_archives(files: Iterable[_File], root: Path) -> str:
    names: dict[tuple[str, Path], list[str]] = {}
    for archive, url in {file.archive: file.url for file in files}.items():
        address, _, name = url.rpartition("/")
        names.setdefault((address, (root / archive).parent), []).append(name)
    return " and ".join(
        f"get {', '.join(of_one)} from {address}/ into {folder}"
        for (address, folder), of_one in names.items()
    )


def _collect(publication: _Publication, root: Path) -> tuple[list[bytes], dict[_File, str]]:
    """The content of each file, and the fault of each file without an intact copy."""
    contents: list[bytes] = []
    wrong: dict[_File, str] = {}
    for file in publication.files:
        package = _PACKAGES / publication.name / Path(file.path).name
        places = (root / file.path, root / file.archive, package, Path(f"{package}.gz"))
        complaints: list[str] = []
        for place in dict.fromkeys(places):
            content = _unpack(place, file)
            if isinstance(content, bytes):
                contents.append(content)
                break
            complaints += [f"{place} {content}"] if content else []
        else:
            wrong[file] = "; ".join(complaints) or f"{root / file.path} is missing"
    return contents, wrong


def _unpack(place: Path, file: _File) -> bytes | str:
    """The content of `file` at `place`, or its fault in words; "" where there is no file."""
    try:
        if place.name.endswith(".tar.gz"):
            with (
                tarfile.open(place) as archive,
                cast("Any", archive.extractfile(file.path)) as part,
            ):
                content = part.read(_LARGEST)
        else:
            with (gzip.open if place.suffix == ".gz" else open)(place, "rb") as stream:
                content = stream.read(_LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except Exception as error:  # noqa: BLE001 - zlib, tarfile and the disk each raise their own
        return f"cannot be read: {error or type(error).__name__}"
    algorithm = "md5" if len(file.digest) == 32 else "sha256"
    found = hashlib.new(algorithm, content).hexdigest()
    if found == file.digest:
        return content
    return f"is damaged: the {algorithm} of its content is {found} and should be {file.digest}"


SIGNAL_TO_NOISE = 10.0
"""Energy of an image's wave over twice the variance of a pixel's noise (Es/N0)."""

_SIGMA = 32.0  # steps of uint8: 4 standard deviations fit on either side of mid-grey
_FINE = 64  # waves may be fainter than one step: added in 1/64 steps, rounded with the noise
_CHUNK = 1024


def draw_gratings(
    channels: int, height: int, width: int, classes: int, images: int, *, seed: int
) -> Labelled:
    """Draw a task of any shape with a known best accuracy: which wave is hidden in the noise?

    An image of class k is the plane wave with the k-th lowest frequency, the same in all
    channels, at a random phase, in white Gaussian noise. The random phase gives all classes the
    same mean, so that no linear classifier beats chance, and a shifted image keeps its class.
    The waves are orthogonal, of equal energy: see `bayes_accuracy`. The last sixth is the test
    part. All arithmetic is on integers from tables: equal bits on every machine.

    Train it without augmentation: the waves are faint, and the black border of a shifted crop
    masks them.
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
    return Labelled(x_NHWC, y_N, torch.arange(images) >= images - count_synthetic_test(images))


def bayes_accuracy(classes: int) -> float:
    """Share of gratings that the best possible classifier gets right; it depends on K alone.

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


def _tabulate(values: Iterable[float]) -> Tensor:
    return torch.tensor([round(_FINE * value) for value in values], dtype=torch.int32)
