"""A folder of pictures: which files count, and whether equal pixels come out as a viewer shows."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from harness.datasets import main
from harness.study.errors import DataError
from harness.study.facts import look_up_facts
from harness.training import pictures
from harness.training.images import load_images
from harness.training.pictures import name_folder, render
from tests.harness.data_files import labels_by_image, write_pictures


@pytest.fixture
def trees(tmp_path):
    written = write_pictures(tmp_path / "trees")
    return written, name_folder("imagefolder:trees:8", tmp_path)


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
    images = load_images(name_folder("imagefolder:wide:8", tmp_path), tmp_path)
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


def test_hidden_names_are_neither_classes_nor_pictures(trees, tmp_path):
    written, name = trees
    ash = tmp_path / "trees" / "train" / "ash"
    picture = next(ash.iterdir())
    for folder in (ash.parent, ash, ash.parent.parent):
        hidden = folder / ".ipynb_checkpoints"
        hidden.mkdir()
        shutil.copy(picture, hidden / "copy.png")
    shutil.copy(picture, ash / "._000.png")
    (ash / ".DS_Store").touch()
    (ash.parent / "notes.txt").touch()
    assert name_folder("imagefolder:trees:8", tmp_path) == name
    facts = look_up_facts(name, tmp_path)  # ahead of any reading
    assert (facts.classes, facts.train_images, facts.test_images) == (3, 27, 9)
    assert look_up_facts(name, tmp_path / "nowhere").is_assumed
    images = load_images(name, tmp_path)
    assert (images.classes, len(images.train), len(images.test)) == (3, 27, len(written.test_N))


BROKEN = {
    "short": lambda file: file.write_bytes(file.read_bytes()[:60]),
    "text": lambda file: file.write_text("no picture"),
    "empty": lambda file: file.write_bytes(b""),
    "chunk": lambda file: file.write_bytes(file.read_bytes().replace(b"IDAT", b"IDAX")),
    "bomb": lambda file: file.write_bytes(png(8, 0, b"", size=(60_000, 60_000))),
    "link": lambda file: (file.unlink(), file.symlink_to("nowhere.png")),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "format": lambda file: file.rename(file.with_suffix(".heic")).write_bytes(b"ftypheic"),
    "circle": lambda file: (file.unlink(), file.symlink_to(file)),
    "float": lambda file: file.write_bytes(tiff(32, bytes(8), sample=3)),
    "profile": lambda file: Image.new("RGB", (8, 8)).save(file, icc_profile=b"none"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_picture_that_cannot_be_read_is_named_in_one_line(how, trees, tmp_path):
    picture = tmp_path / "trees" / "train" / "birch" / "001.png"
    BROKEN[how](picture)
    with pytest.raises(
        DataError, match=rf"{picture.with_suffix('')}.* is not a picture .*: \w"
    ) as caught:
        load_images(name_folder("imagefolder:trees:8", tmp_path), tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "error", [MemoryError(), SyntaxError("bad\nheader"), struct.error("short"), RecursionError()]
)
def test_whatever_pillow_raises_names_the_picture(error, trees, tmp_path, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr(pictures, "render", fail)
    with pytest.raises(DataError, match=r"ash/000.png is not a picture .*: \w") as caught:
        load_images(trees[1], tmp_path)
    assert str(caught.value).isprintable()


def test_names_of_any_bytes_are_read_and_told(trees, tmp_path):
    written, name = trees
    for half in ("train", "test"):
        ash, birch = (tmp_path / "trees" / half / name for name in ("ash", "birch"))
        ash.rename(ash.with_name(os.fsdecode(b"\xff ash\n")))
        for at, file in enumerate(sorted(birch.iterdir())):
            file.rename(file.with_name(os.fsdecode(b"\xe9 %d\t\x1b.PNG" % at)))
    other = name_folder("imagefolder:trees:8", tmp_path)
    assert other != name
    images = load_images(other, tmp_path)
    assert (images.classes, len(images.test)) == (3, len(written.test_N))
    (birch / os.fsdecode(b"\xe9 0\t\x1b.PNG")).write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(f"{birch}/\\udce9 0\\t\\x1b.PNG is not")):
        load_images(name_folder("imagefolder:trees:8", tmp_path), tmp_path)


def test_a_folder_that_cannot_be_classified_is_explained(trees, tmp_path):
    def complaint():
        with pytest.raises(DataError) as caught:
            name_folder("imagefolder:trees:8", tmp_path)
        return str(caught.value)

    folder = tmp_path / "trees"
    with pytest.raises(DataError, match="should hold train/CLASS/PICTURE and test/CLASS/PICTURE"):
        name_folder("imagefolder:nowhere:8", tmp_path)
    with pytest.raises(DataError, match="goes on with FOLDER:PIXELS"):
        name_folder("imagefolder:trees", tmp_path)
    cedar = folder / "test" / "cedar"
    cedar.rename(folder / "test" / "oak")
    assert "differ in classes: cedar, oak" in complaint()
    (folder / "test" / "oak").rename(cedar)
    for picture in cedar.iterdir():
        picture.rename(picture.with_suffix(".txt"))
    assert complaint() == f"{cedar} holds no picture; add some, or remove it"
    for half in ("train", "test"):
        shutil.rmtree(folder / half / "cedar")
        shutil.rmtree(folder / half / "birch")
    assert complaint().endswith("of two classes or more; it has ash")
    (folder / "train" / "ash" / "loop").symlink_to(folder / "train")
    assert complaint().endswith("ash/loop/ash leads back to a folder that it lies in; remove it")


def chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(depth, colour, row, *, palette=b"", key=b"", size=(2, 1)):
    """A PNG of one row, byte by byte; `key` is its tRNS."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette) if palette else b"",
            chunk(b"tRNS", key) if key else b"",
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(bits, content, *, white=1, orientation=1, sample=1):
    """A grey TIFF of 2x1 pixels, byte by byte; `white` is its PhotometricInterpretation."""
    size, short, long = len(content), 3, 4
    tags = [
        (256, long, 2), (257, long, 1), (258, short, bits), (259, short, 1), (262, short, white),
        (273, long, 8), (274, short, orientation), (277, short, 1), (278, long, 1),
        (279, long, size), (339, short, sample),
    ]  # fmt: skip
    directory = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags
    )
    start = 8 + size + size % 2
    body = content.ljust(start - 8, b"\0") + struct.pack("<H", len(tags)) + directory
    return b"II*\0" + struct.pack("<I", start) + body + bytes(4)


