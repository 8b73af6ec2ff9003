"""Both sides of a comparison, alternating in one process, so that a noisy machine is noisy for both."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each repeat of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(
    sides: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: bool = True
) -> dict[str, Timing]:
    """Time the sides in turn, `repeats` times over, after one untimed turn of each."""
    if warm_up:
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - begun)
    return {name: Timing(tuple(of_side)) for name, of_side in seconds.items()}


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch  # too large for the processes whose memory is measured

    processor = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    return {
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def read_peak_memory() -> int:
    """Bytes that this process has held at most; `ru_maxrss` counts those of its parent, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(peak) * 1024


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table for people; the JSON beside it is for programs."""
    columns = list(rows[0])
    cells = [[_format(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}")
    for line in (columns, *cells):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _format(value: object) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Keep every repeat of every side."""
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")
