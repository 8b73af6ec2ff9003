"""Workers, nodes and drivers die, trials misbehave, the disk fills up: no row is lost by it."""

from __future__ import annotations

import pytest

from tests.chaos import rampaging


@pytest.mark.ray
@pytest.mark.slow
def test_no_row_is_lost_doubled_or_changed_whatever_dies(tmp_path):
    with rampaging(tmp_path, faults=20, seed=1) as rampage:
        toll = rampage.run()
    assert (toll.lost, toll.doubled, toll.unequal) == (0, 0, 0), toll
    assert toll.found == toll.expected, toll
    assert toll.faults.total() == 20
    assert toll.starts >= toll.found, toll
