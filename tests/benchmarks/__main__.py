"""python -m tests.benchmarks [trial step probe gpu grid forecast fanout growth scale bucket report] [--repeats N] [--json FILE]

Run from the repository's root. Every figure is measured beside what it is compared with, in one
run on one machine; nothing here is asserted, because time on a shared machine is noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.bucket import measure_bucket
from tests.benchmarks.fanout import measure_fanout
from tests.benchmarks.forecast import measure_forecast
from tests.benchmarks.gpu import measure_gpu
from tests.benchmarks.grid import measure_grid
from tests.benchmarks.growth import measure_growth
from tests.benchmarks.probe import measure_probe
from tests.benchmarks.report import measure_report
from tests.benchmarks.scale import measure_scale
from tests.benchmarks.step import measure_steps
from tests.benchmarks.timing import describe_machine, show, write_json
from tests.benchmarks.trial import measure_trials

BENCHMARKS = {
    "trial": lambda repeats: measure_trials(repeats=repeats),
    "step": lambda repeats: measure_steps(repeats=repeats),
    "probe": lambda repeats: measure_probe(repeats=4 * repeats),
    "gpu": lambda _repeats: measure_gpu()["rows"],
    "grid": lambda repeats: measure_grid(repeats=max(1, repeats // 3)),
    "forecast": lambda _repeats: measure_forecast(),
    "fanout": lambda _repeats: measure_fanout(),
    "growth": lambda _repeats: measure_growth(),
    "scale": lambda _repeats: measure_scale(),
    "bucket": lambda _repeats: measure_bucket(),
    "report": lambda _repeats: measure_report(),
}


def main() -> None:
    """Run the benchmarks that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = describe_machine()
    print("  ".join(f"{key} {value}" for key, value in machine.items() if value))
    results = {"machine": machine, "repeats": options.repeats}
    for name in options.names or BENCHMARKS:
        results[name] = BENCHMARKS[name](options.repeats)
        show(name, results[name])
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
