"""Everything dies, trials misbehave, disk and files are broken: no row is lost, and nothing harmed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.chaos import rampaging


@pytest.mark.ray
@pytest.mark.slow
def test_no_row_is_lost_and_no_file_harmed_whatever_breaks():
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,  # short: Ray puts sockets below it
        rampaging(Path(folder), faults=20, seed=1) as rampage,
    ):
        toll = rampage.run()
    assert toll.is_clean, toll
    assert toll.faults.total() == 20
    assert toll.foreign, toll
    assert toll.starts >= toll.found, toll
