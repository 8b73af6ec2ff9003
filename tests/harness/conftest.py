"""What the harness' tests may ask for: images, one thread, and places to keep rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.training.images import Images


@pytest.fixture(scope="session")
def digits() -> Images:
    """The bundled data set."""
    from harness.training.images import load_images

    return load_images("digits")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch set as in a worker."""
    import torch

    from harness.training.train import prepare_worker

    before = torch.get_num_threads()
    prepare_worker(threads=1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["folder", "bucket"])
def location(request, tmp_path) -> str:
    """Somewhere to keep results, of either kind; nothing is there yet."""
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return str(tmp_path / "results" / "quickstart")
