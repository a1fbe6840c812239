"""What a person sees: a progress bar on a terminal, plain lines elsewhere, one line for an error."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from warehouse.errors import TimeloomError

PLAIN_WIDTH = 120
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
_errors = Console(stderr=True, soft_wrap=True, highlight=False)
PLAIN_SECONDS = 10.0


def say(text: str) -> None:
    """One line on standard output."""
    console.print(text, markup=False)


def show_error(error: TimeloomError) -> None:
    """One line on standard error."""
    log = f" (log: {error.log})" if error.log else ""
    _errors.print(f"timeloom: {error}{log}", markup=False)


class StageProgress:
    """Shows (stage, done, total): a bar a stage on a terminal; elsewhere a line when a stage ends, or every while.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._rich = Progress(
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=_errors,
        )  # fmt: skip
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._lively = sys.stderr.isatty() and not quiet

    def __enter__(self) -> "StageProgress":
        if self._lively:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lively:
            self._rich.stop()

    def notice(self, line: str) -> None:
        """A line that a person must see while the work goes on."""
        if not self.quiet:
            _errors.print(line, markup=False)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not total:
            return
        if self._lively:
            bar = self._bars.get(stage)
            if bar is None:
                bar = self._bars[stage] = self._rich.add_task(stage, total=total)
            self._rich.update(bar, completed=done, total=total)
        elif not self.quiet:
            now = time.monotonic()
            if done == total or now - self._said.setdefault(stage, now) > PLAIN_SECONDS:
                self._said[stage] = now
                _errors.print(f"{stage}: {done} of {total}", markup=False)
