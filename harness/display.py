"""How far a run is, in a terminal: a bar, the counts, a line for each training. Needs rich."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harness.progress import MOST_SHOWN, LineProgress, Progress, format_finish
from harness.study.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from harness.cluster.forecast import Forecast
    from harness.cluster.request import Finish, News
    from harness.study.trials import Trial

NARROW = 60
"""Columns below which the loss is left out."""

WIDEST = 100
"""Columns that the display takes of a terminal."""


class LiveProgress(Progress):
    """For a terminal: a bar, the counts, a line for each training, and the latest that finished."""

    def __init__(
        self,
        trials: Sequence[Trial],
        forecast: Forecast,
        console: Console,
        name: str,
        *,
        verbose: bool = False,
    ) -> None:
        super().__init__(trials, forecast)
        self._console = console
        self._name = name
        self._verbose = verbose
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._latest: deque[Finish] = deque(maxlen=3)

    def note_finish(self, finish: Finish) -> None:
        super().note_finish(finish)
        if self._verbose:
            line = format_finish(self._trials[finish.trial_id], finish)
            self._console.print(printable(line), markup=False)
        else:
            self._latest.append(finish)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,  # the fan-out captures what Ray prints
            redirect_stderr=False,
        ):
            yield

    def _render(self) -> Group:
        width = min(self._console.width, WIDEST)
        headline = Table.grid(padding=(0, 1, 0, 0))
        bar = ProgressBar(total=len(self._trials), completed=self.finished, width=width // 4)
        count = f"{self.finished} of {len(self._trials)}"
        headline.add_row(self._spinner, _line(self._name), bar, Text(count, no_wrap=True))
        latest = [format_finish(self._trials[f.trial_id], f) for f in list(self._latest)]
        state = Text(self._describe_state())
        lines = len(state.wrap(self._console, width)) + len(latest) + 4
        shown, more = self._choose_news(max(1, min(MOST_SHOWN, self._console.height - lines)))
        return Group(
            headline,
            state,
            *([self._tabulate(shown, width)] if shown else []),
            *([_line(f"  ... and {more} more in training")] if more else []),
            *(_line(f"  {line}") for line in latest),
        )

    def _tabulate(self, shown: Iterable[News], width: int) -> Table:
        is_narrow = width < NARROW
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(max_width=width - (17 if is_narrow else 25))
        for _ in range(2 if is_narrow else 3):
            table.add_column(justify="right", no_wrap=True)
        rows = [("in training", ("epoch", "loss", "accuracy"))]
        rows += [(self._label(news), self._format_news(news)) for news in shown]
        for name, (epoch, loss, accuracy) in rows:
            numbers = [epoch, accuracy] if is_narrow else [epoch, loss, accuracy]
            table.add_row(_line(name if is_narrow else f"  {name}"), *map(Text, numbers))
        return table


def choose_display(
    trials: Sequence[Trial],
    forecast: Forecast,
    out: TextIO,
    name: str,
    *,
    quiet: bool,
    verbose: bool,
) -> Progress:
    """The display that `out` can show."""
    if quiet:
        return Progress(trials, forecast)
    console = Console(file=out, highlight=False)
    if out.isatty() and not console.is_dumb_terminal:
        return LiveProgress(trials, forecast, console, name, verbose=verbose)
    return LineProgress(trials, forecast, out, name, verbose=verbose)


def _line(text: str) -> Text:
    """Anybody's text on one line, cut where the terminal ends."""
    return Text(printable(text), no_wrap=True, overflow="ellipsis")
