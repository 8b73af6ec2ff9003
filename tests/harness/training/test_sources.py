from __future__ import annotations

import functools
import hashlib
import http.server
import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torchvision import datasets

from harness.datasets import main
from harness.study.errors import DataError
from harness.training import sources
from harness.training.images import load_images
from tests.harness.data_files import WRITERS, write_cifar, write_mnist, write_pictures


def labels_by_image(*halves):
    """{pixels: label}; the images of these tests are all different."""
    return {
        np.asarray(x_HWC).tobytes(): int(y)
        for x_NHWC, y_N in halves
        for x_HWC, y in zip(x_NHWC, y_N, strict=True)
    }


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


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/train"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST/raw/train-labels-idx1-ubyte"),
        ("svhn", "test_32x32.mat"),
    ],
)
def test_a_damaged_file_is_named_with_its_cure(name, path, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch, name)
    file = tmp_path / path
    whole = file.read_bytes()

    def complaint():
        with pytest.raises(DataError) as caught:
            load_images(name, tmp_path)
        return str(caught.value)

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    file.write_bytes(flipped)
    assert complaint().startswith(f"{name}: {file} is damaged: ")
    file.write_bytes(whole[:-1])
    assert f"{file} is damaged: " in complaint()
    file.unlink()
    assert complaint().startswith(f"{name}: {file} is missing. ")
    assert f"`python -m harness.datasets {name}` fetches it" in complaint()
    file.write_bytes(whole)
    assert len(load_images(name, tmp_path).test) == 100


def test_what_an_old_torchvision_left_is_not_trusted(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    for half in ("training.pt", "test.pt"):
        torch.save((torch.zeros(9, 28, 28), torch.zeros(9)), processed / half)
    with pytest.raises(
        DataError,
        match=r"MNIST/processed is of an old torchvision and cannot be checked; remove it",
    ):
        load_images("mnist", tmp_path)


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
    advice = r"cannot be fetched: .*Put cifar-10-python.tar.gz \(from http.* below .*root"
    with pytest.raises(DataError, match=advice):
        load_images("cifar10", root, fetch=True)
    (tmp_path / "web" / "cifar-10-python.tar.gz").rename(root / "cifar-10-python.tar.gz")
    images = load_images("cifar10", root, fetch=True)
    assert np.array_equal(images.test.x_NHWC, written.test_NHWC)


def test_fetching_mends_one_damaged_file_and_a_failed_one_breaks_nothing(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    whole = meta.read_bytes()
    meta.write_bytes(b"")
    archive = tmp_path / "cifar-10-python.tar.gz"
    packed = archive.read_bytes()
    archive.write_bytes(packed[:-1])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(DataError, match="cannot be fetched"):
        sources.fetch("cifar10", tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    archive.write_bytes(packed)
    sources.fetch("cifar10", tmp_path)
    assert meta.read_bytes() == whole


@pytest.fixture
def trees(tmp_path):
    written = write_pictures(tmp_path / "trees")
    return written, sources.name_folder("imagefolder:trees:8", tmp_path)


def test_a_folder_of_pictures_loads_pixel_by_pixel(trees, tmp_path):
    written, name = trees
    images = load_images(name, tmp_path)
    held = images.validation
    loaded = labels_by_image((images.train.x_NHWC, images.train.y_N), (held.x_NHWC, held.y_N))
    assert loaded == labels_by_image((written.train_NHWC, written.train_N))
    assert labels_by_image((images.test.x_NHWC, images.test.y_N)) == labels_by_image(
        (written.test_NHWC, written.test_N)
    )
    assert [len(held), images.classes] == [3, 3]


def test_pictures_are_resized_by_the_shorter_side_and_cropped_at_the_centre(tmp_path):
    from PIL import Image

    written = write_pictures(tmp_path / "wide", height=16, width=24)
    images = load_images(sources.name_folder("imagefolder:wide:8", tmp_path), tmp_path)
    expected = [
        Image.fromarray(x_HWC)
        .resize((12, 8), Image.Resampling.BILINEAR)
        .crop((2, 0, 10, 8))
        .tobytes()
        for x_HWC in written.test_NHWC
    ]
    assert sorted(x_HWC.numpy().tobytes() for x_HWC in images.test.x_NHWC) == sorted(expected)


@pytest.mark.parametrize("change", ["pixel", "name", "class", "more", "fewer"])
def test_other_pictures_are_another_data_set(change, trees, tmp_path):
    _, name = trees
    pictures = sorted((tmp_path / "trees" / "train" / "ash").iterdir())
    match change:
        case "pixel":
            pictures[0].write_bytes(pictures[1].read_bytes())
        case "name":
            pictures[0].rename(pictures[0].with_name("0000.png"))  # the first one still
        case "class":
            pictures[0].rename(tmp_path / "trees" / "train" / "birch" / "moved.png")
        case "more":
            pictures[0].with_name("new.png").write_bytes(pictures[0].read_bytes())
        case "fewer":
            pictures[0].unlink()
    with pytest.raises(DataError, match="or name these: imagefolder:trees:8@") as caught:
        load_images(name, tmp_path)
    assert len(load_images(str(caught.value).rpartition(" ")[2], tmp_path).test) == 9


def test_a_damaged_picture_is_named(trees, tmp_path):
    broken = tmp_path / "trees" / "test" / "birch" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"birch/001.png is not a picture that can be read"):
        load_images(sources.name_folder("imagefolder:trees:8", tmp_path), tmp_path)


def test_a_folder_without_the_layout_is_explained(trees, tmp_path):
    with pytest.raises(DataError, match="should hold train/CLASS/PICTURE and test/CLASS/PICTURE"):
        sources.name_folder("imagefolder:nowhere:8", tmp_path)
    (tmp_path / "trees" / "test" / "cedar").rename(tmp_path / "trees" / "test" / "oak")
    with pytest.raises(DataError, match="differ in classes: cedar, oak"):
        sources.name_folder("imagefolder:trees:8", tmp_path)


def test_the_command_names_a_folder_and_makes_it_ready(trees, tmp_path, capsys):
    _, name = trees
    assert main(["--root", str(tmp_path), "imagefolder:trees:8"]) == 0
    assert capsys.readouterr().out == f"{name}: 27 + 3 + 9 images of 3x8x8, 3 classes\n"
    assert main(["--root", str(tmp_path), "synthetic:1x8x8x10x600"]) == 0
    assert capsys.readouterr().out.endswith(
        ": 450 + 50 + 100 images of 1x8x8, 10 classes, of which nobody tells more than 97.8%\n"
    )
    assert main(["--root", str(tmp_path), "cifar11"]) == 2
    assert "'cifar11' is not a data set" in capsys.readouterr().err


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
