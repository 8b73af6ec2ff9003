"""python -m harness.datasets NAME...: fetch data sets and make them ready for this machine's workers."""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.study.errors import DataError
from harness.training import sources
from harness.training.images import default_root, load_images


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.datasets",
        description="Fetch data sets and make them ready for all workers of this machine.",
        epilog="imagefolder:FOLDER:PIXELS prints the full name of the pictures in FOLDER, which "
        "holds train/CLASS/PICTURE and test/CLASS/PICTURE.",
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help="as `dataset` in a grid")
    parser.add_argument("--root", type=Path, metavar="DIR", default=default_root())
    options = parser.parse_args(arguments)
    for asked in options.names:
        unpinned = asked.startswith("imagefolder:") and "@" not in asked
        try:
            name = sources.name_folder(asked, options.root) if unpinned else asked
            images = load_images(name, options.root, fetch=True)
        except DataError as error:
            print(f"harness.datasets: {error}", file=sys.stderr)
            return error.exit_code
        parts = (images.train, images.validation, images.test)
        sizes = " + ".join(f"{len(part):,}" for part in parts)
        shape = "x".join(map(str, images.shape))
        best = ""
        if name.startswith("synthetic"):
            best = f", of which nobody tells more than {sources.bayes_accuracy(images.classes):.1%}"
        print(f"{name}: {sizes} images of {shape}, {images.classes} classes{best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
