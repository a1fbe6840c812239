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
    time = events["time"].to_physical()
    subject = events["subject_id"].to_numpy()
    timed = time.is_not_null().to_numpy()
    instant = time.fill_null(0).to_numpy()
    marks = {
        "before_birth": _beside(events, subject, instant, timed, BIRTH, before=True),
        "after_death": _beside(events, subject, instant, timed, DEATH, before=False),
    }
    marks |= _visits(events)
    number = np.full(len(events), len(CONFLICTS), np.uint32)
    for place, name in reversed(list(enumerate(CONFLICTS))):
        number[marks[name]] = place
    named = pl.Series([*CONFLICTS, None], dtype=pl.Enum(sorted(CONFLICTS))).gather(number)
    return events.with_columns(named.alias("conflict")), {name: int(mark.sum()) for name, mark in marks.items()}


def _beside(
    events: pl.DataFrame,
    subject: npt.NDArray[np.int64],
    instant: npt.NDArray[np.int64],
    timed: npt.NDArray[np.bool_],
    code: str,
    *,
    before: bool,
) -> npt.NDArray[np.bool_]:
    """Which timed events (n,) lie before, or after, their subject's event of a code."""
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
    limit = instant[places][place]
    beyond: npt.NDArray[np.bool_] = own & timed & (instant < limit if before else instant > limit)
    return beyond


def _visits(events: pl.DataFrame) -> dict[str, npt.NDArray[np.bool_]]:
    """Ends before the starts of their own raw rows, and starts before the end of a visit of that table that began
    before."""
    ended, overlapping = (np.zeros(len(events), np.bool_) for _ in range(2))
    bounds = (
        events.select("subject_id", "source", "row_hash", "time", "kind")
        .with_row_index("place")
        .filter(pl.col("kind").is_in(["visit_start", "visit_end"]) & pl.col("row_hash").is_not_null())
        .drop_nulls("time")
    )
    if bounds.is_empty():
        return {"end_before_start": ended, "overlapping_visit": overlapping}
    visit = ["subject_id", "source", "row_hash"]
    start, end = (pl.col("time").filter(pl.col("kind") == kind) for kind in ("visit_start", "visit_end"))
    spans = bounds.group_by(visit).agg(start.min().alias("start"), end.max().alias("end"))
    wrong = bounds.join(spans, on=visit).filter((pl.col("kind") == "visit_end") & (pl.col("time") < pl.col("start")))
    ended[wrong["place"].to_numpy()] = True
    ordered = spans.drop_nulls(["start", "end"]).sort("subject_id", "source", "start", "end", "row_hash")
    latest = pl.col("end").cum_max().shift().over("subject_id", "source")
    within = ordered.filter(pl.col("start") < latest).select(visit)
    starts = bounds.filter(pl.col("kind") == "visit_start").join(within, on=visit, how="semi")
    overlapping[starts["place"].to_numpy()] = True
    return {"end_before_start": ended, "overlapping_visit": overlapping}
