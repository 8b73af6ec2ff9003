"""Draw outside Python: charts in a JavaScript engine beside this process, the PDF in a browser.

Light to import: the command line asks for a browser ahead of everything else, and the engine's
process imports no more than this.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import vl_convert

from analysis.page import svg

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_LONGEST = 100_000
"""Letters of a picture that the page still takes as it is: a tile for each of thousands of trials
would weigh megabytes, which nobody could tell from as many pixels."""
_MILLIMETRES = re.compile(r'="([\d.]+)mm"')
"""Of a picture; vl-convert takes a pixel for a point of a PDF."""
_PIXELS = 3
"""Of a screen per pixel of a picture in inches: 288 an inch."""
_PRINTED_WIDTH = 822
"""Pixels of a window in which charts are as wide as on A4 between the margins of page.css."""


def read(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("analysis.page").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def start_engine() -> ProcessPoolExecutor:
    """The engine's process; a thread would not do, for Vega keeps Python waiting while it draws."""
    return ProcessPoolExecutor(
        1,
        mp_context=get_context("spawn"),
        initializer=signal.signal,  # an interruption is for this process to report
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )


def draw(spec: dict[str, Any], prefix: str) -> Future[svg.Drawing]:
    """Draw one chart; `prefix` tells its ids from those of its neighbours on a page."""
    return start_engine().submit(_draw, spec, prefix)


def _draw(spec: dict[str, Any], prefix: str) -> svg.Drawing:
    written = vl_convert.vegalite_to_svg(spec)
    drawn = svg.tidy(written, prefix)
    if len(drawn.body) < _LONGEST:
        return drawn
    pixels = vl_convert.svg_to_png(svg.on_paper(written), scale=2)
    return replace(drawn, pixels=base64.b64encode(pixels).decode())


def convert(picture: str, path: Path) -> Future[int]:
    """Write a picture in SVG as what the file's name ends with, pdf or png, in its own size."""
    return start_engine().submit(_convert, picture, path)


def _convert(picture: str, path: Path) -> int:
    if path.suffix == ".pdf":
        sized = _MILLIMETRES.sub(_in_points, picture, count=2)  # its width and its height
        return path.write_bytes(vl_convert.svg_to_pdf(sized))
    return path.write_bytes(vl_convert.svg_to_png(picture, scale=_PIXELS))


def _in_points(size: re.Match[str]) -> str:
    return f'="{float(size[1]) * 72 / 25.4:.2f}"'


def write(path: Path, text: str) -> None:
    """A reader of the file sees the old text or the new, never half of one."""
    hidden = path.with_name(f".{path.name}.tmp")
    hidden.write_text(text, encoding="utf-8")
    hidden.replace(path)


def find_browser() -> str | None:
    """A browser that prints pages, if this machine has one."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def print_pdf(page: Path, target: Path) -> None:
    """Print the page as a reader would.

    Raises:
        OSError: the browser could not.
    """
    browser = find_browser()
    assert browser is not None, "the command line asks for one"
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *("--headless=new", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium insists, as root
            f"--user-data-dir={profile}",
            f"--window-size={_PRINTED_WIDTH},1400",
            "--virtual-time-budget=10000",
            f"--print-to-pdf={target.resolve()}",
            page.resolve().as_uri(),
        ]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=120)
        except subprocess.SubprocessError as error:
            raise OSError(f"{browser} could not print {page}") from error
