from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import math
import re
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torchvision import datasets

from harness.study.errors import DataError
from harness.training import sources
from harness.training.images import load_images
from tests.harness.data_files import (
    WRITERS,
    labels_by_image,
    write_cifar,
    write_mnist,
    write_svhn,
)


@pytest.mark.parametrize("name", WRITERS)
def test_published_files_load_pixel_by_pixel(name, tmp_path, monkeypatch):
    written = WRITERS[name](tmp_path, monkeypatch, name)
    images = load_images(name, tmp_path)
    held = images.validation
    loaded = labels_by_image((images.train.x_NHWC, images.train.y_N), (held.x_NHWC, held.y_N))
    assert loaded == labels_by_image((written.train_NHWC, written.train_N))
    assert np.array_equal(images.test.x_NHWC, written.test_NHWC)
    assert np.array_equal(images.test.y_N, written.test_N)
    assert images.classes == (100 if name == "cifar100" else 10)
    height, width, channels = written.train_NHWC.shape[1:]
    assert images.shape == (channels, height, width)


ALONE = [  # files of which the other wrapping is taken away
    ("cifar10", "cifar-10-batches-py/data_batch_3", "cifar-10-python.tar.gz"),
    ("cifar10", "cifar-10-batches-py/test_batch", "cifar-10-python.tar.gz"),
    ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_3"),
    ("cifar100", "cifar-100-python/train", "cifar-100-python.tar.gz"),
    ("mnist", "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte.gz"),
    ("mnist", "MNIST/raw/t10k-images-idx3-ubyte.gz", "MNIST/raw/t10k-images-idx3-ubyte"),
    (
        "fashion-mnist",
        "FashionMNIST/raw/train-labels-idx1-ubyte",
        "FashionMNIST/raw/train-labels-idx1-ubyte.gz",
    ),
    ("svhn", "test_32x32.mat", None),
]


@pytest.mark.parametrize(("name", "path", "other"), ALONE)
def test_a_damaged_file_is_named_with_its_cure(name, path, other, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch, name)
    file = tmp_path / path
    if other:
        (tmp_path / other).unlink()
    whole = file.read_bytes()

    def complaint():
        with pytest.raises(DataError) as caught:
            load_images(name, tmp_path)
        return str(caught.value)

    middle = len(whole) * 2 // 5  # of the archive of batches in the third one
    flipped = bytearray(whole)
    flipped[middle] ^= 1
    for damaged in (flipped, whole[:middle], b""):
        file.write_bytes(damaged)
        told = complaint()
        assert re.match(rf"{name}: {re.escape(str(file))} (is damaged|cannot be read): .", told)
        assert "missing" not in told
    file.unlink()
    unpacked = other if path.endswith(".tar.gz") else path.removesuffix(".gz")
    assert complaint().startswith(f"{name}: {tmp_path / unpacked} is missing. ")
    assert f"`python -m harness.datasets {name}` fetches it; without a network, get " in complaint()
    file.write_bytes(whole)
    assert len(load_images(name, tmp_path).test) == 100


