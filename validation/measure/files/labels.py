"""One bucket's labels, held against its events: whether each is made of what was known by then.

Nothing here reads a definition: an event of the subject must have become known at the very moment of a prediction, and
nobody is predicted after his death, whatever the task is.
"""

from collections.abc import Mapping

import polars as pl

from validation.measure.files.events import DEATH, Part
from validation.measure.reading import gather
from validation.measure.tally import Tally
from warehouse.arrays import NO_TIME
from warehouse.layout import ReleaseLayout
from warehouse.schemas import LABELS

KEYS = ["subject_id", "prediction_time"]
AUDITED = ("labels", "repeated", "unknown_by_then", "after_death")
_MOMENT = [*KEYS, "clock"]
_LABELS = pl.Schema(
    [("subject_id", pl.Int64()), ("prediction_time", pl.Datetime("us")), ("task", pl.String()), ("clock", pl.String())]
)
_DIED: dict[str, pl.DataType | type[pl.DataType]] = {"subject_id": pl.Int64, "died": pl.Datetime("us")}


class LabelAudit:
    """Labels of a bucket, and what its events say of their moments.

    Args:
        clocks: by task, the time of events that its predictions are made at: `time` or `available_time`.
    """

    def __init__(self, tree: ReleaseLayout, bucket: int, clocks: Mapping[str, str]) -> None:
        labels = [
            gather([tree.labels(name, bucket)], LABELS, KEYS).with_columns(
                pl.lit(name).alias("task"), pl.lit(clock).alias("clock")
            )
            for name, clock in clocks.items()
        ]
        self._labels = pl.concat([pl.DataFrame(schema=_LABELS), *labels])
        self._asked = {
            clock: self._labels.filter(pl.col("clock") == clock).select(KEYS).unique() for clock in set(clocks.values())
        }
        self._known = [self._labels.select(_MOMENT).clear()]
        self._deaths = [pl.DataFrame(schema=_DIED)]
        self.asked = self._labels.height > 0

    def add(self, part: Part) -> None:
        """Looks for the moments of labels among a part's events."""
        timed = part.time != NO_TIME
        for clock, asked in self._asked.items():
            times = part.time if clock == "time" else part.available
            moments = pl.DataFrame({"subject_id": part.subject, "prediction_time": times}).filter(
                pl.Series(timed & (times != NO_TIME))
            )
            moments = moments.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
            known = moments.join(asked, on=KEYS, how="semi").unique()
            self._known.append(known.with_columns(pl.lit(clock).alias("clock")))
        died = part.texts["code"].starting(DEATH, separator="/") & timed & (part.available != NO_TIME)
        deaths = pl.DataFrame({"subject_id": part.subject[died], "died": part.available[died]})
        self._deaths.append(deaths.with_columns(pl.col("died").cast(pl.Datetime("us"))))

    def count(self, tally: Tally) -> None:
        """Adds AUDITED of each task."""
        deaths = pl.concat(self._deaths).group_by("subject_id").agg(pl.col("died").min())
        known = pl.concat(self._known).unique().with_columns(pl.lit(True).alias("known"))
        row = pl.struct("task", *KEYS)
        audited = self._labels.join(known, on=_MOMENT, how="left").join(deaths, on="subject_id", how="left")
        counts = audited.group_by("task").agg(
            pl.len().alias(AUDITED[0]),
            (pl.len() - row.n_unique()).alias(AUDITED[1]),
            pl.col("known").is_null().sum().alias(AUDITED[2]),
            (pl.col("died") <= pl.col("prediction_time")).sum().alias(AUDITED[3]),
        )
        tally.add("labels", counts, of="task")
