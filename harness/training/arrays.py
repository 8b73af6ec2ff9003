"""Read a user's own images from a file of arrays (see `study.arrays`), and check what they say.

Shapes (letters of this module):
    N images, H and W height and width, C channels
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from harness.study.arrays import Arrays, read_arrays, read_named
from harness.study.errors import DataError
from harness.study.facts import find_dataset_mistake

_DTYPES = {"|u1": torch.uint8, "|i1": torch.int8, "<u2": torch.uint16, "<i2": torch.int16} | {
    "<u4": torch.uint32,
    "<i4": torch.int32,
    "<u8": torch.uint64,
    "<i8": torch.int64,
    "|b1": torch.bool,
}
"""numpy's name of a type -> torch's."""

NAMED_CLASSES = 5
"""Classes that a message lists; the rest are counted."""


def name_arrays(name: str, root: Path) -> str:
    """Complete `arrays:NAME` with the digest of what is in its file now.

    Raises:
        DataError: the file does not have the expected content.
    """
    if mistake := find_dataset_mistake(f"{name}@{'0' * 16}"):
        raise DataError(mistake)
    return f"{name}@{read_arrays(find_file(name.split(':')[1], root)).digest()}"


def find_file(name: str, root: Path) -> Path:
    """Where the arrays called `name` lie."""
    return root / f"{name}.npz"


def read_images(file: Path, *, digest: str) -> tuple[Tensor, Tensor, Tensor]:
    """(x_NHWC uint8, y_N int64, test_N bool) of the file, if its digest is the one expected.

    Raises:
        DataError: the file does not have the expected content, or its digest differs.
    """
    arrays = read_named(file, digest)
    x, y, test_N = (_to_tensor(arrays, name) for name in ("x", "y", "is_test"))
    labels = arrays.labels()
    _refuse_numbers(file, min(labels), max(labels), len(labels))
    y_N = y.long()
    _refuse_labels(file, y_N, test_N)
    return x if x.ndim == 4 else x[..., None], y_N, test_N


def _to_tensor(arrays: Arrays, name: str) -> Tensor:
    header = arrays.headers[name]
    flat = torch.frombuffer(arrays.contents[name], dtype=_DTYPES[header.dtype])
    if header.is_fortran:
        return flat.view(header.shape[::-1]).permute(*reversed(range(len(header.shape))))
    return flat.view(header.shape)


def _refuse_numbers(file: Path, least: int, most: int, images: int) -> None:
    """Stop where `least` and `most` of y number no classes; a uint64 may be beyond any tensor."""
    if least < 0:
        raise DataError(f"{file}: y has {least}; classes are whole numbers from 0")
    if most == 0:
        raise DataError(f"{file}: y names one class only; a network needs two to tell apart")
    if most >= images:
        raise DataError(
            f"{file}: y has {most:,}, and there are {images:,} images: number the classes "
            "from 0, as numpy.unique(y, return_inverse=True)[1] does"
        )


def _refuse_labels(file: Path, y_N: Tensor, test_N: Tensor) -> None:
    """Stop where training would have no sense: each class needs images on both sides."""
    classes = int(y_N.max()) + 1
    for side, of_side in (("training", y_N[~test_N]), ("test", y_N[test_N])):
        lacking = (of_side.bincount(minlength=classes) == 0).nonzero().flatten().tolist()
        if lacking:
            more = len(lacking) - NAMED_CLASSES
            named = ", ".join(map(str, lacking[:NAMED_CLASSES])) + f" and {more} more" * (more > 0)
            raise DataError(
                f"{file}: no {side} image of class {named}; number the classes from 0 without gaps, "
                "and let is_test leave some of each class on both sides"
            )
