"""A user's own images: NAME.npz below the folder of all data sets, as numpy's `savez` writes it.

    x        uint8 (N, H, W, C), or (N, H, W) for grey images
    y        whole numbers (N,), classes from 0
    is_test  bool (N,), the images of the test part

Read without numpy and never unpickled. Sizes are checked before anything is held in memory: a
packed file can claim any. Standard library only.

Source:
    The format of .npy: numpy.lib.format, versions 1.0 to 3.0.
"""

from __future__ import annotations

import ast
import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.study.errors import DataError
from harness.study.wording import clip

ARRAYS = re.compile(r"arrays:([A-Za-z0-9][\w.-]*)@([0-9a-f]{16})", re.ASCII)
"""Name of the file without .npz, digest of what is in it: equal names, equal images."""

MOST_BYTES = 2**35
"""Of all arrays together: a machine holds them in memory."""

_MOST_PACKED = 1_000_000, 100
"""Bytes from which on an array may be no more than so many times its packed size. Images pack to a
half or a tenth; a file made to fill a memory to a thousandth."""

_COLOURS = 1, 3, 4
"""Channels of grey images, of colour, and of colour with transparency."""

_INTEGERS: Mapping[str, Any] = {
    "|u1": "B",
    "|i1": "b",
    "<u2": "H",
    "<i2": "h",
    "<u4": "I",
    "<i4": "i",
    "<u8": "Q",
    "<i8": "q",
}
"""numpy's name of a type -> that of `memoryview.cast`."""

_WANTED: Mapping[str, tuple[str, tuple[int, ...], str]] = {
    "x": (
        "uint8 of shape (N, H, W, C) or (N, H, W)",
        (3, 4),
        "scale the pixels to 0 ... 255, then x.round().astype('uint8')",
    ),
    "y": ("whole numbers of shape (N,)", (1,), "number the classes from 0, then y.astype('int64')"),
    "is_test": ("bool of shape (N,)", (1,), "is_test.astype('bool')"),
}
"""Array -> what it should be, in words; its numbers of axes; what to do about another type."""

_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}

_IN_WORDS = {"b": "bool", "O": "objects", "U": "text", "S": "bytes"}
"""numpy's letter of a type -> its name, without a number of bits."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an array's header says of it."""

    dtype: str
    """As numpy writes it: '|u1', '<i8'."""
    shape: tuple[int, ...]
    is_fortran: bool
    """The first axis varies fastest."""

    def __str__(self) -> str:
        """What the array is, in words.

        >>> str(Header(">i4", (60,), False)), str(Header("<U7", (60,), False))
        ('int32 (big-endian) of shape (60,)', 'text of shape (60,)')
        """
        order, kind, width = self.dtype[:1], self.dtype[1:2], self.dtype[2:]
        words = _IN_WORDS.get(kind, clip(self.dtype, 40))
        if kind in _KINDS and re.fullmatch("[0-9]{1,2}", width):
            words = f"{_KINDS[kind]}{8 * int(width)}" + " (big-endian)" * (order == ">")
        return f"{words} of shape {self.shape}"

    @property
    def size(self) -> int:
        """Bytes of the array."""
        size = int(re.sub(r"\D", "", self.dtype) or 0)
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class Arrays:
    """The file of one data set: the headers and, where they were read, the bytes of its arrays."""

    headers: Mapping[str, Header]
    contents: Mapping[str, bytearray]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, height, width, *channels = self.headers["x"].shape
        return (channels[0] if channels else 1), height, width

    def labels(self) -> memoryview:
        """y, one whole number after the other."""
        return memoryview(self.contents["y"]).cast(_INTEGERS[self.headers["y"].dtype])

    def digest(self) -> str:
        """16 hex digits of types, shapes and bytes, however the file is packed."""
        digest = hashlib.blake2b(digest_size=8)
        for name in _WANTED:
            header = self.headers[name]
            layout = "F" if header.is_fortran else "C"
            digest.update(f"{name} {header.dtype} {header.shape} {layout}\n".encode())
            digest.update(self.contents[name])
        return digest.hexdigest()


