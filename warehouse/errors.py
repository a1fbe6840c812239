"""The one exception that a user sees: what is wrong, and what to do about it."""

from pathlib import Path

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
