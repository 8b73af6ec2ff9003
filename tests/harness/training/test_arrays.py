"""A user's own arrays: read as numpy has them, and never what numpy would unpickle or unpack."""

from __future__ import annotations

import io
import lzma
import zipfile

import numpy as np
import pytest
import torch

from harness.datasets import main
from harness.study.errors import DataError
from harness.study.facts import facts_of, find_dataset_mistake, look_up_facts
from harness.training.arrays import name_arrays
from harness.training.images import load_images

RNG = np.random.default_rng(0)
X = RNG.integers(256, size=(60, 5, 7, 2), dtype=np.uint8)
Y = np.arange(60) % 3
IS_TEST = np.arange(60) >= 48


def write(folder, **arrays):
    np.savez(folder / "mine.npz", **({"x": X, "y": Y, "is_test": IS_TEST} | arrays))
    return folder


def name_of(root):
    return name_arrays("arrays:mine", root)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"])
def test_the_images_are_those_of_numpy(tmp_path, dtype):
    name = name_of(write(tmp_path, y=Y.astype(dtype)))
    images = load_images(name, tmp_path)
    assert (images.shape, images.classes) == ((2, 5, 7), 3)
    assert torch.equal(images.test.x_NHWC, torch.from_numpy(X[IS_TEST]))
    assert images.test.y_N.tolist() == Y[IS_TEST].tolist()
    read = {
        x.numpy().tobytes(): int(y)
        for x, y in zip(images.train.x_NHWC, images.train.y_N, strict=False)
    }
    read |= {
        x.numpy().tobytes(): int(y)
        for x, y in zip(images.validation.x_NHWC, images.validation.y_N, strict=False)
    }
    expected = zip(X[~IS_TEST], Y[~IS_TEST], strict=True)
    assert read == {x.tobytes(): int(y) for x, y in expected}


def test_grey_images_need_no_channel_axis_and_columns_may_come_first(tmp_path):
    write(tmp_path, x=np.asfortranarray(X[..., 0]))
    images = load_images(name_of(tmp_path), tmp_path)
    assert images.shape == (1, 5, 7)
    assert torch.equal(images.test.x_NHWC[..., 0], torch.from_numpy(X[IS_TEST, ..., 0].copy()))


def test_the_digest_is_of_what_is_in_the_file_however_it_is_packed(tmp_path):
    name = name_of(write(tmp_path))
    np.savez_compressed(tmp_path / "mine.npz", is_test=IS_TEST, y=Y, x=X)
    assert name_of(tmp_path) == name
    for other in (
        {"x": X ^ 1},
        {"y": 2 - Y},
        {"is_test": IS_TEST[::-1]},
        {"x": X.reshape(60, 7, 5, 2)},
    ):
        assert name_of(write(tmp_path, **other)) != name


def test_facts_are_looked_up_where_it_lies_and_guessed_elsewhere(tmp_path):
    name = name_of(write(tmp_path))
    facts, images = look_up_facts(name, tmp_path), load_images(name, tmp_path)
    assert not facts.is_assumed
    assert (facts.shape, facts.classes) == (images.shape, images.classes)
    assert facts.train_images == len(images.train)
    assert facts.validation_images == len(images.validation)
    assert facts.test_images == len(images.test)
    assert facts_of(name).is_assumed
    assert look_up_facts(name, tmp_path / "nowhere") == facts_of(name)


def test_other_arrays_than_the_digest_names_are_refused(tmp_path):
    name = name_of(write(tmp_path))
    other = name_of(write(tmp_path, x=X ^ 1))
    with pytest.raises(
        DataError, match=rf"it holds other images\. Restore it, or name these: {other}"
    ):
        load_images(name, tmp_path)


