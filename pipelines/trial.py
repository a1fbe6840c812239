"""A trial: a run on a few subjects, those with the smallest hashes."""

import polars as pl

from pipelines.meds import subjects_of
from pipelines.night import Night
from warehouse.hashing import splitmix64


def trial_bound(night: Night) -> str | None:
    """The hash of the last subject of a trial, hexadecimal; None where a run is no trial. For stages after `meds`."""
    number = night.trial_subjects
    if number is None:
        return None
    return night.once("trial_bound", lambda: bound_of(_subjects(night)["subject_id"], number))


def _subjects(night: Night) -> pl.DataFrame:
    return subjects_of(night.report("meds"), night.layout.segments)


def bound_of(subjects: pl.Series, number: int) -> str:
    """The hash of the last of that many subjects, in the order of their hashes."""
    hashes = sorted(splitmix64(subjects.to_numpy()).tolist())
    return f"{hashes[min(number, len(hashes)) - 1]:016x}" if hashes else "0"
