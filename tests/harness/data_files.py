"""Small data sets in the formats that the large ones are published in.

Each `write_*` leaves files below `root` as an unpacked download would, puts the digests of their
contents into torchvision's tables or ours for the time of a test, and returns what was written.

Shapes: N images, H and W height and width, C channels.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision import datasets

from harness.training import sources


@dataclass(frozen=True)
class Written:
    """The images and labels of both published halves."""

    train_NHWC: NDArray[np.uint8]
    train_N: NDArray[np.int64]
    test_NHWC: NDArray[np.uint8]
    test_N: NDArray[np.int64]

    @classmethod
    def draw(cls, train: int, test: int, shape: tuple[int, int, int], classes: int) -> Written:
        rng = np.random.default_rng(0)
        return cls(
            rng.integers(256, size=(train, *shape), dtype=np.uint8),
            np.arange(train) % classes,
            rng.integers(256, size=(test, *shape), dtype=np.uint8),
            np.arange(test) % classes,
        )


def labels_by_image(*halves):
    """{pixels: label}; the images of these tests are all different."""
    return {
        np.asarray(x_HWC).tobytes(): int(y)
        for x_NHWC, y_N in halves
        for x_HWC, y in zip(x_NHWC, y_N, strict=True)
    }


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


class _Python2Pickler(pickle._Pickler):
    """Writes text, bytes and booleans as the Python 2 did that pickled CIFAR."""

    dispatch = pickle._Pickler.dispatch.copy()

    def _save_text(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = _save_text

    def _save_flag(self, flag):
        self.write(pickle.BININT1 + bytes([flag]))

    dispatch[bool] = _save_flag


def _pickle(content: object, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        _Python2Pickler(stream, protocol=2).dump(content)
    numpy1 = file.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    file.write_bytes(numpy1)


def write_cifar(root: Path, patch: pytest.MonkeyPatch, name: str = "cifar10") -> Written:
    publisher = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    classes = {"cifar10": 10, "cifar100": 100}[name]
    labels = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    batches = len(publisher.train_list)
    written = Written.draw(200, 100, (32, 32, 3), classes)
    folder = root / publisher.base_folder

    def write_batch(file, x_NHWC, y_N):
        content = {"data": x_NHWC.transpose(0, 3, 1, 2).reshape(-1, 3072), labels: y_N.tolist()}
        _pickle(content, folder / file)

    for (file, _), x_NHWC, y_N in zip(
        publisher.train_list,
        np.split(written.train_NHWC, batches),
        np.split(written.train_N, batches),
        strict=True,
    ):
        write_batch(file, x_NHWC, y_N)
    write_batch(publisher.test_list[0][0], written.test_NHWC, written.test_N)

    def with_md5(batches):
        return [[file, md5(folder / file)] for file, _ in batches]

    with tarfile.open(root / publisher.filename, "w:gz") as packed:
        packed.add(folder, publisher.base_folder)
    patch.setattr(publisher, "train_list", with_md5(publisher.train_list))
    patch.setattr(publisher, "test_list", with_md5(publisher.test_list))
    return written


def write_mnist(root: Path, patch: pytest.MonkeyPatch, name: str = "mnist") -> Written:
    publisher = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    written = Written.draw(200, 100, (28, 28, 1), 10)
    folder = root / publisher.__name__ / "raw"
    folder.mkdir(parents=True)
    idx_images = struct.Struct(">IIII").pack
    idx_labels = struct.Struct(">II").pack
    contents = [
        idx_images(0x803, 200, 28, 28) + written.train_NHWC.tobytes(),
        idx_labels(0x801, 200) + written.train_N.astype(np.uint8).tobytes(),
        idx_images(0x803, 100, 28, 28) + written.test_NHWC.tobytes(),
        idx_labels(0x801, 100) + written.test_N.astype(np.uint8).tobytes(),
    ]
    for (file, _), content in zip(publisher.resources, contents, strict=True):
        (folder / file).write_bytes(gzip.compress(content))
        (folder / file).with_suffix("").write_bytes(content)
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    patch.setitem(sources._IDX_SHA256, name, digests)
    patch.setattr(sources, "_PACKAGES", root / "packages")  # none of this machine's
    return written


def write_svhn(root: Path, patch: pytest.MonkeyPatch, name: str = "svhn") -> Written:
    from scipy.io import savemat

    assert name == "svhn"
    written = Written.draw(200, 100, (32, 32, 3), 10)
    split_list = {}
    for half, x_NHWC, y_N in (
        ("train", written.train_NHWC, written.train_N),
        ("test", written.test_NHWC, written.test_N),
    ):
        url, file, _ = datasets.SVHN.split_list[half]
        root.mkdir(parents=True, exist_ok=True)
        labels_N1 = np.where(y_N == 0, 10, y_N).astype(np.uint8)[:, None]  # a zero is class 10
        savemat(root / file, {"X": x_NHWC.transpose(1, 2, 3, 0), "y": labels_N1})
        split_list[half] = [url, file, md5(root / file)]
    patch.setattr(datasets.SVHN, "split_list", datasets.SVHN.split_list | split_list)
    return written


WRITERS = {
    "cifar10": write_cifar,
    "cifar100": write_cifar,
    "mnist": write_mnist,
    "fashion-mnist": write_mnist,
    "svhn": write_svhn,
}


def write_pictures(folder: Path, *, height: int = 8, width: int = 8) -> Written:
    """PNG files of three classes, in train/ and test/."""
    from PIL import Image

    written = Written.draw(30, 9, (height, width, 3), 3)
    for half, x_NHWC, y_N in (
        ("train", written.train_NHWC, written.train_N),
        ("test", written.test_NHWC, written.test_N),
    ):
        for at, (x_HWC, y) in enumerate(zip(x_NHWC, y_N, strict=True)):
            file = folder / half / ("ash", "birch", "cedar")[y] / f"{at:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x_HWC).save(file)
    return written
