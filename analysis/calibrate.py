"""Find out how often the verdicts are wrong, on simulated grids whose truth is known.

::

    python -m analysis.calibrate            # the reference design
    python -m analysis.calibrate RESULTS    # cells, seeds and spreads of loaded results

Exit code 1 if a promise is not kept, 2 if there is nothing to simulate, 3 if the results folder
cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.study.terminal import Parser, say

if TYPE_CHECKING:
    from analysis.judgement.promises import Rate
    from analysis.judgement.simulation import Design


STOPPING_PART = 4
"""Of so many grids one is followed look by look, which takes longer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rates of a design; the exit code says whether every promise is kept."""
    parser = Parser(
        prog="python -m analysis.calibrate",
        description="Find out how often the verdicts are wrong, on simulated grids whose truth is known.",
        epilog="Exit code: 0 every promise is kept, 1 one is not, 2 there is nothing to simulate, "
        "3 the results folder cannot be used.",
    )
    parser.add_argument("results", nargs="?", help="folder or s3:// prefix whose design to take")
    parser.add_argument(
        "--replicates", type=_count, default=4_000, help="grids per scenario (default: 4000)"
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        help="per cell (default: those of RESULTS, or of the reference design)",
    )
    parser.add_argument(
        "--sd",
        type=_points,
        help="of the paired differences, in percentage points, without RESULTS (default: that of the "
        "reference design)",
    )
    parser.add_argument("--rng", type=int, default=0, help="state of the generator (default: 0)")
    options = parser.parse_args(arguments)
    # Not for --help: pandas and scipy take seconds.
    import numpy as np  # noqa: PLC0415

    from analysis.judgement.outcomes import collect_outcomes  # noqa: PLC0415
    from analysis.judgement.promises import calibrate  # noqa: PLC0415
    from analysis.judgement.simulation import (  # noqa: PLC0415
        find_design,
        make_reference_design,
    )
    from analysis.judgement.stopping import calibrate_stopping  # noqa: PLC0415
    from analysis.judgement.together import (  # noqa: PLC0415
        calibrate_stopping_together,
        calibrate_together,
    )
    from analysis.load import ResultsError, load_results  # noqa: PLC0415

    if options.results and options.sd is not None:
        parser.error("--sd is for the reference design; RESULTS have spreads of their own")
    given = {name: value for name in ("seeds", "sd") if (value := getattr(options, name))}
    designs = [make_reference_design(**given)]
    if options.results:
        try:
            results = load_results(options.results)
        except ResultsError as error:
            say(error, is_error=True)
            return 3
        found = (find_design(study, results.plan) for study in collect_outcomes(results))
        designs = [
            replace(design, seeds=options.seeds or design.seeds) for design in found if design
        ]
        if not designs:
            message = f"{options.results}: no cell has two pairs of after and before to go by"
            say(message, is_error=True)
            return 2
    is_kept = True
    few = -(-options.replicates // STOPPING_PART)
    for number, design in enumerate(designs):
        rng = np.random.default_rng(options.rng)
        rates = calibrate(design, replicates=options.replicates, rng=rng)
        say(("\n" if number else "") + _tabulate(design, rates))
        is_kept &= all(rate.is_kept for rate in rates)
        if not options.results or len(design.plan.looks) > 1:
            rng = np.random.default_rng(options.rng)
            rates = calibrate_stopping(design, replicates=few, rng=rng)
            say(f"\n{design.name}, --until-decided: {few} grids per scenario\n{_list(rates)}")
            is_kept &= all(rate.is_kept for rate in rates)
    if len(designs) > 1:
        rng = np.random.default_rng(options.rng)
        rates = calibrate_together(designs, replicates=options.replicates, rng=rng)
        say(f"\nstudies read together: {rates[0].replicates} grids per scenario\n{_list(rates)}")
        is_kept &= all(rate.is_kept for rate in rates)
        if len(designs[0].plan.looks) > 1:
            rates = calibrate_stopping_together(designs, replicates=few, rng=rng)
            say(f"\ntogether, --until-decided: {few} grids per scenario\n{_list(rates)}")
            is_kept &= all(rate.is_kept for rate in rates)
    return 0 if is_kept else 1


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a count from 1 up")
    return int(text)


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = float("nan")
    if not 0 < points < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points between 0 and 100")
    return points


def _tabulate(design: Design, rates: Sequence[Rate]) -> str:
    cells, seeds = len(design.cells), design.seeds
    size = f"{cells} cell{'s' * (cells != 1)}, {seeds} seed{'s' * (seeds != 1)}"
    return f"{design.name}: {size}, {rates[0].replicates} grids per scenario\n{_list(rates)}"


def _list(rates: Sequence[Rate]) -> str:
    lines, previous = [], None
    for rate in rates:
        if rate.scenario != previous:
            lines += ["", rate.scenario]
        previous = rate.scenario
        share = f"{100 * rate.share:5.1f} % ± {100 * rate.error:.1f}"
        verdict = "" if rate.is_kept else "   NOT KEPT"
        lines.append(f"  {rate.measure:<56} {share:>16}   {rate.promise:<14}{verdict}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
