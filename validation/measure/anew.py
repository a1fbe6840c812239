"""Measures a release as the night's stage does, but anew and beside it: for `verify`, and where nothing is measured."""

from collections.abc import Callable
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from pipelines.engine.workers import quietly, start_pool
from validation.measure.measures import Measures
from validation.measure.tasks import Facts, Params, Reading, area_of, carry_out, readings
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import ReleaseLayout


def measure_anew(
    tree: ReleaseLayout, facts: Facts, workers: int = 1, done: Callable[[int, int], None] | None = None
) -> Measures:
    """Measures the files of a tree, whatever measures it has; a damaged file is told to whoever asks for its area.

    Args:
        workers: processes; 1 for this one alone.
        done: is told how many of how many tasks are done.
    """
    folder = TemporaryDirectory(prefix="timeloom-")
    place = ReleaseLayout(Path(folder.name))
    failed: dict[str, TimeloomError] = {}
    wanted = list(readings(tree, facts))

    def note(reading: Reading, outcome: tuple[str, str] | None) -> None:
        if outcome is not None:
            failed.update({area: TimeloomError(*outcome) for area in area_of(reading.params) if area not in failed})

    if workers == 1:
        for number, reading in enumerate(wanted, 1):
            note(reading, _measure(reading.params, tree.path, place.path))
            if done:
                done(number, len(wanted))
        return Measures(place, failed, folder)
    with start_pool(workers) as pool:
        with quietly():
            futures: dict[Future[tuple[str, str] | None], Reading] = {
                pool.submit(_measure, reading.params, tree.path, place.path): reading for reading in wanted
            }
        for number, future in enumerate(as_completed(futures), 1):
            try:
                note(futures[future], future.result())
            except BrokenProcessPool:
                note(futures[future], ("a process that measured it died", REPAIR))
            if done:
                done(number, len(wanted))
    return Measures(place, failed, folder)


def _measure(params: Params, tree: Path, into: Path) -> tuple[str, str] | None:
    """Carries a task out; gives message and remedy of what could not be read."""
    try:
        carry_out(params, ReleaseLayout(tree), ReleaseLayout(into))
    except TimeloomError as error:
        return error.message, error.remedy
    except (Exception, pl.exceptions.PanicException) as error:  # damaged bytes can raise anything
        return f"{type(error).__name__} while it was measured", REPAIR
    return None
