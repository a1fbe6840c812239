"""A run's log under the root: what happened when. It holds names of stages and tables, never a patient's value."""

import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from warehouse.errors import TimeloomError


class RunLog:
    """Appends lines with a UTC time stamp."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def line(self, text: str) -> None:
        """One line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n")

    def failure(self, error: BaseException) -> None:
        """Where an error came from. A library's message may quote a patient's value, so only ours are kept."""
        text = str(error) if isinstance(error, TimeloomError) else type(error).__name__
        with suppress(OSError):  # a full disk takes no log either, and must not hide the error itself
            self.line(f"failed: {text}")
            for note in getattr(error, "__notes__", []):
                self.line(note)
            for frame in traceback.extract_tb(error.__traceback__):
                self.line(f"  at {frame.filename}:{frame.lineno} in {frame.name}")
