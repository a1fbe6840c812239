"""The one exception that a user sees: what is wrong, and what to do about it."""

from pathlib import Path
from typing import Self

# What to do about a damaged file of a root, whichever it is.
REPAIR = "run `timeloom repair` with the run's configuration"


class TimeloomError(Exception):
    """A failure that a person can mend. `log` is where its run wrote more, if there was a run.

    Args:
        message: one line that names the thing (a table, a column, a configuration key; never a patient's value).
        remedy: one line that says what to do.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy
        self.log: Path | None = None

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class RawFileChangedError(TimeloomError):
    """A raw file is not what it was when its reading was planned: what was made of it may be a mixture.

    Args:
        what: the file in words, without its name.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} changed while it was read, and again while it was read once more",
            remedy="run again when the export has ended; nothing was made of it",
        )
        self.what = what

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Processes hand it to each other."""
        return type(self), (self.what,)
