"""Read a folder of a user's own pictures: which files count, and how a viewer shows each of them.

Files and folders whose names begin with a dot are ignored. Every other file with the suffix of a
picture counts as one: it is read, or refused with a reason.

Shapes (letters of this module):
    N images, H and W height and width, C channels
"""

from __future__ import annotations

import hashlib
import io
import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.study.errors import DataError
from harness.study.facts import explain_lack_of_half, find_dataset_mistake

if TYPE_CHECKING:
    from PIL.Image import Image

_Half = Mapping[str, Sequence[Path]]
"""Class -> its pictures, both in order."""

_RENDERING = b"as a viewer shows it"
"""Part of the digest; change it when the same files give different pixels."""


def name_folder(name: str, root: Path) -> str:
    """Complete `imagefolder:FOLDER:PIXELS` with the digest of the files that are there now.

    Raises:
        DataError: the folder does not have the expected content.
    """
    if mistake := find_dataset_mistake(f"{name}@{'0' * 16}"):
        raise DataError(mistake)
    folder = root / name.split(":")[1]
    return f"{name}@{_digest_halves(folder, _list_halves(folder))}"


def read_folder(
    folder: Path, *, pixels: int, digest: str
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x_NHWC uint8, y_N) of train and test: the shorter side resized to `pixels`, then the centre.

    Raises:
        DataError: the folder does not have the expected content, or its digest differs.
    """
    halves = _list_halves(folder)
    found = _digest_halves(folder, halves)
    if found != digest:
        raise DataError(
            f"the files in {folder} have the digest {found}, not {digest}: they are other images. "
            f"Restore them, or name these: imagefolder:{folder.name}:{pixels}@{found}"
        )
    train, test = (_read_pictures(half, pixels) for half in halves)
    return train, test


def _list_halves(folder: Path) -> tuple[_Half, _Half]:
    train, test = (_list_classes(folder / half) for half in ("train", "test"))
    if differing := sorted({*train} ^ {*test}):
        named = ", ".join(map(_printable, differing))
        raise DataError(f"train and test in {folder} differ in classes: {named}")
    if len(train) < 2:
        raise DataError(
            f"{folder} should hold train/CLASS/PICTURE and test/CLASS/PICTURE of two classes or "
            f"more; it has {', '.join(map(_printable, train)) or 'none'}"
        )
    return train, test


def _list_classes(half: Path) -> _Half:
    from PIL import Image  # noqa: PLC0415 - only training on pictures needs it

    if lack := explain_lack_of_half(half):
        raise DataError(lack)
    Image.init()
    opened = Image.registered_extensions().items()
    suffixes = {suffix for suffix, format_ in opened if format_ in Image.OPEN}
    for types in mimetypes.MimeTypes().types_map:  # an .heic is refused by name, not ignored
        suffixes |= {suffix for suffix, kind in types.items() if kind.startswith("image/")}
    classes = {
        of_class.name: list(_list_pictures(of_class, suffixes, ()))
        for of_class in _list_shown(half)
        if of_class.is_dir()
    }
    for name, pictures in classes.items():
        if not pictures:
            raise DataError(f"{_printable(half / name)} holds no picture; add some, or remove it")
    return classes


def _list_pictures(folder: Path, suffixes: set[str], above: tuple[Path, ...]) -> Iterator[Path]:
    if folder.resolve() in above:
        raise DataError(f"{_printable(folder)} leads back to a folder that it lies in; remove it")
    for path in _list_shown(folder):
        if path.is_dir():
            yield from _list_pictures(path, suffixes, (*above, folder.resolve()))
        elif path.suffix.lower() in suffixes:
            if not path.is_file():  # reading a pipe might never end
                raise DataError(f"{_printable(path)} is not a picture that can be read: no file")
            yield path


def _list_shown(folder: Path) -> list[Path]:
    with _naming(folder, "a folder"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _digest_halves(folder: Path, halves: Sequence[_Half]) -> str:
    digest = hashlib.blake2b(_RENDERING, digest_size=8)
    for path in (path for half in halves for pictures in half.values() for path in pictures):
        with _naming(path):
            content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        digest.update(os.fsencode(path.relative_to(folder)) + f"\0{content}\n".encode())
    return digest.hexdigest()


def _read_pictures(half: _Half, pixels: int) -> tuple[Tensor, Tensor]:
    from PIL import Image  # noqa: PLC0415 - as above
    from torchvision.transforms import functional  # noqa: PLC0415 - as above

    labelled = [(path, y) for y, paths in enumerate(half.values()) for path in paths]
    x_NHWC = torch.empty((len(labelled), pixels, pixels, 3), dtype=torch.uint8)
    for image_HWC, (path, _) in zip(x_NHWC, labelled, strict=True):
        with _naming(path), path.open("rb") as stream, Image.open(stream) as picture:
            shown: Any = render(picture)  # torchvision is typed for tensors only
            square = functional.center_crop(functional.resize(shown, [pixels]), [pixels])
            image_HWC.copy_(functional.pil_to_tensor(square).permute(1, 2, 0))
    return x_NHWC, torch.tensor([y for _, y in labelled])


def render(picture: Image) -> Image:
    """Render `picture` as a viewer shows it, in 8-bit RGB.

    Turned upright by its EXIF data, converted to sRGB by its colour profile, on white where it is
    transparent; the first frame of an animation.

    Raises:
        ValueError: black and white are not defined (floats, signed or 32-bit integers, CIELAB).
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - as above

    upright = ImageOps.exif_transpose(_narrow(picture))
    if upright.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}:
        raise ValueError(
            f"{picture.format} of mode {picture.mode} looks different in every viewer; "
            "save it as RGB or grey with 8 or 16 bits a channel"
        )
    colours = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(upright.mode, "RGB")
    alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    solid = upright if alpha is None else upright.convert("RGBA")
    shown = _to_srgb(solid.convert(colours), picture.info.get("icc_profile"))
    if alpha is None:
        return shown
    return Image.composite(shown, Image.new("RGB", shown.size, "white"), alpha)