OBJECTS = np.array([{"a": 1}] * 60, dtype=object)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": X / 255}, "x should be uint8 of shape (N, H, W, C) or (N, H, W), and is float64 of shape (60, 5, 7, 2); scale the pixels"),
        ({"x": np.full(X.shape, np.nan, np.float32)}, "x should be uint8"),
        ({"x": X[0, 0]}, "x should be uint8 of shape"),
        ({"x": X[:, :0]}, "x has no pixels"),
        ({"y": Y[:-1]}, "its arrays differ in length: x 60, y 59, is_test 60"),
        ({"y": Y / 2}, "y should be whole numbers of shape (N,), and is float64 of shape (60,); number the classes from 0, then y.astype('int64')"),
        ({"y": Y.astype(">i4")}, "and is int32 (big-endian) of shape (60,); number the classes from 0, then y.astype('int64')"),
        ({"y": OBJECTS}, "y should be whole numbers of shape (N,), and is objects of shape"),
        ({"y": Y.astype(str)}, "y should be whole numbers of shape (N,), and is text of shape"),
        ({"y": Y - 1}, "y has -1; classes are whole numbers from 0"),
        ({"y": Y + 1}, "no training image of class 0; number the classes from 0 without gaps"),
        ({"y": Y * 1000}, "y has 2,000, and there are 60 images: number the classes"),
        ({"y": Y.astype("uint64") - 1}, "y has 18,446,744,073,709,551,615, and there are 60 images"),
        ({"is_test": IS_TEST.view("uint8").__mul__(2).view(bool)}, "is_test holds other bytes than 0 and 1; write is_test.view('uint8') > 0"),
        ({"x": X.transpose(0, 3, 1, 2)[:, :1]}, "x has the shape (60, 1, 5, 7): channels come last; write x.transpose(0, 2, 3, 1)"),
        ({"y": Y * 0}, "y names one class only"),
        ({"is_test": IS_TEST.astype(int)}, "is_test should be bool of shape (N,), and is int64 of shape (60,); is_test.astype('bool')"),
        ({"is_test": IS_TEST & False}, "no test image of class 0, 1, 2"),
        ({"is_test": IS_TEST | True}, "no training image of class 0, 1, 2"),
        ({"is_test": Y == 2}, "no training image of class 2"),
        ({"x": np.zeros((60, 500, 500, 3), np.uint8), "compressed": True}, "x is packed to"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_what_to_do(tmp_path, arrays, told):
    save = np.savez_compressed if arrays.pop("compressed", False) else np.savez
    save(tmp_path / "mine.npz", **({"x": X, "y": Y, "is_test": IS_TEST} | arrays))
    with pytest.raises(DataError) as error:
        load_images(name_of(tmp_path), tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'mine.npz'}: ")
    assert told in str(error.value)


def test_a_file_that_is_missing_damaged_or_something_else_is_named(tmp_path):
    file = tmp_path / "mine.npz"
    with pytest.raises(DataError, match=r"mine.npz is missing; write it with numpy.savez"):
        name_of(tmp_path)
    np.savez(file, images=X, y=Y)
    with pytest.raises(DataError, match=r"has no array 'x': .* it has images, y"):
        name_of(tmp_path)
    file.write_bytes(b"\x93NUMPY" + bytes(100))
    with pytest.raises(DataError, match=r"is not a file that numpy.savez wrote: File is not a zip"):
        name_of(tmp_path)
    whole = write(tmp_path) / "mine.npz"
    content = bytearray(whole.read_bytes())
    content[500] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is not a file that numpy.savez wrote: Bad CRC-32"):
        name_of(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=r"mine.npz cannot be read: Is a directory"):
        name_of(tmp_path)


def test_a_header_that_claims_more_than_a_memory_is_refused_before_it_is_read(tmp_path):
    head = np.lib.format
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        for name, dtype, shape in (("x", "|u1", (2**20, 999, 999, 3)), ("y", "<i8", (2**20,)), ("is_test", "|b1", (2**20,))):  # fmt: skip
            stream = io.BytesIO()
            head.write_array_header_1_0(
                stream, {"descr": dtype, "fortran_order": False, "shape": shape}
            )
            archive.writestr(f"{name}.npy", stream.getvalue())
    with pytest.raises(
        DataError, match=r"its arrays have 3,\d+,\d+,\d+,\d+ bytes; 34,359,738,368 at most"
    ):
        name_of(tmp_path)


@pytest.mark.parametrize(
    "shape",
    ["(-1, 8, 8)", "(60.7, 8, 8)", "(1e999, 8, 8)", "(True, 8, 8)", "[60, 8, 8]", "(9" + "0" * 99 + ",)"],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused_ahead_of_any_pixel(tmp_path, shape):
    said = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        content = b"\x93NUMPY\x01\0" + len(said).to_bytes(2, "little") + said
        archive.writestr("x.npy", content + bytes(60 * 64))
    with pytest.raises(DataError, match=r"mine.npz is not .* wrote: an array in it has the shape"):
        name_of(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_packing_that_is_not_numpys_is_refused_ahead_of_unpacking(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "mine.npz", "w", method) as archive:
        archive.writestr("x.npy", bytes(1000))
    with pytest.raises(DataError, match=r"savez wrote: x is packed as numpy packs nothing"):
        name_of(tmp_path)


def test_what_an_unpacker_raises_is_told_whatever_its_class(tmp_path, monkeypatch):
    def raise_error(*_):
        raise lzma.LZMAError

    monkeypatch.setattr(zipfile.ZipFile, "namelist", raise_error)
    with pytest.raises(DataError, match=r"mine.npz is not a file that .* wrote: LZMAError"):
        name_of(write(tmp_path))


def test_its_full_name_is_printed(tmp_path, capsys):
    write(tmp_path)
    assert main(["--root", str(tmp_path), "arrays:mine"]) == 0
    name = name_of(tmp_path)
    assert capsys.readouterr().out == f"{name}: 44 + 4 + 12 images of 2x5x7, 3 classes\n"
    assert find_dataset_mistake(name) is None
    assert main(["--root", str(tmp_path), "arrays:yours"]) == 2
    assert "yours.npz is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("arrays:mine", "the digest of its arrays is missing: `python -m harness.datasets arrays:mine`"),
        ("arrays:mine@0", "'arrays:' goes on with NAME@DIGEST"),
        ("arrays:mine.npz", "leave out .npz: arrays:mine"),
        ("arrays:mine.npz@0123456789abcdef", "leave out .npz: arrays:mine@0123456789abcdef"),
        ("array:mine", "did you mean 'arrays:mine'?"),
        ("arrays:../mine@0123456789abcdef", "'arrays:' goes on with NAME@DIGEST"),
    ],
)  # fmt: skip
def test_a_name_is_told_how_it_goes_on(dataset, told):
    assert told in (find_dataset_mistake(dataset) or "")
