"""python -m harness.datasets NAME...: fetch data sets and make them ready for this machine's workers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.study.errors import DataError
from harness.study.facts import DATASETS, Facts, default_root, facts_of, look_up_facts
from harness.study.terminal import Parser, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser(
        prog="python -m harness.datasets",
        description="Fetch data sets and make them ready for all workers of this machine.",
        epilog="imagefolder:FOLDER:PIXELS prints the full name of the pictures in FOLDER, which "
        "holds train/CLASS/PICTURE and test/CLASS/PICTURE; names that begin with a dot do not count. "
        "arrays:NAME does so for NAME.npz, which holds x (uint8; N, H, W, C), y and is_test.",
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="as `dataset` in a grid; without it, the published ones are listed",
    )
    parser.add_argument("--root", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if not options.names:
        for name in DATASETS:
            say(f"{_describe(name, facts_of(name))}, from {facts_of(name).source}")
        return 0
    from harness.training import arrays, pictures, sources  # noqa: PLC0415 - torch: not for --help
    from harness.training.images import load_images  # noqa: PLC0415 - the same

    complete = {"imagefolder": pictures.name_folder, "arrays": arrays.name_arrays}
    for asked in options.names:
        kind = asked.partition(":")[0] if "@" not in asked else ""
        try:
            root = options.root or default_root()
            name = complete.get(kind, lambda name, _: name)(asked, root)
            load_images(name, root, fetch=True)
        except DataError as error:
            say(f"harness.datasets: {error}", is_error=True)
            return error.exit_code
        facts = look_up_facts(name, root)
        best = ""
        if name.startswith("synthetic"):
            best = f", of which nobody tells more than {sources.bayes_accuracy(facts.classes):.1%}"
        say(f"{_describe(name, facts)}{best}")
    return 0


def _describe(name: str, facts: Facts) -> str:
    counts = (facts.train_images, facts.validation_images, facts.test_images)
    sizes = " + ".join(f"{count:,}" for count in counts)
    shape = "x".join(map(str, facts.shape))
    return f"{name}: {sizes} images of {shape}, {facts.classes} classes"


if __name__ == "__main__":
    sys.exit(main())
