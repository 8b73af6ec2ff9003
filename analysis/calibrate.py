"""Find out how often the verdicts are wrong, on simulated grids whose truth is known.

::

    python -m analysis.calibrate            # the reference design
    python -m analysis.calibrate RESULTS    # cells, seeds and spreads of loaded results

Exit code 1 if a promise is not kept, 2 if there is nothing to simulate, 3 if the results folder
cannot be used.
"""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.judgement.outcomes import collect_outcomes
from analysis.judgement.simulation import (
    REFERENCE_SD,
    REFERENCE_SEEDS,
    Design,
    Rate,
    calibrate,
    find_design,
    make_reference_design,
)
from analysis.load import ResultsError, load_results


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rates of a design; the exit code says whether every promise is kept."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.calibrate",
        description=(__doc__ or "").partition("\n")[0],
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
        help=f"per cell (default: those of RESULTS, or {REFERENCE_SEEDS} without)",
    )
    parser.add_argument(
        "--sd",
        type=_points,
        help="of the paired differences, in percentage points, where no RESULTS give it "
        f"(default: {REFERENCE_SD})",
    )
    parser.add_argument("--rng", type=int, default=0, help="state of the generator (default: 0)")
    options = parser.parse_args(arguments)
    if options.results and options.sd is not None:
        parser.error("--sd is for the reference design; RESULTS have spreads of their own")
    designs = [
        make_reference_design(seeds=options.seeds or REFERENCE_SEEDS, sd=options.sd or REFERENCE_SD)
    ]
    if options.results:
        try:
            results = load_results(options.results)
        except ResultsError as error:
            print(error, file=sys.stderr)
            return 3
        found = (find_design(study, results.plan) for study in collect_outcomes(results))
        designs = [
            replace(design, seeds=options.seeds or design.seeds) for design in found if design
        ]
        if not designs:
            message = f"{options.results}: no cell has two pairs of after and before to go by"
            print(message, file=sys.stderr)
            return 2
    is_kept = True
    for design in designs:
        rng = np.random.default_rng(options.rng)
        rates = calibrate(design, replicates=options.replicates, rng=rng)
        print(_tabulate(design, rates), end="\n\n" if design is not designs[-1] else "\n")
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
    lines = [f"{design.name}: {size}, {rates[0].replicates} grids per scenario"]
    previous = None
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
