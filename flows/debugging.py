"""Whether the command was asked for tracebacks, which go to the terminal and never into a file."""

import os

_VARIABLE = "TIMELOOM_DEBUG"
_asked = False


def set_debug(asked: bool) -> None:
    """Remembers what the command was asked, for its workers too."""
    global _asked
    _asked = asked
    if asked:
        os.environ[_VARIABLE] = "1"


def debugging() -> bool:
    """What the command was asked."""
    return _asked