def saved(mode, pixels, form, **options):
    """What Pillow itself writes of a row of `pixels`."""
    picture = Image.new(mode, (len(pixels), 1))
    for at, pixel in enumerate(pixels):
        picture.putpixel((at, 0), pixel)
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def show(content):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(render(picture)).tolist()


GREY = {value: [value] * 3 for value in range(256)}
BLACK, WHITE = GREY[0], GREY[255]

SEEN = {
    # PNG's specification, s. 13.12: a sample of n bits is shown as sample * 255 / (2^n - 1);
    # s. 11.3.2.1: tRNS is in the samples of the file.
    "1 bit": (png(1, 0, b"\x40"), [BLACK, WHITE]),
    "1 bit, black is clear": (png(1, 0, b"\x40", key=b"\0\0"), [WHITE, WHITE]),
    "1 bit, white is clear": (png(1, 0, b"\x40", key=b"\0\1"), [BLACK, WHITE]),
    "2 bits": (png(2, 0, b"\x60"), [GREY[85], GREY[170]]),
    "2 bits, 2 is clear": (png(2, 0, b"\x60", key=b"\0\2"), [GREY[85], WHITE]),
    "4 bits, 10 is clear": (png(4, 0, b"\xa9", key=b"\0\x0a"), [WHITE, GREY[153]]),
    "8 bits, 10 is clear": (png(8, 0, b"\x0a\x14", key=b"\0\x0a"), [WHITE, GREY[20]]),
    "16 bits": (png(16, 0, b"\x12\xf0\xff\xff"), [GREY[19], WHITE]),
    "16 bits, one is clear": (png(16, 0, b"\x12\xf0\x12\xf1", key=b"\x12\xf0"), [WHITE, GREY[19]]),
    "16 bits and alpha": (png(16, 4, b"\x80\0\xff\xff\x80\0\0\0"), [GREY[128], WHITE]),
    "RGB of 16 bits": (png(16, 2, bytes([9, 9, 8, 8, 7, 7] * 2)), [[9, 8, 7]] * 2),
    "RGB, one is clear": (
        png(8, 2, bytes([1, 2, 3, 4, 5, 6]), key=b"\0\1\0\2\0\3"),
        [WHITE, [4, 5, 6]],
    ),
    # A fifth of (200, 100, 0) over four fifths of white.
    "RGBA": (png(8, 6, bytes([200, 100, 0, 51, 5, 6, 7, 255])), [[244, 224, 204], [5, 6, 7]]),
    "palette": (png(8, 3, b"\1\0", palette=bytes([9, 8, 7, 1, 2, 3])), [[1, 2, 3], [9, 8, 7]]),
    "palette, clear": (
        png(2, 3, b"\x40", palette=bytes([9, 8, 7, 1, 2, 3]), key=b"\xff\0"),
        [WHITE, [9, 8, 7]],
    ),
    "palette, half clear": (
        png(8, 3, b"\0\1", palette=bytes([0, 0, 0, 1, 2, 3]), key=b"\x66\xff"),
        [GREY[153], [1, 2, 3]],
    ),
    "GIF": (saved("P", [0, 1], "GIF", transparency=1), [BLACK, WHITE]),
    "CMYK JPEG": (saved("CMYK", [(0, 255, 255, 0)] * 8, "JPEG"), [[255, 0, 0]] * 8),
    "CMYK TIFF": (saved("CMYK", [(255, 0, 255, 0)], "TIFF"), [[0, 255, 0]]),
    "PGM of 12 bits": (b"P5 2 1 4095\n" + struct.pack(">HH", 2048, 4095), [GREY[128], WHITE]),
    "TIFF of 12 bits": (tiff(12, b"\xff\xf8\x00"), [WHITE, GREY[128]]),
    "TIFF of 16 bits": (tiff(16, struct.pack("<HH", 257 * 4, 65535)), [GREY[4], WHITE]),
    "TIFF of 16 bits, 0 is white": (
        tiff(16, struct.pack("<HH", 257 * 4, 65535), white=0),
        [GREY[251], BLACK],
    ),
    "TIFF, 0 is white": (tiff(8, b"\0\xff", white=0), [WHITE, BLACK]),
    "JPEG 2000 of 16 bits": (saved("I;16", [257 * 3, 65535], "JPEG2000"), [GREY[3], WHITE]),
    "WebP": (
        saved("RGBA", [(1, 2, 3, 255), (9, 9, 9, 0)], "WEBP", lossless=True),
        [[1, 2, 3], WHITE],
    ),
}