def _narrow(picture: Image) -> Image:
    """Reduce the grey values and the transparent colour of a picture to 8 bits.

    Pillow reduces 16-bit channels to 8 bits only where there are several; a single channel is left
    to the caller. It keeps the transparent colour of a PNG as stored, in 1, 2, 4, 8 or 16 bits.
    """
    import numpy as np  # noqa: PLC0415 - as above
    from PIL import Image  # noqa: PLC0415 - as above

    form = picture.format
    tiles: Any = getattr(picture, "tile", None)  # gone once the picture is read
    raw = tiles[0].args if form == "PNG" and tiles else None
    key = picture.info.get("transparency")
    if raw in ("L;2", "L;4") and key is not None:
        picture.info["transparency"] = key * (255 // (2 ** int(raw[2:]) - 1))
    if raw == "RGB;16B" and key is not None:
        raise ValueError("a transparent colour of 16 bits; save it with an alpha channel")
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    if 2 in tags.get(339, ()):  # SampleFormat
        raise ValueError("signed integers look different in every viewer; save them as unsigned")
    deep = form in ("PNG", "TIFF", "JPEG2000") and picture.mode.startswith("I;16")
    if not deep and not (form in ("PNG", "PPM") and picture.mode == "I"):
        return picture
    white = 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample
    value_HW = np.asarray(picture).astype(np.int64)
    grey_HW = (value_HW * 255 + white // 2) // white
    if tags.get(262) == 0:  # PhotometricInterpretation: zero is white
        grey_HW = 255 - grey_HW
    narrow = Image.fromarray(grey_HW.astype(np.uint8))
    if key is not None:
        narrow.putalpha(Image.fromarray((value_HW != key).astype(np.uint8) * 255))
    narrow.info = {name: of for name, of in picture.info.items() if name != "transparency"}
    return narrow


def _to_srgb(picture: Image, profile: bytes | None) -> Image:
    """Apply a colour profile; one made for other channels is ignored, as in viewers."""
    from PIL import ImageCms  # noqa: PLC0415 - as above

    if profile:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == {"L": "GRAY"}.get(picture.mode, picture.mode):
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
            assert converted is not None  # it is None only with inPlace
            return converted
    return picture.convert("RGB")


@contextmanager
def _naming(path: Path, kind: str = "a picture") -> Iterator[None]:
    """Turn every error inside the block into one line that names `path`."""
    try:
        yield
    except Exception as error:  # Pillow and its codecs raise errors of any class
        reason = _printable(str(error) or type(error).__name__)
        raise DataError(f"{_printable(path)} is not {kind} that can be read: {reason}") from error


def _printable(text: str | Path) -> str:
    r"""Escape `text` to one printable line: a name may hold any bytes.

    >>> _printable(os.fsdecode(b"a\xff\n"))
    'a\\udcff\\n'
    """
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in str(text)
    )