@pytest.mark.parametrize(("name", "path", "other"), ALONE[:-1])
def test_one_whole_wrapping_is_enough_and_who_wrote_it_does_not_matter(
    name, path, other, tmp_path, monkeypatch
):
    written = WRITERS[name](tmp_path, monkeypatch, name)
    (tmp_path / path).write_bytes(b"damaged")
    if (tmp_path / other).suffix == ".gz":
        content = gzip.decompress((tmp_path / other).read_bytes())
        (tmp_path / other).write_bytes(gzip.compress(content, 1, mtime=0))
    images = load_images(name, tmp_path)
    assert np.array_equal(images.test.x_NHWC, written.test_NHWC)


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    file = tmp_path / "train_32x32.mat"
    file.unlink()
    file.mkdir()  # the tests may run as root, to whom nothing is forbidden
    with pytest.raises(DataError, match=rf"svhn: {file} cannot be read: .*Is a directory"):
        load_images("svhn", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_a_package_brings_is_read_where_it_lies(suffix, tmp_path, monkeypatch):
    written = write_mnist(tmp_path / "other", monkeypatch, "fashion-mnist")
    packages = tmp_path / "packages"
    packages.mkdir()
    (tmp_path / "other" / "FashionMNIST" / "raw").rename(packages / "fashion-mnist")
    for file in (packages / "fashion-mnist").iterdir():
        if file.suffix != suffix:
            file.unlink()
    monkeypatch.setattr(sources, "_PACKAGES", packages)
    root = tmp_path / "root"
    images = load_images("fashion-mnist", root)
    assert np.array_equal(images.test.x_NHWC, written.test_NHWC)
    assert [file.name for file in root.iterdir()] == [".shared"]


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_debians_fashion_mnist_is_the_published_one(tmp_path):
    published = sources.read("fashion-mnist", tmp_path)
    assert published.x_NHWC.shape == (70_000, 28, 28, 1)
    assert published.y_N[~published.test_N].bincount().tolist() == [6_000] * 10
    # Mean and standard deviation that are used with the training part everywhere.
    train_NHWC = published.x_NHWC[~published.test_N].double() / 255
    assert [round(train_NHWC.mean().item(), 4), round(train_NHWC.std().item(), 4)] == [
        0.2860,
        0.3530,
    ]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def web(tmp_path):
    """A server of the files in tmp_path/web: (its address, the paths asked for)."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


@pytest.fixture
def published(web, tmp_path, monkeypatch):
    """Every data set on the server, and none anywhere else."""
    address, _ = web
    folder = tmp_path / "web"
    for name, write in WRITERS.items():
        write(tmp_path / name, monkeypatch, name)
    for publisher in (datasets.CIFAR10, datasets.CIFAR100):
        [archive] = tmp_path.rglob(publisher.filename)
        archive.rename(folder / publisher.filename)
        monkeypatch.setattr(publisher, "url", address + publisher.filename)
    for publisher in (datasets.MNIST, datasets.FashionMNIST):
        (folder / publisher.__name__).mkdir()
        for file, _ in publisher.resources:
            [archive] = tmp_path.rglob(f"{publisher.__name__}/raw/{file}")
            archive.rename(folder / publisher.__name__ / file)
        monkeypatch.setattr(publisher, "mirrors", [f"{address}{publisher.__name__}/"])
    split_list = {}
    for half in ("train", "test"):
        _, file, md5 = datasets.SVHN.split_list[half]
        (tmp_path / "svhn" / file).rename(folder / file)
        split_list[half] = [address + file, file, md5]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_absent_is_fetched_once_and_only_when_asked(name, web, tmp_path):
    _, asked = web
    root = tmp_path / "new" / "root"
    with pytest.raises(DataError, match="is missing"):
        load_images(name, root)
    assert not asked
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(load_images, name, root, fetch=True) for _ in range(4)]
        loaded = [future.result() for future in futures]
    # torchvision asks for each file twice: the first time only to follow redirects.
    assert set(Counter(asked).values()) == {2}
    assert all(torch.equal(images.train.x_NHWC, loaded[0].train.x_NHWC) for images in loaded)
    assert not list(root.glob(".*-arriving"))


def test_an_archive_at_hand_is_used_instead_of_the_network(tmp_path, monkeypatch):
    written = write_cifar(tmp_path / "web", monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    root = tmp_path / "root"
    advice = (
        r"is missing, and cannot be fetched: .*get cifar-10-python.tar.gz from http.* into .*root"
    )
    with pytest.raises(DataError, match=advice):
        load_images("cifar10", root, fetch=True)
    (tmp_path / "web" / "cifar-10-python.tar.gz").rename(root / "cifar-10-python.tar.gz")
    images = load_images("cifar10", root, fetch=True)
    assert np.array_equal(images.test.x_NHWC, written.test_NHWC)


@pytest.mark.usefixtures("published")
def test_fetching_mends_what_is_damaged_and_a_failed_one_breaks_nothing(web, tmp_path, monkeypatch):
    root = tmp_path / "root"
    raw = root / "MNIST" / "raw"
    load_images("mnist", root, fetch=True)
    shutil.rmtree(root / ".shared")
    labels = raw / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1])
    before = {file: file.read_bytes() for file in raw.iterdir()}
    mirrors = datasets.MNIST.mirrors
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    complaint = "train-labels-idx1-ubyte.gz cannot be read: .*, and cannot be fetched"
    with pytest.raises(DataError, match=complaint) as caught:
        sources.fetch("mnist", root)
    assert "train-images" not in str(caught.value)
    assert {file: file.read_bytes() for file in raw.iterdir()} == before
    monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
    web[1].clear()
    sources.fetch("mnist", root)
    assert labels.read_bytes() == whole
    assert {*web[1]} == {"/MNIST/train-labels-idx1-ubyte.gz"}


def find_wave(x_NHWC, classes):
    """The best classifier there is: the wave with the largest Fourier coefficient."""
    z_NHW = x_NHWC.double().sum(-1).numpy() - 128 * x_NHWC.shape[-1]
    _, height, width = z_NHW.shape
    power_NHW = np.abs(np.fft.fft2(z_NHW)) ** 2
    waves = [(u, v) for u in range((height + 1) // 2) for v in range((width + 1) // 2)]
    waves.sort(key=lambda wave: ((wave[0] / height) ** 2 + (wave[1] / width) ** 2, wave))
    return np.stack([power_NHW[:, u, v] for u, v in waves[1 : classes + 1]], 1).argmax(1)


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 3, 3, 60_000), (1, 8, 8, 10, 60_000), (2, 9, 14, 20, 20_000), (3, 32, 32, 10, 6_000)],
)
def test_the_best_classifier_of_gratings_is_as_good_as_the_formula(shape):
    *_, classes, images = shape
    drawn = sources.draw_gratings(*shape, seed=1)
    found_N = find_wave(drawn.x_NHWC, classes)
    expected = sources.bayes_accuracy(classes)
    error = math.sqrt(expected * (1 - expected) / images)
    assert abs((found_N == drawn.y_N.numpy()).mean() - expected) < 3 * error


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_bayes_accuracy_is_that_of_the_largest_of_k_energies(classes):
    # Twice the energy at the true wave is noncentral chi-squared, elsewhere chi-squared.
    twice = 2 * sources.SIGNAL_TO_NOISE

    def density(energy):
        others = stats.chi2.cdf(energy, 2) ** (classes - 1)
        return stats.ncx2.pdf(energy, 2, twice) * others

    expected, _ = integrate.quad(density, 0, 200, limit=200)
    assert sources.bayes_accuracy(classes) == pytest.approx(expected, abs=1e-8)


def test_gratings_of_all_classes_have_the_same_mean():
    drawn = sources.draw_gratings(1, 8, 8, 4, 8000, seed=2)
    for label in range(4):
        mean_HWC = drawn.x_NHWC[drawn.y_N == label].double().mean(0)
        # 64 means of 2,000 pixels with a standard deviation of 32 noise and 18 wave steps.
        assert (mean_HWC - 128).abs().max() < 4.5 * math.hypot(32, 18) / math.sqrt(2000)


def test_gratings_are_the_same_bits_everywhere_and_others_by_another_name(tmp_path):
    drawn = sources.read("synthetic:3x8x6x4x240", tmp_path)
    digest = hashlib.blake2b(drawn.x_NHWC.numpy().tobytes(), digest_size=8).hexdigest()
    assert digest == "86a9c01186dbeecf"
    assert not torch.equal(
        sources.read("synthetic:3x8x6x4x241", tmp_path).x_NHWC[:240], drawn.x_NHWC
    )
    assert drawn.test_N.sum() == 40
    assert (drawn.y_N[drawn.test_N].bincount() == 10).all()