@pytest.mark.parametrize("content", SEEN)
def test_pixels_are_those_that_a_person_sees(content):
    file, expected = SEEN[content]
    [row] = show(file)
    assert row == expected


@pytest.mark.parametrize(
    "content",
    [
        tiff(32, struct.pack("<ff", 0, 1), sample=3),
        tiff(32, struct.pack("<ii", 0, 1), sample=2),
        tiff(16, struct.pack("<hh", 0, 1), sample=2),
        tiff(8, b"\0\1", sample=2),
        b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0, 1),
        saved("LAB", [(128, 0, 0)], "TIFF"),
    ],
    ids=["float", "32 bits", "signed 16 bits", "signed 8 bits", "float PFM", "CIELAB"],
)
def test_a_mode_without_an_agreed_white_is_refused_by_name(content):
    with pytest.raises(ValueError, match=r"(of mode (F|I|LAB)|signed integers) looks? different"):
        show(content)


def test_a_clear_colour_of_16_bits_is_refused():
    with pytest.raises(ValueError, match="transparent colour of 16 bits"):
        show(png(16, 2, bytes(12), key=bytes(6)))


# Where the first pixel of the row (1, 2) comes to stand: the EXIF standard, tag 274.
UPRIGHT = {
    1: [[1, 2]], 2: [[2, 1]], 3: [[2, 1]], 4: [[1, 2]],
    5: [[1], [2]], 6: [[1], [2]], 7: [[2], [1]], 8: [[2], [1]],
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_picture_stands_upright_as_its_exif_says(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    expected = [[GREY[value] for value in row] for row in UPRIGHT[orientation]]
    assert show(saved("L", [1, 2], "PNG", exif=exif)) == expected
    assert show(saved("I;16", [257, 514], "PNG", exif=exif)) == expected
    assert show(saved("RGB", [(1, 1, 1), (2, 2, 2)], "WEBP", exif=exif, lossless=True)) == expected
    assert show(tiff(8, b"\1\2", orientation=orientation)) == expected
    assert show(tiff(16, b"\1\1\2\2", orientation=orientation)) == expected


def test_a_colour_profile_is_applied_and_one_of_other_channels_is_not():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose first channel is what sRGB calls green, and whose second is its red.
    swapped = srgb.replace(b"rXYZ", b"none").replace(b"gXYZ", b"rXYZ").replace(b"none", b"gXYZ")
    for form, tolerance in (("PNG", 1), ("TIFF", 1)):
        for mode, alpha in (("RGB", ()), ("RGBA", (255,))):
            row = [(200, 100, 3, *alpha)] * 2
            [[as_it_is, _]] = show(saved(mode, row, form, icc_profile=srgb))
            [[shown, _]] = show(saved(mode, row, form, icc_profile=swapped))
            assert np.abs(np.subtract(as_it_is, (200, 100, 3))).max() <= tolerance
            assert np.abs(np.subtract(shown, (100, 200, 3))).max() <= tolerance
    assert show(saved("L", [77], "PNG", icc_profile=swapped)) == [[GREY[77]]]


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
