"""Waves in text files: a subject's line, a time's line, and a sample on each further line."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from extractors.items import FoundItem, UnitBatch, UnitRequest, VerdictError, file_fingerprint, identity_of


def index(
    settings: Any, links: object, progress: Callable[[int, int], None] | None, workers: int | None
) -> list[FoundItem]:
    """One item a file."""
    return [_item(path, settings) for path in sorted(settings.path.rglob("*.wave"))]


def _item(path: Path, settings: Any) -> FoundItem:
    subject, time, units, verdict = None, None, None, "ok"
    try:
        subject, when, samples = _parsed(path)
        time, units = datetime.fromisoformat(when), len(samples) // settings.window
    except ValueError:
        verdict = "failed_unreadable"
    return FoundItem(
        modality="waves",
        raw_subject=subject,
        identity=identity_of([file_fingerprint(path)]),
        paths=(path.relative_to(settings.path).as_posix(),),
        time=time,
        time_source="header" if time else "",
        time_precision="s",
        available_time=None,
        verdict=verdict,
        units_expected=units,
        geometry={"window": settings.window},
    )


def _parsed(path: Path) -> tuple[str, str, np.ndarray]:
    subject, when, *samples = path.read_text(encoding="utf-8").split()
    return subject, when, np.array(samples, np.float32)


def read_waves(request: UnitRequest, size: int) -> Iterator[UnitBatch]:
    """(n, window) float32."""
    try:
        samples = _parsed(request.root / request.paths[0])[2]
    except ValueError as error:
        raise VerdictError("failed_unreadable") from error
    window = int(request.geometry["window"])
    units = samples[: len(samples) // window * window].reshape(-1, window)
    stop = len(units) if request.stop is None else request.stop
    for start in range(request.start, stop, size):
        indices = np.arange(start, min(start + size, stop), dtype=np.int64)
        yield UnitBatch(units[indices], indices, indices[:, None].astype(np.int32))