def read_arrays(file: Path, names: tuple[str, ...] = tuple(_WANTED)) -> Arrays:
    """Read the headers of all arrays in `file` and the bytes of those called `names`.

    Raises:
        DataError: the file is absent, damaged, or holds other arrays; says which.
    """
    with _explained(file), zipfile.ZipFile(file) as archive:
        headers = {name: _read_header(archive, file, name) for name in _WANTED}
        _refuse_shapes(file, headers)
        contents = {name: _read_content(archive, file, name, headers[name]) for name in names}
    flags = contents.get("is_test", b"")
    if flags.count(0) + flags.count(1) != len(flags):
        raise DataError(
            f"{file}: is_test holds other bytes than 0 and 1; write is_test.view('uint8') > 0"
        )
    return Arrays(headers, contents)


def read_named(file: Path, digest: str) -> Arrays:
    """Read the arrays in `file`, which have this digest.

    Raises:
        DataError: as above, or they are others.
    """
    arrays = read_arrays(file)
    if (found := arrays.digest()) != digest:
        raise DataError(
            f"{file} has the digest {found}, not {digest}: it holds other images. Restore it, or "
            f"name these: arrays:{file.stem}@{found}"
        )
    return arrays


def _read_header(archive: zipfile.ZipFile, file: Path, name: str) -> Header:
    wanted, axes, remedy = _WANTED[name]
    if f"{name}.npy" not in archive.namelist():
        found = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()))
        raise DataError(
            f"{file} has no array {name!r}: it should hold x, y and is_test, as "
            f"numpy.savez({file.name!r}, x=x, y=y, is_test=is_test) writes them; it has {found or 'none'}"
        )
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed as numpy packs nothing")  # a byte may become a million
    with archive.open(member) as stream:
        header = _parse_header(stream)
    is_right = {
        "x": header.dtype == "|u1",
        "y": header.dtype in _INTEGERS,
        "is_test": header.dtype == "|b1",
    }
    if not is_right[name] or len(header.shape) not in axes:
        hint = f"; {remedy}" if len(header.shape) in axes else ""
        raise DataError(f"{file}: {name} should be {wanted}, and is {header}{hint}")
    return header


def _refuse_shapes(file: Path, headers: Mapping[str, Header]) -> None:
    counts = {name: header.shape[0] for name, header in headers.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise DataError(f"{file}: its arrays differ in length: {lengths}")
    shape = headers["x"].shape
    if not all(shape):
        raise DataError(f"{file}: x has no pixels: its shape is {shape}")
    if len(shape) == 4 and shape[1] in _COLOURS and shape[3] > max(_COLOURS):
        raise DataError(
            f"{file}: x has the shape {shape}: channels come last; write x.transpose(0, 2, 3, 1)"
        )
    if (size := sum(header.size for header in headers.values())) > MOST_BYTES:
        raise DataError(f"{file}: its arrays have {size:,} bytes; {MOST_BYTES:,} at most")


def _parse_header(stream: IO[bytes]) -> Header:
    """Read the header of a .npy file; the array follows it."""
    if stream.read(6) != b"\x93NUMPY":
        raise ValueError("an array in it does not begin as numpy's do")
    major, _ = stream.read(2)
    length = int.from_bytes(stream.read(2 if major == 1 else 4), "little")
    if length > 10_000:
        raise ValueError("an array in it has a header longer than any of numpy's")
    said = ast.literal_eval(stream.read(length).decode("latin-1").strip())
    shape = said["shape"]
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(f"an array in it has the shape {clip(str(shape), 60)}")
    return Header(str(said["descr"]), shape, bool(said["fortran_order"]))


def _read_content(archive: zipfile.ZipFile, file: Path, name: str, header: Header) -> bytearray:
    member = archive.getinfo(f"{name}.npy")
    most, times = _MOST_PACKED
    packed = min(member.compress_size, file.stat().st_size)  # it may claim any size
    if header.size > max(most, times * packed):
        raise DataError(
            f"{file}: {name} is packed to {packed:,} of {header.size:,} bytes, as no "
            "images are; if they really are that empty, write them with numpy.savez"
        )
    with archive.open(member) as stream:
        _parse_header(stream)
        content = bytearray(stream.read(header.size))
        if len(content) != header.size or stream.read(1):
            raise ValueError(f"{name} has not the size that its header says")
    return content


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{file} is missing; write it with numpy.savez, or let BN_ORDER_DATA name its folder"
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except DataError:
        raise
    except Exception as error:  # whatever its class: zipfile lets through those of its unpackers
        said = str(error) or type(error).__name__
        raise DataError(f"{file} is not a file that numpy.savez wrote: {said}") from error
