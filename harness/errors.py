"""Everything this package raises on purpose.

* HarnessError
  + GridError     the grid cannot be used as written; its author mends it
  + ClusterError  Ray cannot give what was asked for; whoever runs it asks for less or adds nodes
  + DataError     a data set is absent or not what it should be; says how to get it
  + StoreError    results cannot be written, or what is on disk is not ours

A loss that turns non-finite is not an error: it is an outcome, `TrialRow.status == "diverged"`.
"""

from __future__ import annotations

from collections.abc import Sequence


class HarnessError(Exception):
    """Its text is all that the user reads; `exit_code` is what the shell gets."""

    exit_code = 2


class GridError(HarnessError):
    """The mistakes of one grid, all at once, each ready to print on a line of its own."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class ClusterError(HarnessError):
    """Ray does not answer, or has no node that could ever run a trial of this size."""


class DataError(HarnessError):
    """A data set is absent, damaged, or not the one its name promises."""


class StoreError(HarnessError):
    """The results folder cannot be used."""

    exit_code = 3
