"""Contradictions in a subject's events: marked, counted, and left as they are.

The list is of those that are known of real exports; docs/quality.md explains each.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
# The first that holds is written down; each is counted.
CONFLICTS = ("before_birth", "after_death", "end_before_start", "overlapping_visit")


def find_conflicts(events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Events in the total order with `conflict` filled in, and how many events each contradiction marks.

    Args:
        events: columns of warehouse.schemas.EVENTS, `code`, `source` and `kind` as enumerations.
    """
    subject = events["subject_id"].to_numpy()
    timed = events["time"].is_not_null().to_numpy()
    last = events["time"].to_physical().fill_null(0).to_numpy()
    # A date stands at the end of its day: only what was over by then, or had not begun, contradicts another.
    first_times = earliest(events)
    first = first_times.to_physical().fill_null(0).to_numpy()
    marks = {
        "before_birth": _beside(events, subject, last, first, timed, BIRTH, before=True),
        "after_death": _beside(events, subject, first, last, timed, DEATH, before=False),
    }
    marks |= _visits(events.with_columns(first_times.alias("first")))
    number = np.full(len(events), len(CONFLICTS), np.uint32)
    for place, name in reversed(list(enumerate(CONFLICTS))):
        number[marks[name]] = place
    named = pl.Series([*CONFLICTS, None], dtype=pl.Enum(sorted(CONFLICTS))).gather(number)
    return events.with_columns(named.alias("conflict")), {name: int(mark.sum()) for name, mark in marks.items()}


def earliest(events: pl.DataFrame) -> pl.Series:
    """When each event (n,) may have happened at the earliest: the start of the day, month or year that is known."""
    time, precision = pl.col("time"), pl.col("time_precision").cast(pl.String)
    first = time
    for name, span in (("day", "1d"), ("month", "1mo"), ("year", "1y")):
        first = pl.when(precision == name).then(time.dt.truncate(span)).otherwise(first)
    return events.select(first.alias("first")).to_series()


def _beside(
    events: pl.DataFrame,
    subject: npt.NDArray[np.int64],
    instant: npt.NDArray[np.int64],
    bound: npt.NDArray[np.int64],
    timed: npt.NDArray[np.bool_],
    code: str,
    *,
    before: bool,
) -> npt.NDArray[np.bool_]:
    """Which timed events (n,), at `instant`, lie before, or after, the `bound` of their subject's event of a code."""
    nothing = np.zeros(len(events), np.bool_)
    categories = events["code"].cat.get_categories()
    if code not in categories:
        return nothing
    places = np.flatnonzero((events["code"].to_physical().to_numpy() == categories.index_of(code)) & timed)
    if not len(places):
        return nothing
    # In the order of the subjects, and one a subject.
    place = np.minimum(np.searchsorted(subject[places], subject), len(places) - 1)
    own = subject[places][place] == subject
    limit = bound[places][place]
    beyond: npt.NDArray[np.bool_] = own & timed & (instant < limit if before else instant > limit)
    return beyond


def _visits(events: pl.DataFrame) -> dict[str, npt.NDArray[np.bool_]]:
    """Ends before the starts of their own raw rows, and starts before the end of a visit of that table that began
    before."""
    ended, overlapping = (np.zeros(len(events), np.bool_) for _ in range(2))
    bounds = (
        events.select("subject_id", "source", "row_hash", "time", "first", "kind")
        .with_row_index("place")
        .filter(pl.col("kind").is_in(["visit_start", "visit_end"]) & pl.col("row_hash").is_not_null())
        .drop_nulls("time")
    )
    if bounds.is_empty():
        return {"end_before_start": ended, "overlapping_visit": overlapping}
    visit = ["subject_id", "source", "row_hash"]
    starts, ends = (pl.col("kind") == kind for kind in ("visit_start", "visit_end"))
    spans = bounds.group_by(visit).agg(
        pl.col("first").filter(starts).min().alias("begun"),
        pl.col("time").filter(starts).min().alias("start"),
        pl.col("first").filter(ends).max().alias("end"),
    )
    wrong = bounds.join(spans, on=visit).filter(ends & (pl.col("time") < pl.col("begun")))
    ended[wrong["place"].to_numpy()] = True
    ordered = spans.drop_nulls(["start", "end"]).sort("subject_id", "source", "start", "end", "row_hash")
    latest = pl.col("end").cum_max().shift().over("subject_id", "source")
    within = ordered.filter(pl.col("start") < latest).select(visit)
    overlapping[bounds.filter(starts).join(within, on=visit, how="semi")["place"].to_numpy()] = True
    return {"end_before_start": ended, "overlapping_visit": overlapping}
