"""A worker of the command, slowed down so that a test can stop it: `python -m … CONFIG ROOT LOG PAUSE IDLE [GATE]`.

Every batch is written to the log, with the process and its units, and takes so many seconds more. With a gate it says
that it is ready, and begins when that file is there.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from embedders.encoders.encoder import Encoder
from flows.runs.embedding import work
from flows.runs.settings import RunSettings
from warehouse.errors import TimeloomError


def main(config: str, root: str, log: str, pause: str, idle: str, gate: str = "") -> None:
    submit = Encoder.submit

    def slowly(self: Encoder, parts: Any) -> Any:
        if not golden_is_checked(self):
            return submit(self, parts)
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()} {sum(len(part) for part in parts)}\n")
        time.sleep(float(pause))
        return submit(self, parts)

    Encoder.submit = slowly  # type: ignore[method-assign]
    if gate:
        print("ready", flush=True)
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    try:
        print(work(RunSettings(Path(config), Path(root)), print, idle_seconds=float(idle)).line(), flush=True)
    except TimeloomError as error:
        print(f"timeloom: {error}", file=sys.stderr)
        sys.exit(1)


_batches: dict[int, int] = {}


def golden_is_checked(encoder: Encoder) -> bool:
    """The first two batches of an encoder are its phantoms."""
    _batches[id(encoder)] = _batches.get(id(encoder), 0) + 1
    return _batches[id(encoder)] > 2


if __name__ == "__main__":
    main(*sys.argv[1:])
